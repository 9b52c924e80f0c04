"""Damaged models for the compiler: mutations of real ones, tried in a process of its own that has a limit on memory and a
timer. Every model must end in a UserError or a result.
"""
from __future__ import annotations

import multiprocessing as mp
import random
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from tilewright import driver
from tilewright.core.config import config
from tilewright.core.errors import UserError
from tilewright.frontend.onnx import table
from tilewright.frontend.onnx.importer import import_model
from tilewright.graph.ir import Graph

SECONDS, BYTES, PATIENCE = 10, 2 << 30, 6
"""Processor time of one model, its memory, and how many times the seconds may pass."""
ODD = (0, 1, -1, 2, 7, 127, -128, 2**31 - 1, 2**31, -(2**31), 2**32, 2**40, 2**62, 2**63 - 1, -(2**63))
RUNNABLE = 1 << 20
"""Models whose values have at most so many elements in all are also compiled and run."""

Mutation = Callable[[random.Random, onnx.ModelProto], None]


# ---- mutations -------------------------------------------------------------------------------------------------------
def _graphs(m: onnx.ModelProto) -> list[Any]:
    out, stack = [], [m.graph]
    while stack:
        g = stack.pop()
        out.append(g)
        for n in g.node:
            stack += [a.g for a in n.attribute if a.HasField("g")]
    return out


def _node(r: random.Random, m: onnx.ModelProto) -> Any:
    nodes = [n for g in _graphs(m) for n in g.node]
    return r.choice(nodes) if nodes else m.graph.node.add()


def _names(m: onnx.ModelProto) -> list[str]:
    return [x for g in _graphs(m) for n in g.node for x in (*n.input, *n.output)] + ["", "nowhere"]


def operator(r: random.Random, m: onnx.ModelProto) -> None:
    _node(r, m).op_type = r.choice([*table.names(), "Nothing", "If", "Loop", "Scan"])


def wires(r: random.Random, m: onnx.ModelProto) -> None:
    """Inputs from anywhere: cycles, dangling names, too many or too few operands."""
    n = _node(r, m)
    match r.randrange(4):
        case 0 if n.input:
            n.input[r.randrange(len(n.input))] = r.choice(_names(m))
        case 1:
            n.input.append(r.choice(_names(m)))
        case 2 if n.input:
            del n.input[r.randrange(len(n.input))]
        case _:
            shuffled = list(n.input)
            r.shuffle(shuffled)
            n.input[:] = shuffled


def outputs(r: random.Random, m: onnx.ModelProto) -> None:
    n = _node(r, m)
    match r.randrange(3):
        case 0 if n.output:
            n.output[r.randrange(len(n.output))] = r.choice(_names(m))
        case 1:
            n.output.append(f"new{r.randrange(9)}")
        case _:
            m.graph.output.add().name = r.choice(_names(m))


def attributes(r: random.Random, m: onnx.ModelProto) -> None:
    n = _node(r, m)
    if not n.attribute or r.random() < 0.2:
        n.attribute.append(onnx.helper.make_attribute(r.choice(["axis", "to", "perm", "pads", "k", "value", "group"]),
                                                      r.choice([r.choice(ODD), 1.5, "x", [r.choice(ODD)], [0.5, 2.0]])))
        return
    a = r.choice(n.attribute)
    match r.randrange(5):
        case 0:
            a.type = r.randrange(15)
        case 1:
            a.name = r.choice(["axis", "axes", "", "kernel_shape", "nothing"])
        case 2 if a.ints:
            a.ints[r.randrange(len(a.ints))] = r.choice(ODD)
        case 3 if a.ints:
            del a.ints[r.randrange(len(a.ints)):]
        case _:
            a.i, a.f = r.choice(ODD), r.choice([float("nan"), float("inf"), -1.0, 1e38])


def weights(r: random.Random, m: onnx.ModelProto) -> None:
    """Initializers of odd sizes, types, contents and places."""
    if not m.graph.initializer:
        m.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(3, np.int64), r.choice(_names(m))))
        return
    t = r.choice(m.graph.initializer)
    match r.randrange(7):
        case 0:
            t.dims.append(r.choice(ODD))
        case 1 if t.dims:
            t.dims[r.randrange(len(t.dims))] = r.choice(ODD)
        case 2:
            t.data_type = r.randrange(30)
        case 3 if t.raw_data:
            t.raw_data = t.raw_data[:r.randrange(len(t.raw_data))]
        case 4:
            t.name = r.choice(_names(m))
        case 5 if t.data_type == onnx.TensorProto.INT64 and len(t.raw_data) >= 8:
            count = len(t.raw_data) // 8
            t.raw_data = np.array([r.choice(ODD) for _ in range(count)], np.int64).tobytes()
        case _:
            t.data_location = onnx.TensorProto.EXTERNAL
            where = r.choice(["../../../../etc/passwd", "/etc/passwd", "weights", "", "a\0b", "/dev/zero"])
            t.external_data.append(onnx.StringStringEntryProto(key="location", value=where))
            t.external_data.append(onnx.StringStringEntryProto(key="length", value=str(r.choice(ODD))))


def shapes(r: random.Random, m: onnx.ModelProto) -> None:
    infos = [v for v in (*m.graph.input, *m.graph.output, *m.graph.value_info)]
    if not infos:
        return
    t = r.choice(infos).type.tensor_type
    match r.randrange(5):
        case 0:
            t.elem_type = r.randrange(30)
        case 1:
            t.shape.dim.add().dim_value = r.choice(ODD)
        case 2 if t.shape.dim:
            r.choice(t.shape.dim).dim_value = r.choice(ODD)
        case 3 if t.shape.dim:
            r.choice(t.shape.dim).dim_param = r.choice(["n", "", "N+1", "é", "batch"])
        case _:
            t.ClearField("shape")


