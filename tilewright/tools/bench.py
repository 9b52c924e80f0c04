"""Engines side by side on one model, in one process: Tilewright against ONNX Runtime and OpenVINO.

In: an ONNX model and inputs. Out: latencies per engine, from interleaved rounds in random order, each round after a rest
(an engine's spinning workers slow down whoever comes next) and untimed runs. Machines are noisy: quote the ratios.
"""
from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright import driver
from tilewright.core.errors import UserError
from tilewright.model import Model, Timing, relative_error, timing_of

Feeds = Mapping[str, Any]
Run = Callable[[Feeds], list[Any]]

REST_SECONDS = 0.1
"""Before each engine's turn: longer than any engine's workers spin."""


def load(model: Any, threads: int) -> Run:
    """A compiled model as a function {name: array} -> list of outputs, with as little Python around it as there can be.

    `model` is an onnx.ModelProto (or a path, or bytes). Raises UserError as `tilewright.compile`.
    """
    return runner(driver.compile(model, threads=threads))


def runner(compiled: Model) -> Run:
    """A model's function of named inputs."""
    names, run = [i.name for i in compiled.inputs], compiled.executable.run
    return lambda feeds: run([feeds[name] for name in names])


def load_onnxruntime(model: Any, threads: int | None, callers: int = 1) -> Run:
    """ONNX Runtime's session with all its optimizations; any number of callers share it. Raises UserError
    "engine-missing", "engine-failed"."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise _missing("onnxruntime") from error
    ort.set_default_logger_severity(3)
    options = ort.SessionOptions()
    if threads:
        options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own exception classes share no base but this one
        raise UserError("engine-failed", f"onnxruntime does not load the model: {error}") from error
    names = [o.name for o in session.get_outputs()]
    return lambda feeds: list(session.run(names, feeds))


def load_openvino(model: Any, threads: int | None, callers: int = 1) -> Run:
    """OpenVINO on the CPU in f32, tuned for latency, or for the throughput of several callers (`threads` is then for each
    of them). Raises UserError "engine-missing", "engine-failed"."""
    try:
        import openvino as ov
    except ImportError as error:
        raise _missing("openvino") from error
    core = ov.Core()
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
                              "ENABLE_CPU_PINNING": False}
    if callers > 1:
        config |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": str(callers)}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads * callers
    try:
        compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", config)
    except Exception as error:  # RuntimeError and its own classes
        raise UserError("engine-failed", f"openvino does not load the model: {error}") from error
    of_thread = threading.local()  # a request serves one caller

    names = [i.any_name for i in compiled.inputs]

    def run(feeds: Feeds) -> list[Any]:
        if not hasattr(of_thread, "request"):
            of_thread.request = compiled.create_infer_request()
        found = of_thread.request.infer([feeds[name] for name in names], share_inputs=True)
        return [found[port] for port in compiled.outputs]
    return run


Loader = Callable[[Any, int | None, int], Run]
"""(model, threads or None, callers) -> run."""

PEERS: dict[str, Loader] = {"onnxruntime": load_onnxruntime, "openvino": load_openvino}


def _missing(name: str) -> UserError:
    return UserError("engine-missing", f"{name} is not installed", hint=f"pip install {name}")


def peer(name: str) -> Loader:
    """The loader of another engine. Raises UserError "engine-unknown"."""
    if name not in PEERS:
        raise UserError("engine-unknown", f"there is no engine {name!r}", hint="engines: " + ", ".join(PEERS))
    return PEERS[name]


@dataclass(frozen=True)
class Standing:
    """One engine's result: its latencies, the median of the fastest other engine over its own (above 1: faster), and the
    largest error of its outputs against the first engine's, relative to their largest value."""
    engine: str
    timing: Timing
    ratio: float | None
    error: float


def race(runs: Mapping[str, Run], feeds: Sequence[Feeds], *, warmup: int = 2, rounds: int = 15,
         seconds: float = 8.0, progress: Callable[[], None] = lambda: None) -> list[Standing]:
    """Time engines in at least `rounds` interleaved rounds and for at least `seconds`; inputs change from run to run."""
    first = {name: [np.array(o) for o in run(feeds[0])] for name, run in runs.items()}
    reference = next(iter(first.values()))
    times: dict[str, list[float]] = {name: [] for name in runs}
    order, rng, done = list(runs), random.Random(0), 0
    stop = time.perf_counter() + seconds
    while done < rounds or time.perf_counter() < stop:
        rng.shuffle(order)
        for name in order:
            times[name] += _turn(runs[name], feeds, done, warmup, rest=REST_SECONDS if len(order) > 1 else 0.0)
        done += 1
        progress()
    medians = {name: timing_of(t).median for name, t in times.items()}
    out = []
    for name in runs:
        others = [m for other, m in medians.items() if other != name]
        error = max((relative_error(a, b) for a, b in zip(first[name], reference, strict=True)), default=0.0)
        out.append(Standing(name, timing_of(times[name]), min(others) / medians[name] if others else None, error))
    return out


def _turn(run: Run, feeds: Sequence[Feeds], turn: int, warmup: int, rest: float) -> list[float]:
    """Milliseconds of two runs after a rest and `warmup` untimed ones."""
    time.sleep(rest)
    for _ in range(warmup):
        run(feeds[turn % len(feeds)])
    out = []
    for k in (1, 2):
        given = feeds[(turn + k) % len(feeds)]
        start = time.perf_counter()
        run(given)
        out.append((time.perf_counter() - start) * 1e3)
    return out
