"""What shape inference took for granted: sizes that are not known to differ are taken to be equal.

In: a Graph as imported. Out: the checks that a run makes of them, one per pair of sizes. Two different symbols that meet in
a broadcast must be equal: that one of them is 1 is not taken into account.
"""
from __future__ import annotations

from collections.abc import Iterator

from tilewright.graph.infer import is_one, product, same, show
from tilewright.graph.ir import Check, Graph, Operation
from tilewright.graph.registry import record_of
from tilewright.loop.ir import Expr


def with_checks(graph: Graph) -> Graph:
    """The graph with a check of every assumption about its sizes."""
    found: dict[str, Check] = {}
    for op in graph.operations:
        _collect(op, found)
    return graph if not found else Graph(graph.name, graph.inputs, graph.outputs, graph.operations, graph.output_names,
                                         [*graph.checks, *found.values()])


def _collect(op: Operation, found: dict[str, Check]) -> None:
    for a, b, what in _pairs(op):
        if same(a, b) is None:
            found.setdefault(f"{a!r} {b!r}", Check(a.eq(b), f"{op.loc or op.op}: {what}: {a!r} and {b!r} differ"))
    for region in op.regions:
        for inner in region.operations:
            _collect(inner, found)


def _pairs(op: Operation) -> Iterator[tuple[Expr, Expr, str]]:
    """Sizes that an operation takes to be equal."""
    shapes = [v.shape for v in op.inputs if v is not None]
    if op.op == "reshape":
        text = f"{show(shapes[0])} has another number of elements than {show(op.output.shape)}"
        yield product(shapes[0]), product(op.output.shape), text
    elif op.op == "concat":
        for shape in shapes[1:]:
            yield from ((a, b, f"axis {k}") for k, (a, b) in enumerate(zip(shapes[0], shape, strict=True))
                        if k != op.attrs["axis"])
    elif op.op == "matmul":
        yield shapes[0][-1], shapes[1][-2 if len(shapes[1]) > 1 else 0], "the axes that are summed over"
        yield from _broadcast([s[:-2] for s in shapes], op.output.shape[:max(len(s) for s in shapes) - 2])
    elif op.op in ("batch_norm", "instance_norm", "group_norm"):
        yield from ((shape[0], shapes[0][1], "the channels") for shape in shapes[1:])
    elif op.op in ("layer_norm", "rms_norm"):
        yield from _broadcast(shapes[1:], shapes[0])
    elif op.op == "conv":
        yield shapes[0][1], shapes[1][1] * op.attrs["group"], "the channels"
    elif op.op == "conv_transpose":
        yield shapes[0][1], shapes[1][0], "the channels"
    elif op.op in ("rnn", "gru", "lstm"):
        lengths = op.inputs[-1]
        if lengths is not None and lengths.rank == 1:
            yield lengths.shape[0], shapes[0][1], "the batch"
    elif record_of(op).fusion in ("elementwise", "broadcast") or op.op == "expand":
        yield from _broadcast(shapes, op.output.shape)


def _broadcast(shapes: list[tuple[Expr, ...]], out: tuple[Expr, ...]) -> Iterator[tuple[Expr, Expr, str]]:
    for shape in shapes:
        for k, d in enumerate(reversed(shape)):
            if k < len(out) and not is_one(d):
                yield d, out[len(out) - 1 - k], f"axis {-1 - k}"
