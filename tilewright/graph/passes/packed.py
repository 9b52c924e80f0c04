"""Weights that stay packed, and those that do not.

In: a graph as imported, before constants are folded. Out: the same graph with `unpack_weights` only in front of products
whose kernels expand weights while they stream them, also where the model spells the arithmetic out; elsewhere the expanded
weights are constants: few ones, those that others read too, those with so many scales that little is saved, and all on
devices and with strict numerics.

    matmul(x, (f32(codes) - f32(points)) * scales)      →   matmul(x, unpack_weights(codes, scales, points))
    matmul(x, f16(unpack_weights(codes, scales)))       →   f16(matmul(f32(x), unpack_weights(codes, scales)))
    gather(unpack_weights(codes, scales), i)            →   gather(constant, i)
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilewright.core.dtype import f32
from tilewright.graph import interpret
from tilewright.graph.builder import GraphBuilder, rewrite
from tilewright.graph.infer import constant_of, element_count
from tilewright.graph.ir import Graph, Operation, Value
from tilewright.graph.ops.packed import packed_codes
from tilewright.graph.passes.dce import remove_dead
from tilewright.graph.passes.match import Result, Rule, Walk, apply, map_regions, sizes
from tilewright.graph.registry import Array
from tilewright.target.target import Target

SMALLEST = 1 << 16
"""Weights from which packing pays: fewer are 256 KiB, and stay in the cache between runs."""


def pack_weights(graph: Graph, target: Target, exact: bool = False, smallest: int = SMALLEST) -> Graph:
    """Bring large constant matrices of small integers that are scaled for a product alone into `unpack_weights`."""
    if exact or target.is_gpu:
        return graph

    def large(rule: Rule) -> Rule:
        def checked(op: Operation, w: Walk) -> Result:
            v = op.inputs[1]
            return None if v is None or (element_count(v.type) or 0) < smallest else rule(op, w)
        return checked
    return apply(graph, {"matmul": [large(_scaled_codes), large(_rounded)]})


OFFSETS = {"i2": 2, "u2": 0, "i4": 8, "u4": 0, "i8": 128, "u8": 0}
"""What makes codes of a type positive."""


def _scaled_codes(op: Operation, w: Walk) -> Result:
    """The arithmetic of DequantizeLinear on a constant matrix, per column or in blocks along the summed axis."""
    v, flip = op.inputs[1], op.attrs["transpose_b"]
    if v is None or v.rank != 2 or v.dtype is not f32 or op.inputs[0] is v:
        return None
    read: list[Value] = [v]
    turned = w.producer(v, "transpose")
    if turned is not None and turned.attrs["perm"] == (1, 0):
        read.append(turned.inputs[0])  # type: ignore[arg-type]
        flip = not flip
    shape = sizes(read[-1])
    view = w.producer(read[-1], "reshape")
    if view is not None:
        read.append(view.inputs[0])  # type: ignore[arg-type]
    scaled = w.producer(read[-1], "mul")
    if scaled is None or shape is None or not all(w.lone(r) for r in read):
        return None
    y, points = scaled.inputs[0], None
    shifted = w.producer(y, "sub")
    if shifted is not None:
        y, points = shifted.inputs[0], _evaluated(shifted.inputs[1], w)
    cast = w.producer(y, "cast")
    codes = None if cast is None else cast.inputs[0]
    scales = _evaluated(scaled.inputs[1], w)
    found = _evaluated(codes, w)
    if codes is None or codes.dtype.name not in OFFSETS or found is None or scales is None or (
            shifted is not None and points is None):
        return None
    offset = OFFSETS[codes.dtype.name]
    scales = _by_column(scales, found.shape, shape, flip)
    points = np.full((1, 1), offset) if points is None else _by_column(points + offset, found.shape, shape, flip)
    if scales is None or points is None:
        return None
    whole = found.astype(np.int16).reshape(shape) + offset
    bits, depth = codes.dtype.bits, shape[1 if flip else 0]
    operands = [packed_codes((whole if flip else whole.T).astype(np.uint8), bits), scales.astype(np.float32)]
    point = points.flat[0]
    if not bool((points == point).all()):
        operands.append(points.astype(np.uint8))
    packed = w.b.add("unpack_weights", [w.b.constant(a, v.name) for a in operands],
                     {"bits": bits, "block": depth // scales.shape[1], "depth": depth, "point": float(point)})
    return w.b.add("matmul", [op.inputs[0], packed], {**op.attrs, "transpose_b": False}, name=op.output.name)


def _evaluated(v: Value | None, w: Walk) -> Array | None:
    """A value that is a constant but for views, casts and repetitions."""
    known = constant_of(v)
    op = w.producer(v, "reshape", "transpose", "cast", "gather")
    if known is not None or op is None:
        return known
    arrays = [_evaluated(x, w) for x in op.inputs]
    return None if any(a is None for a in arrays) else interpret.apply(op, arrays)[0]


def _by_column(a: Array, laid: Sequence[int], shape: Sequence[int], flip: bool) -> Array | None:
    """A scale or zero point that broadcasts against codes as [columns, blocks]; None if it is of another form. The codes are
    [depth, columns] (with `flip` [columns, depth]) in `shape`, and have the summed axis in two in `laid` if there are
    blocks."""
    axis = 1 if flip else 0
    if len(laid) == 2:
        laid = (*laid[:axis], 1, *laid[axis:])
    if len(laid) != 3 or laid[axis] * laid[axis + 1] != shape[axis] or laid[0 if flip else 2] != shape[1 - axis]:
        return None
    if a.ndim == 2 and len(a.shape) < len(laid):
        a = a.reshape((*a.shape[:axis], 1, *a.shape[axis:]))
    full = a.reshape((1,) * (3 - a.ndim) + a.shape)
    if full.shape[axis + 1] != 1:
        return None
    blocks = np.broadcast_to(full, tuple(1 if k == axis + 1 else n for k, n in enumerate(laid))).reshape(
        [n for k, n in enumerate(laid) if k != axis + 1])
    return np.ascontiguousarray(blocks if flip else blocks.T)


def _rounded(op: Operation, w: Walk) -> Result:
    """A product of half precision whose weights are expanded: it is summed in f32 anyway, and need not round them."""
    a, cast = op.inputs[0], w.producer(op.inputs[1], "cast")
    packed = None if cast is None else w.producer(cast.inputs[0], "unpack_weights")
    if a is None or packed is None or op.output.dtype.name not in ("f16", "bf16") or op.attrs["transpose_b"]:
        return None
    wide = w.b.add("matmul", [w.b.add("cast", [a], {"to": f32}), packed.output], op.attrs, name=op.output.name)
    return w.b.add("cast", [wide], {"to": op.output.dtype}, name=op.output.name)


def expand_weights(graph: Graph, target: Target, exact: bool = False, smallest: int = SMALLEST) -> Graph:
    """Expand what no product on a CPU streams. `exact`: all of it."""
    graph = map_regions(graph, lambda region: expand_weights(region, target, exact, smallest))
    users, outputs = graph.users(), set(graph.outputs)

    def streamed(op: Operation) -> bool:
        packed = sum(v.data.nbytes for v in op.inputs if v is not None and v.data is not None)
        return (not exact and not target.is_gpu and 2 * packed <= (element_count(op.output.type) or 0) * f32.nbytes
                and op.output not in outputs and are_streamed(op.output, users.get(op.output, []), smallest))

    def rule(op: Operation, b: GraphBuilder) -> Value | None:
        if op.op != "unpack_weights" or streamed(op) or not all(v is None or v.data is not None for v in op.inputs):
            return None
        (array,) = interpret.apply(op, [None if v is None else v.data for v in op.inputs])
        return b.constant(array, op.output.name)
    return remove_dead(rewrite(graph, rule, regions=False))


def are_streamed(weights: Value, readers: Sequence[Operation], smallest: int = SMALLEST) -> bool:
    """Whether weights are worth packing, and only products read them."""
    return (element_count(weights.type) or 0) >= smallest and all(_multiplies(r, weights) for r in readers)


def _multiplies(reader: Operation, weights: Value) -> bool:
    """Whether an operation is a product with these weights on its right."""
    a, w = reader.inputs if reader.op == "matmul" else (None, None)
    return w is weights and a is not weights and not reader.attrs["transpose_b"]
