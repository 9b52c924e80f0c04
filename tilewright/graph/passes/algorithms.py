"""Algorithm choice: a convolution becomes Winograd's form where the cost model says that it is faster.

In: a graph in blocked layouts. Out: convolutions of 3×3 and k×3×3 with stride 1 along the last two axes and constant
weights, on images of known size (of any number), of one group or groups of whole channel blocks, replaced by
`winograd_conv` over transformed weights, their borders separate and widened to whole tiles.

    conv(x, w, pads)      becomes      winograd_conv(pad(x), winograd_weights(w))

Where the window is dilated by d, every d-th row and column is an image of its own, with a window that is not.

The tile size weighs multiplications saved against the bytes of transformed weights, which grow from 9 to 16 (m = 2) or
36 (m = 4) per pair of channels. `numerics="strict"` allows no m above 2.
"""
from __future__ import annotations

import math
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
    return (a["layout"] == "NCHWc" and a["in_layout"] == "NCHWc" and w.data is not None
            and w.rank in (4, 5) and [as_int(d) for d in w.shape[-2:]] == [KERNEL, KERNEL] and x.dtype.name == "f32"
            and set((a["strides"] or (1,))[-2:]) == {1}
            and (set((a["dilations"] or (1,))[-2:]) == {1} or w.rank == 4 and as_int(x.shape[0]) is not None)
            and (a["group"] == 1 or w.rank == 4 and _apart(op) == (1, 1))
            and (as_int(w.shape[1]) or 0) >= MIN_CHANNELS and all(as_int(d) is not None for d in x.shape[1:])
            and (w.rank == 4 or (as_int(w.shape[1]) or 0) % (as_int(x.shape[-1]) or 1) == 0))


def _apart(op: Operation) -> tuple[int, int]:
    """Rows and columns between the taps of the last two axes."""
    rows, columns = (op.attrs["dilations"] or (1, 1))[-2:]
    return rows, columns


def cheapest_tile(op: Operation, target: Target, numerics: str) -> int:
    """Outputs per tile and axis (2 or 4), or 0 for the direct form."""
    w, out = op.inputs[1], op.output
    assert w is not None
    n, *size = (estimate(out.shape[axis]) for axis in (0, -3, -2))
    o, c = as_int(w.shape[0]) or 0, as_int(w.shape[1]) or 0
    if w.rank == 5:  # planes count as images, those of a window as channels
        n, c = n * estimate(out.shape[2]), c * (as_int(w.shape[2]) or 1)
    best = (roofline(2.0 * n * o * c * KERNEL**2 * math.prod(size), target, memory_bytes=4.0 * o * c * KERNEL**2), 0)
    for m in (2,) if numerics == "strict" else (2, 4):
        points = (m + KERNEL - 1)**2
        tiles = n * math.prod(d * _tiles(s, d, m) for s, d in zip(size, _apart(op), strict=True))
        moved = 2 * 4.0 * points * tiles * (c * op.attrs["group"] + o)
        cost = roofline(2.0 * points * tiles * o * c, target, cached_bytes=moved, memory_bytes=4.0 * points * o * c)
        best = min(best, (cost, m))
    return best[1]


def _tiles(size: int, apart: int, m: int) -> int:
    """Tiles of m outputs along an axis, in each of its `apart` images."""
    return -(-size // (apart * m))


def _winograd(op: Operation, m: int, b: GraphBuilder) -> Value:
    x, w, y = op.inputs[0], op.inputs[1], op.output
    assert x is not None and w is not None and w.data is not None
    rank, apart = w.rank - 2, _apart(op)
    size = [as_int(y.shape[axis]) or 0 for axis in (-3, -2)]
    pads = op.attrs["pads"]
    needed = [(_tiles(s, d, m) * m + KERNEL - 1) * d for s, d in zip(size, apart, strict=True)]
    have = [(as_int(x.shape[axis]) or 0) + pads[axis + 1 + rank] for axis in (-3, -2)]
    before = (0, 0, *pads[:rank], 0)
    after = (0, 0, *pads[rank:-2], *[n - h for n, h in zip(needed, have, strict=True)], 0)
    if any(before) or any(after):
        x = b.add("pad", [x], {"before": before, "after": after, "value": 0.0}, name=f"{x.name}_tiles")
    u = b.constant(transform_weights(w.data, m, op.attrs["group"]), name=f"{w.name}_winograd{m}")
    attrs: dict[str, Any] = {"m": m, "height": -(-size[0] // apart[0]), "width": -(-size[1] // apart[1])}
    if rank == 3:
        attrs["planes"] = (as_int(w.shape[2]) or 1, (op.attrs["dilations"] or (1,))[0], (op.attrs["strides"] or (1,))[0])
    if apart == (1, 1):
        return b.add("winograd_conv", [x, u], attrs, name=y.name, loc=op.loc)
    made = b.add("winograd_conv", [_to_images(x, apart, b), u], attrs, name=f"{y.name}_images", loc=op.loc)
    return b.slice(_from_images(made, apart, b), {2: (0, size[0], 1), 3: (0, size[1], 1)}, name=y.name)


def _to_images(x: Value, apart: tuple[int, int], b: GraphBuilder) -> Value:
    """[N, C/b, H·p, W·q, b] → [N·p·q, C/b, H, W, b]: every p-th row and q-th column is an image."""
    (n, c, h, w, block), (p, q) = x.type.sizes(), apart
    x = b.add("transpose", [b.reshape(x, (n, c, h // p, p, w // q, q, block))], {"perm": (0, 3, 5, 1, 2, 4, 6)})
    return b.reshape(x, (n * p * q, c, h // p, w // q, block), name=f"{x.name}_images")


def _from_images(x: Value, apart: tuple[int, int], b: GraphBuilder) -> Value:
    """[N·p·q, C/b, H, W, b] → [N, C/b, H·p, W·q, b]."""
    (n, c, h, w, block), (p, q) = x.type.sizes(), apart
    n //= p * q
    x = b.add("transpose", [b.reshape(x, (n, p, q, c, h, w, block))], {"perm": (0, 3, 4, 1, 5, 2, 6)})
    return b.reshape(x, (n, c, h * p, w * q, block))