def whole(r: random.Random, m: onnx.ModelProto) -> None:
    match r.randrange(5):
        case 0:
            m.opset_import[0].version = r.choice([*ODD, 1, 6, 11, 13, 18])
        case 1:
            m.graph.node.append(_node(r, m))  # the same names twice
        case 2 if len(m.graph.node) > 1:
            del m.graph.node[r.randrange(len(m.graph.node))]
        case 3:
            deep(r, m)
        case _:
            f = m.functions.add(name="F", domain="own")
            f.node.add(op_type="F", domain="own", output=["y"])
            m.opset_import.add(domain="own", version=1)
            _node(r, m).op_type, _node(r, m).domain = "F", "own"


def deep(r: random.Random, m: onnx.ModelProto) -> None:
    """If within If, up to a thousand."""
    g = m.graph
    for k in range(r.choice([3, 30, 99, 1000])):
        n = g.node.add(op_type="If", input=[r.choice([v.name for v in m.graph.input] or [""])], output=[f"deep{k}"])
        a = n.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
        n.attribute.add(name="else_branch", type=onnx.AttributeProto.GRAPH)
        g = a.g


FIELDS: Sequence[Mutation] = (operator, wires, wires, outputs, attributes, attributes, weights, weights, shapes, whole)


def mutated(seed: int, bases: Sequence[bytes]) -> bytes:
    """A damaged model: its fields, its bytes, or both."""
    r = random.Random(seed)
    data = r.choice(bases)
    if r.random() < 0.75:
        m = onnx.ModelProto.FromString(data)
        try:
            for _ in range(r.choice([1, 1, 1, 2, 3])):
                r.choice(FIELDS)(r, m)
            data = m.SerializeToString()
        except (ValueError, DecodeError):  # deeper than protocol buffers allow
            return data
        if r.random() < 0.9:
            return data
    b = bytearray(data)
    for _ in range(r.randint(1, 4)):
        at, few = r.randrange(len(b) + 1), r.randint(1, 9)
        b[at:at + few] = r.choice([b"", bytes([r.randrange(256)]) + b[at + 1:at + few], b[at:at + few] * 2])
    return bytes(b)


# ---- one model -------------------------------------------------------------------------------------------------------
def attempt(data: bytes, run: bool = True) -> str:
    """"" or the code of the UserError; whatever else happens is raised."""
    try:
        read = import_model(data)
        if run and _is_small(read.graph):
            with driver.compile(data) as made:
                made.run(made.random_inputs())
    except UserError as e:
        assert str(e)
        return e.code
    return ""


def _is_small(g: Graph) -> bool:
    total = 0.0
    for v in [*g.inputs, *[v for op in g.operations for v in op.outputs]]:
        total += float(np.prod([float(getattr(d, "value", 2)) for d in v.shape]))
    return total < RUNNABLE and not any(op.regions for op in g.operations if op.op in ("loop", "scan"))


# ---- many ------------------------------------------------------------------------------------------------------------
@dataclass
class Failure:
    """A model that ended otherwise: its seed, and how."""
    seed: int
    what: str


def _child(bases: Sequence[bytes], seeds: Sequence[int], run: bool, tell: Any) -> None:
    """Tries models until one kills the process."""
    warnings.simplefilter("ignore")
    with open("/proc/self/statm") as f:
        used = int(f.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
    with config.override(compile_workers=1):
        for seed in seeds:
            tell.send(("begin", seed, ""))
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # nobody handles these: a hang ends the process
            signal.alarm(PATIENCE * SECONDS)  # other processes' work is no hang
            what = ""
            try:
                code = attempt(mutated(seed, bases), run)
            except BaseException as e:  # noqa: BLE001 – whatever it is, it is what was looked for
                what, code = "".join(traceback.format_exception(e)[-3:])[-1500:], "wrong"
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            tell.send(("end", seed, what or code))
    tell.send(("done", 0, ""))


def campaign(bases: Sequence[bytes], seeds: Sequence[int], run: bool = True,
             seconds: float = float("inf")) -> tuple[dict[str, int], list[Failure]]:
    """How often each code (or "" for a result) came, and what failed."""
    context, todo = mp.get_context("fork"), list(seeds)
    codes: dict[str, int] = {}
    failures: list[Failure] = []
    stop = time.monotonic() + seconds
    while todo and time.monotonic() < stop:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(bases, todo, run, theirs))
        child.start()
        theirs.close()
        running: int | None = None
        try:
            while time.monotonic() < stop:
                kind, seed, what = ours.recv()
                if kind == "begin":
                    running = seed
                elif kind == "done":
                    todo = []
                    break
                else:
                    running, todo = None, todo[1:]
                    if "\n" in what:
                        failures.append(Failure(seed, what))
                    else:
                        codes[what] = codes.get(what, 0) + 1
        except EOFError:
            child.join()
            if running is not None:
                ended = {-signal.SIGALRM: f"hung for {PATIENCE * SECONDS} s, most of them without work",
                         -signal.SIGPROF: f"hung for {SECONDS} s of work"}
                failures.append(Failure(running, ended.get(child.exitcode or 0, f"died: exit code {child.exitcode}")))
                todo = todo[1:]
        child.kill()
        child.join()
    return codes, failures
