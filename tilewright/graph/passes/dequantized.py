"""Operators between dequantized operands and quantized results work on the codes themselves (the form that quantizers call
QDQ: DequantizeLinear → operator → QuantizeLinear).

In: a graph as imported, before constants are folded, so that codes, zero points and scales are still told apart. Out: the
same graph in which

    conv((x - zx) * sx, (w - zw) * sw)      is      f32(conv(x - zx, w - zw)) * (sx * sw)      summed in i32; so is matmul
    max_pool((x - z) * s)                   is      (max_pool(x) - z) * s
    round((x - z) * s / s) + z              is      x

for constant weights. The first changes results by less than the rounding of the sum in f32 that it replaces; the others
nothing. What the quantization behind a product does is its epilogue, as any arithmetic.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from tilewright.core.dtype import f32, i8, i32, u8
from tilewright.graph.infer import constant_of
from tilewright.graph.ir import Graph, Operation, Value
from tilewright.graph.passes.match import Result, Rule, Walk, apply
from tilewright.graph.registry import Array
from tilewright.loop.instructions.dot_products import multiplies_bytes
from tilewright.loop.ir import as_int
from tilewright.target.target import Target

LONGEST = (1 << 31) // (255 * 255)
"""Products in a sum that cannot leave i32, whatever the codes are."""
SCALES = (1e-18, 1e18)
"""Scales of which codes' multiples, and two scales' product, neither overflow nor lose digits."""


def dequantized_operands(graph: Graph, target: Target, exact: bool = False) -> Graph:
    """Let products, poolings and quantizations work on codes, on CPUs. `exact`: products round as the graph says; so they do
    where the target multiplies floats as fast."""
    if target.is_gpu:
        return graph
    products = multiplies_bytes(target) and not exact
    return apply(graph, {name: rules for name, rules in _RULES.items() if products or rules != [_product]})


@dataclass(frozen=True)
class _Real:
    """A value that is (codes - point) * scale: codes in bytes, a constant point, a positive constant scale. `fixed`: the
    codes are constant as well."""
    codes: Value
    point: Array | None
    scale: Array
    fixed: bool

    @property
    def is_uniform(self) -> bool:
        """Whether it has one scale and one point."""
        return self.scale.size == 1 and (self.point is None or self.point.size == 1)


def _dequantized(v: Value | None, w: Walk) -> _Real | None:
    """mul(sub(cast(codes), cast(point)), scale), or without the point; also behind a transpose, or a reshape where scale
    and point are numbers."""
    op = w.producer(v, "mul", "reshape", "transpose")
    if op is None or op.output.dtype is not f32:
        return None
    if op.op != "mul":
        real = _dequantized(op.inputs[0], w)
        return None if real is None else _moved(real, op, w)
    y, scale = op.inputs[0], constant_of(op.inputs[1])
    point: Array | None = None
    shift = w.producer(y, "sub")
    if shift is not None:
        y, code = shift.inputs[0], w.producer(shift.inputs[1], "cast")
        point = None if code is None else constant_of(code.inputs[0])
        if point is None or point.dtype not in (np.uint8, np.int8):
            return None
    cast = w.producer(y, "cast")
    codes = None if cast is None else cast.inputs[0]
    if codes is None or codes.dtype not in (u8, i8) or codes.shape != op.output.shape:
        return None
    if scale is None or not scale.size or not bool((scale > SCALES[0]).all() and (scale < SCALES[1]).all()):
        return None
    return _Real(codes, point, scale, codes.is_constant)


def _moved(real: _Real, view: Operation, w: Walk) -> _Real | None:
    """The operand behind a view."""
    if not real.is_uniform and view.op != "transpose":
        return None
    codes = w.b.add(view.op, [real.codes], view.attrs, name=view.output.name)

    def along(a: Array) -> Array:
        full = a.reshape((1,) * (real.codes.rank - a.ndim) + a.shape)
        return full.reshape(()) if full.size == 1 else full.transpose(view.attrs["perm"])
    return _Real(codes, None if real.point is None else along(real.point), along(real.scale), real.fixed)


def _product(op: Operation, w: Walk) -> Result:
    """A product of a dequantized operand that has one scale and of dequantized weights that have one per result channel."""
    conv = op.op == "conv"
    if op.output.dtype is not f32 or op.attrs["out"] is not None or conv and op.attrs["layout"] != "NCHW":
        return None
    weight = _dequantized(op.inputs[1], w)
    x = _dequantized(op.inputs[0], w) if weight is not None and weight.fixed else None
    if x is None or weight is None or x.fixed or not x.is_uniform:
        return None
    summed = [k for k in range(1, weight.codes.rank)] if conv else [-1 if op.attrs["transpose_b"] else -2]
    if prod([as_int(weight.codes.shape[k]) or LONGEST for k in summed]) > LONGEST:
        return None
    scale = weight.scale.reshape((1,) * (weight.codes.rank - weight.scale.ndim) + weight.scale.shape)
    if any(scale.shape[k] != 1 for k in summed) or not conv and scale.size not in (1, max(scale.shape[-2:])):
        return None
    both = x.scale.reshape(()) * (scale.reshape(1, -1, *(1,) * (scale.ndim - 2)) if conv else scale.reshape(-1))
    total = w.b.add(op.op, [_shifted(x, w), _shifted(weight, w)], {**op.attrs, "out": i32}, name=op.output.name)
    real = w.b.add("cast", [total], {"to": f32})
    return w.b.add("mul", [real, w.b.constant(both.astype(np.float32), "scale")], name=op.output.name)


def _shifted(x: _Real, w: Walk) -> Value:
    """Codes less their zero point, in i32."""
    y = w.b.add("cast", [x.codes], {"to": i32})
    return y if x.point is None else w.b.add("sub", [y, w.b.constant(x.point.astype(np.int32), "point")])


def _pool(op: Operation, w: Walk) -> Result:
    """The largest code is the largest number; a window has an element."""
    x = _dequantized(op.inputs[0], w)
    kernel, pads = op.attrs["kernel"], op.attrs["pads"]
    if x is None or x.fixed or not x.is_uniform or op.attrs["layout"] != "NCHW" or op.attrs["ceil_mode"] or any(
            max(pads[k], pads[len(kernel) + k]) >= n for k, n in enumerate(kernel)):
        return None
    if not w.lone(op.inputs[0]):  # type: ignore[arg-type]
        return None
    codes = w.b.add("max_pool", [x.codes], op.attrs, name=op.output.name)
    real = w.b.add("cast", [codes], {"to": f32})
    if x.point is not None:
        real = w.b.add("sub", [real, w.b.add("cast", [w.b.constant(x.point.reshape(()), "point")], {"to": f32})])
    return w.b.add("mul", [real, w.b.constant(x.scale.reshape(()), "scale")], name=op.output.name)


def _quantized(op: Operation, w: Walk) -> Result:
    """cast(clip(add(round(div(x, scale)), point))) of a value that is dequantized with the same scale and point."""
    clip = w.producer(op.inputs[0], "clip")
    if clip is None or op.output.dtype not in (u8, i8) or (clip.attrs["min"], clip.attrs["max"]) != op.output.dtype.range():
        return None
    y = clip.inputs[0]
    add = w.producer(y, "add")
    point: Array | None = None
    if add is not None:
        y, point = add.inputs[0], _constant_cast(add.inputs[1], w)
        if point is None:
            return None
    rounded = w.producer(y, "round")
    quotient = None if rounded is None else w.producer(rounded.inputs[0], "div")
    x = None if quotient is None else _dequantized(quotient.inputs[0], w)
    scale = None if quotient is None else constant_of(quotient.inputs[1])
    if x is None or scale is None or not x.is_uniform or x.codes.dtype is not op.output.dtype or scale.size != 1:
        return None
    same = x.scale.reshape(()) == scale.reshape(()) and _number(x.point) == _number(point)
    return x.codes if same and x.codes.shape == op.output.shape else None


def _constant_cast(v: Value | None, w: Walk) -> Array | None:
    cast = w.producer(v, "cast")
    return constant_of(v if cast is None else cast.inputs[0])


def _number(point: Array | None) -> float:
    """A zero point of one element; NaN, which equals nothing, for others."""
    return 0.0 if point is None else float(point.reshape(())) if point.size == 1 else math.nan


_RULES: dict[str, Sequence[Rule]] = {"conv": [_product], "matmul": [_product], "max_pool": [_pool], "cast": [_quantized]}
