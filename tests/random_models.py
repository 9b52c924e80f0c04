"""Random ONNX models, run beside the graph interpreter and ONNX Runtime: mixed operators and types, broadcasting, control
flow, sizes known at run time only (compiled once, run at several).

One case again: `python -m tests.random_models SEED`; many: `python -m tests.random_models FIRST COUNT --jobs 2`.
"""
from __future__ import annotations

import argparse
import faulthandler
import multiprocessing as mp
import random
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import Any

import numpy as np
import onnx
from onnx import helper

import tests.random_heavy
import tests.random_views
import tilewright
from tests.random_graph import LARGEST_ERROR, UNIT, Dim, Graph, Value
from tests.random_regions import grow, info
from tilewright.core.config import config
from tilewright.frontend.onnx.importer import import_onnx
from tilewright.graph import interpret

assert tests.random_heavy and tests.random_views  # their steps are among STEPS
SECONDS, PATIENCE = 60, 10
"""Processor time of one case, and how many times the seconds may pass."""


@dataclass
class Case:
    """A model, the inputs of each of its runs, and the error that each output may have (0: exact)."""
    seed: int
    model: onnx.ModelProto
    feeds: list[dict[str, Any]]
    errors: list[float]


# ---- making ----------------------------------------------------------------------------------------------------------
def random_case(seed: int, steps: int = 6) -> Case:
    """The case of a seed: three in ten have symbols in their inputs' shapes and three runs."""
    rng = random.Random(seed)
    dynamic = rng.random() < 0.3
    g = Graph(rng, 3 if dynamic else 1, rng.choice([18, 20, 21, 22, 23]))
    symbols: dict[Dim, str] = {(3, 1, 6): "n", (2, 5, 4): "m"} if dynamic else {}

    def shape(rank: int) -> tuple[Dim, ...]:
        return tuple([rng.choice([*symbols]) if symbols and rng.random() < 0.4 else g.dim(rng.choice([1, 2, 3, 4, 5, 8]))
                      for _ in range(rank)])
    batch = rng.choice([*symbols, g.dim(1)])
    inputs = [Value(f"x{k}", shape(rng.choice([1, 2, 3, 4])), "float32", 4, UNIT["float32"]) for k in range(2)]
    inputs += [Value("image", (batch, g.dim(rng.choice([3, 8])), g.dim(6), g.dim(7)), "float32", 4, UNIT["float32"]),
               Value("quarters", shape(rng.choice([1, 2, 3])), "float32", 2, 0.0, 2),
               Value("whole", shape(rng.choice([1, 2])), rng.choice(["int32", "int64", "int64", "uint8", "int8"]), 9),
               Value("flags", shape(rng.choice([0, 1, 2])), "bool", 1)]
    trips = Value("trips", (), "int64", 3)
    g.values += inputs
    data = np.random.default_rng(seed)
    feeds = [{v.name: _data(data, v, [d[k] for d in v.shape]) for v in inputs} for k in range(g.runs)]
    for feed in feeds:
        feed["trips"] = np.array(max(rng.randrange(1, 4), 1 if dynamic else 2))  # a size of data is not taken to broadcast
    g.trips = "trips", tuple([int(f["trips"]) for f in feeds])
    grow(g, steps)
    used = {n for node in g.nodes for n in node.input}
    made = {v.name: v for v in g.values if v not in inputs and v.error <= LARGEST_ERROR.get(v.type, 0)}
    kept = [n for n in made if n not in used] + rng.sample(list(made), min(2, len(made)))
    outputs = {**{n: (made[n].error, made[n].type) for n in kept}, **{n: (e, "") for n, e in g.ends if e <= 1e-3}}
    graph = helper.make_graph(
        g.nodes, f"random_{seed}", [info(v.name, v.type, [symbols.get(d, d[0]) for d in v.shape]) for v in (*inputs, trips)],
        [info(n, t) if t else onnx.ValueInfoProto(name=n) for n, (_, t) in outputs.items()], g.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", g.opset)], ir_version=10)
    return Case(seed, model, feeds, [e for e, _ in outputs.values()])


def random_model(seed: int, steps: int = 6) -> onnx.ModelProto:
    """The model of a seed."""
    return random_case(seed, steps).model


def _data(data: np.random.Generator, v: Value, shape: list[int]) -> Any:
    if v.type == "bool":
        return np.asarray(data.random(shape) < 0.5)
    if not v.is_float:
        return data.integers(0 if v.type.startswith("u") else -9, 10, shape).astype(v.type)
    return (data.integers(-8, 9, shape) / 4 if v.exact else np.clip(data.standard_normal(shape), -4, 4)).astype(v.type)


def operators(model: onnx.ModelProto) -> set[str]:
    """The ONNX operators of a model and of the graphs in it."""
    out, stack = set(), [model.graph]
    while stack:
        for n in stack.pop().node:
            out.add(n.op_type)
            stack += [a.g for a in n.attribute if a.HasField("g")]
    return out


# ---- checking --------------------------------------------------------------------------------------------------------
class Unknown(Exception):
    """What ONNX Runtime does not run."""


def by_onnxruntime(case: Case) -> list[list[Any]]:
    import onnxruntime as ort
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    traced = faulthandler.is_enabled()
    faulthandler.disable()  # who reads the summary learns of its end
    try:
        session = ort.InferenceSession(case.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [list(session.run(None, f)) for f in case.feeds]
    except Exception as e:  # noqa: BLE001 – its errors have no common base
        raise Unknown(str(e)) from None
    finally:
        if traced:
            faulthandler.enable()


def compare(case: Case, got: list[list[Any]], wanted: list[list[Any]], by: str) -> None:
    names = [o.name for o in case.model.graph.output]
    for k, (these, those) in enumerate(zip(got, wanted, strict=True)):
        for name, a, b, error in zip(names, these, those, case.errors, strict=True):
            b = np.asarray(b)
            where = f"{name} of run {k} beside {by}"
            assert (a.shape, a.dtype) == (b.shape, b.dtype), f"{where}: {a.dtype}{a.shape}, not {b.dtype}{b.shape}"
            if error == 0:
                np.testing.assert_array_equal(a, b, where)
            else:
                np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=0, atol=error, err_msg=where)


def check(case: Case, note: Any = lambda what: None) -> str:
    """Compiled once, with a poisoned arena; the same bits with another number of threads. "" or why ONNX Runtime gave no
    results."""
    with config.override(compile_workers=1), tilewright.compile(case.model, threads=1) as made:
        made.executable.set_poison(True)
        got = [made.run(f) for f in case.feeds]
        made.threads = 2
        again = made.run(case.feeds[-1])
        assert [a.tobytes() for a in again] == [a.tobytes() for a in got[-1]], "two threads give other bits"
    note("interpreter")
    graph = import_onnx(case.model)
    compare(case, got, [interpret.run(graph, f) for f in case.feeds], "the interpreter")
    note("ONNX Runtime")
    try:
        wanted = by_onnxruntime(case)
    except Unknown as e:
        return str(e)
    compare(case, got, wanted, "ONNX Runtime")
    return ""


# ---- many ------------------------------------------------------------------------------------------------------------
@dataclass
class Result:
    """How many ran, how many of them beside ONNX Runtime as well, what failed by seed, the operators, and why ONNX Runtime
    gave no results to compare with."""
    ran: int = 0
    beside: int = 0
    dynamic: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    operators: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        return f"{self.ran} cases, {self.dynamic} with symbols, {len(self.failures)} failed; {len(self.operators)} " \
            f"operators of ONNX; {self.refused.total()} that ONNX Runtime could not judge"


def _limited() -> None:
    """A process that hangs ends: nobody handles these signals."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(PATIENCE * SECONDS)


def _child(seeds: Sequence[int], steps: int, tell: Any, others: Sequence[Any]) -> None:
    for c in others:
        c.close()
    warnings.simplefilter("ignore")
    for seed in seeds:
        tell.send(("begin", seed, "making"))
        _limited()
        try:
            case = random_case(seed, steps)
            tell.send(("made", seed, (operators(case.model), len(case.feeds) > 1)))
            tell.send(("end", seed, ("", check(case, lambda what, seed=seed: tell.send(("begin", seed, what))))))
        except Exception as e:  # noqa: BLE001 – whatever it is, it is what was looked for
            tell.send(("end", seed, ("".join(traceback.format_exception(e)[-2:])[-1500:], "")))


def _only_onnxruntime(seed: int, steps: int) -> None:
    _limited()
    try:
        by_onnxruntime(random_case(seed, steps))
    except Unknown:
        pass


def _dies_alone(seed: int, steps: int) -> bool:
    """Whether ONNX Runtime ends a process in which no code of ours runs."""
    alone = mp.get_context("fork").Process(target=_only_onnxruntime, args=(seed, steps))
    alone.start()
    alone.join()
    return (alone.exitcode or 0) < 0


class _Worker:
    """A forked process that takes cases one after another, and is replaced when it dies: a crash costs one case."""

    def __init__(self, seeds: Sequence[int], steps: int, out: Result) -> None:
        self.todo, self.steps, self.out = list(seeds), steps, out

    def start(self, others: Sequence[Any]) -> None:
        context = mp.get_context("fork")
        self.ours, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_child, args=(self.todo, self.steps, theirs, [*others, self.ours]))
        self.process.start()
        theirs.close()
        self.phase = ""

    def hear(self) -> bool:
        """One message of the process, or its end; whether a case is through."""
        try:
            kind, seed, what = self.ours.recv()
        except EOFError:
            self.process.join()
            self.ours.close()
            died = bool(self.todo)
            if died:
                self._end(self.todo[0], *self._death())
            return died
        if kind == "begin":
            self.phase = what
        elif kind == "made":
            self.phase = "compiled"
            self.out.operators.update(what[0])
            self.out.dynamic += what[1]
        else:
            self._end(seed, *what)
        return kind == "end"

    def _death(self) -> tuple[str, str]:
        """(failure, "") or ("", why ONNX Runtime gave no results)."""
        why = f"died with {self.process.exitcode} ({self.phase})"
        ours = self.phase != "ONNX Runtime" or not _dies_alone(self.todo[0], self.steps)
        return (why, "") if ours else ("", why)

    def _end(self, seed: int, failure: str, refused: str) -> None:
        self.todo.remove(seed)
        self.out.ran += 1
        self.out.beside += not refused and not failure
        if failure:
            self.out.failures[seed] = failure
        elif refused:
            self.out.refused[refused] += 1


def campaign(seeds: Sequence[int], steps: int = 6, told: Any = lambda result: None, jobs: int = 1) -> Result:
    """All the cases, by `jobs` processes; `told` hears of each that is through."""
    out = Result()
    workers = [_Worker(seeds[k::jobs], steps, out) for k in range(jobs)]
    running: dict[Any, _Worker] = {}
    while running or any(w.todo for w in workers):
        for w in workers:
            if w.todo and w not in running.values():
                w.start(list(running))
                running[w.ours] = w
        for c in connection.wait(list(running)):
            if running[c].hear():
                told(out)
            if c.closed:
                del running[c]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.random_models", description=__doc__)
    parser.add_argument("first", type=int, help="a seed; alone, its model is printed and checked")
    parser.add_argument("count", type=int, nargs="?", help="how many seeds")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    options = parser.parse_args()
    if options.count is None:
        case = random_case(options.first)
        print(onnx.printer.to_text(case.model))
        print(check(case) or "right")
        return
    begin, known = time.monotonic(), 0

    def told(r: Result) -> None:
        nonlocal known
        for seed in list(r.failures)[known:]:
            print(f"seed {seed}: {r.failures[seed]}", flush=True)
        known = len(r.failures)
        if r.ran % 25 == 0:
            print(f"{time.monotonic() - begin:.0f} s: {r}", flush=True)
    result = campaign(range(options.first, options.first + options.count), told=told, jobs=options.jobs)
    print(", ".join(f"{k} {n}" for k, n in sorted(result.operators.items())))
    for why, n in result.refused.most_common(30):
        print(n, why[:160])
    print(f"{result}; {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
