"""ONNX's operators as they were before version 7, where their meaning or the place of an argument has changed since.

Broadcasting was asked for, and one-sided: the second operand's axes stand at `axis` of the first. Statistics, masks and
shapes were attributes. What is not here reads as its newer form does.
"""
from __future__ import annotations

from tilewright.frontend.onnx.ops_math import BINARY
from tilewright.frontend.onnx.ops_resize import upsampled
from tilewright.frontend.onnx.ops_shape import padded
from tilewright.frontend.onnx.ops_train import batch_norm_of, random_dropout
from tilewright.frontend.onnx.table import Context, Function, Result, entry, onnx_op
from tilewright.frontend.onnx.tensors import element_type
from tilewright.graph.infer import is_one
from tilewright.graph.ir import Value


def _placed(c: Context, a: Value, b: Value) -> Value:
    """The second operand with axes of size 1 behind it, so that its first one stands at `axis` of the first operand."""
    axis = c.a("axis")
    if not c.a("broadcast") or axis is None:
        return b
    axis += a.rank if axis < 0 else 0
    after = a.rank - axis - b.rank
    if after < 0:
        raise c.error("onnx-invalid-graph", f"{c.op}: {b.type} does not fit at axis {axis} of {a.type}")
    return c.reshape(b, [*b.shape, *[1] * after])


def _one_sided(op: str) -> Function:
    return lambda c: c.add(op, c.x(0), _placed(c, c.x(0), c.x(1)))


for _name in ("Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Sub", "Xor"):
    entry(_name, _one_sided(BINARY[_name]))


@onnx_op("Pow")
def power(c: Context) -> Result:
    return c.add("pow", c.x(0), _placed(c, c.x(0), c.x(1)))


@onnx_op("PRelu")
def prelu(c: Context) -> Result:
    """One slope for all, or one for each channel."""
    x, slope = c.x(0), c.x(1)
    if slope.rank == 1 and not is_one(slope.shape[0]) and x.rank > 1:
        slope = c.per_channel(slope, x.rank)
    return c.add("prelu", x, slope)


@onnx_op("BatchNormalization")
def batch_norm(c: Context) -> Result:
    """Statistics are the batch's own only in training, whose results have five outputs."""
    return batch_norm_of(c, training=not c.a("is_test") and len(c.outputs) > 1)


@onnx_op("Dropout")
def dropout(c: Context) -> Result:
    if c.a("is_test"):
        return c.x(), c.add("full", shape=c.x().shape, value=1, dtype=c.x().dtype) if c.wants(1) else None
    y, mask = random_dropout(c, c.x(), c.const(c.a("ratio", 0.5), c.x().dtype), None)
    return y, c.cast(mask, c.x().dtype)


@onnx_op("Cast")
def cast_by_name(c: Context) -> Result:
    from onnx import TensorProto
    name = c.a("to")
    if name not in dict(TensorProto.DataType.items()):
        raise c.error("onnx-invalid-graph", f"Cast: there is no element type {name!r}")
    return c.cast(c.x(), element_type(TensorProto.DataType.Value(name), c.loc))


@onnx_op("Concat")
def concat(c: Context) -> Result:
    return c.add("concat", *c.all(), axis=c.a("axis", 1))


@onnx_op("Reshape")
def reshape(c: Context) -> Result:
    x, wanted = c.x(), list(c.a("shape") or ())
    if any(d == 0 and k >= x.rank for k, d in enumerate(wanted)):
        raise c.error("onnx-invalid-graph", f"Reshape: shape {wanted} of {x.type}")
    return c.b.reshape(x, [x.shape[k] if d == 0 else d for k, d in enumerate(wanted)])


@onnx_op("Pad")
def pad(c: Context) -> Result:
    return padded(c, c.a("paddings"), c.a("value", 0.0), range(c.x().rank))


@onnx_op("Tile")
def tile(c: Context) -> Result:
    """So many times along one axis; both are numbers."""
    times, axis = c.ints(1)[0], c.ints(2)[0]
    return c.add("tile", c.x(), repeats=[times if k == axis else 1 for k in range(c.x().rank)])


@onnx_op("Upsample")
def upsample(c: Context) -> Result:
    return upsampled(c, c.x(), [1.0, 1.0, c.a("height_scale"), c.a("width_scale")])
