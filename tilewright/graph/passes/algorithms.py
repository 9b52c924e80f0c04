"""Algorithm choice: a convolution becomes Winograd's form where the cost model says that it is faster.

In: a graph in blocked layouts. Out: convolutions of 3×3 and k×3×3 with stride 1 along the last two axes and constant
weights, on images of known size (of any number), replaced by `winograd_conv` over transformed weights, their borders
separate and widened to whole tiles.

    conv(x, w, pads)      becomes      winograd_conv(pad(x), winograd_weights(w))

The tile size weighs multiplications saved against the bytes of transformed weights, which grow from 9 to 16 (m = 2) or
36 (m = 4) per pair of channels. `numerics="strict"` allows no m above 2.
"""
from __future__ import annotations

from typing import Any

from tilewright.graph.builder import GraphBuilder, rewrite
from tilewright.graph.ir import Graph, Operation, Value
from tilewright.graph.ops.winograd import KERNEL, transform_weights
from tilewright.loop.ir import as_int, estimate
from tilewright.target.target import Target
from tilewright.tensor.cost import roofline

MIN_CHANNELS = 16
"""Fewer input channels leave the transforms more work than the products."""


def choose_algorithms(graph: Graph, target: Target, numerics: str) -> Graph:
    """Replace convolutions by their cheapest form."""
    def visit(op: Operation, b: GraphBuilder) -> Value | None:
        if op.op != "conv" or not _fits(op):
            return None
        m = cheapest_tile(op, target, numerics)
        return None if m == 0 else _winograd(op, m, b)

    return rewrite(graph, visit)


def _fits(op: Operation) -> bool:
    x, w = op.inputs[0], op.inputs[1]
    a = op.attrs
    assert x is not None and w is not None
    return (a["layout"] == "NCHWc" and a["in_layout"] == "NCHWc" and a["group"] == 1 and w.data is not None
            and w.rank in (4, 5) and [as_int(d) for d in w.shape[-2:]] == [KERNEL, KERNEL] and x.dtype.name == "f32"
            and set((a["strides"] or (1,))[-2:]) == {1} and set((a["dilations"] or (1,))[-2:]) == {1}
            and (as_int(w.shape[1]) or 0) >= MIN_CHANNELS and all(as_int(d) is not None for d in x.shape[1:])
            and (w.rank == 4 or (as_int(w.shape[1]) or 0) % (as_int(x.shape[-1]) or 1) == 0))


def cheapest_tile(op: Operation, target: Target, numerics: str) -> int:
    """Outputs per tile and axis (2 or 4), or 0 for the direct form."""
    w, out = op.inputs[1], op.output
    assert w is not None
    n, height, width = (estimate(out.shape[axis]) for axis in (0, -3, -2))
    o, c = as_int(w.shape[0]) or 0, as_int(w.shape[1]) or 0
    if w.rank == 5:  # planes count as images, those of a window as channels
        n, c = n * estimate(out.shape[2]), c * (as_int(w.shape[2]) or 1)
    best = (roofline(2.0 * n * o * c * KERNEL**2 * height * width, target, memory_bytes=4.0 * o * c * KERNEL**2), 0)
    for m in (2,) if numerics == "strict" else (2, 4):
        points = (m + KERNEL - 1)**2
        tiles = n * -(-height // m) * -(-width // m)
        moved = 2 * 4.0 * points * tiles * (c + o)
        cost = roofline(2.0 * points * tiles * o * c, target, cached_bytes=moved, memory_bytes=4.0 * points * o * c)
        best = min(best, (cost, m))
    return best[1]


def _winograd(op: Operation, m: int, b: GraphBuilder) -> Value:
    x, w = op.inputs[0], op.inputs[1]
    assert x is not None and w is not None and w.data is not None
    height, width = (as_int(op.output.shape[axis]) or 0 for axis in (-3, -2))
    rank = w.rank - 2
    *outer, bottom, right = op.attrs["pads"][rank:]
    before = (0, 0, *op.attrs["pads"][:rank], 0)
    after = (0, 0, *outer, bottom + -height % m, right + -width % m, 0)
    if any(before) or any(after):
        x = b.add("pad", [x], {"before": before, "after": after, "value": 0.0}, name=f"{x.name}_tiles")
    u = b.constant(transform_weights(w.data, m), name=f"{w.name}_winograd{m}")
    attrs: dict[str, Any] = {"m": m, "height": height, "width": width}
    if rank == 3:
        attrs["planes"] = (as_int(w.shape[2]) or 1, (op.attrs["dilations"] or (1,))[0], (op.attrs["strides"] or (1,))[0])
    return b.add("winograd_conv", [x, u], attrs, name=op.output.name, loc=op.loc)
