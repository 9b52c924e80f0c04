"""ONNX's operators that move elements or make them from sizes: reshape, slice, gather, pad, range and their kin."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilewright.core import strings
from tilewright.core.dtype import i64
from tilewright.frontend.onnx.structure import STRING
from tilewright.frontend.onnx.table import Context, NeedsValue, Result, onnx_op
from tilewright.frontend.onnx.tensors import element_type
from tilewright.graph.infer import broadcast, ceil_div, dim, product
from tilewright.graph.ir import Operation, Value
from tilewright.loop.ir import Expr, as_int, const


# ---- sizes -----------------------------------------------------------------------------------------------------------
@onnx_op("Shape")
def shape(c: Context) -> Result:
    x = c.x()
    start, end, _ = slice(c.a("start", 0), c.a("end")).indices(x.rank)
    whole = c.add("shape_of", x)
    return whole if (start, end) == (0, x.rank) else c.b.slice(whole, {0: (start, max(start, end), 1)})


@onnx_op("Size")
def size(c: Context) -> Result:
    return c.add("reduce_prod", c.add("shape_of", c.x()), keepdims=False)


@onnx_op("Reshape", since=5)
def reshape(c: Context) -> Result:
    """A size of 0 is that of the input's axis, unless allowzero."""
    x = c.x()
    wanted = list(c.dims(1) if c.is_known(1) else _resolved_shape(c))
    for k, d in enumerate(wanted):
        if as_int(d) == 0 and not c.a("allowzero"):
            if k >= x.rank:
                raise c.error("onnx-invalid-graph", f"Reshape: a 0 at place {k} of the shape, the input has rank "
                              f"{x.rank}")
            wanted[k] = x.shape[k]
    return c.b.reshape(x, wanted)


def _resolved_shape(c: Context) -> tuple[Expr, ...]:
    """The sizes of a reshape whose shape is data: what -1 and 0 stand for is computed at run time."""
    x, shape = c.x(), c.cast(c.x(1), i64)
    if as_int(shape.shape[0]) is None:
        raise NeedsValue(f"the rank of the result of {c.op} depends on data", c.x(1), c.loc)
    sizes, total, rank = c.add("shape_of", x), c.const(1, i64), as_int(shape.shape[0]) or 0
    if x.rank:
        total = c.add("reduce_prod", sizes, keepdims=False)
    if not c.a("allowzero") and rank and x.rank:
        same = sizes if x.rank == rank else c.b.slice(sizes, {0: (0, rank, 1)}) if x.rank > rank else c.add(
            "pad", sizes, before=(0,), after=(rank - x.rank,), value=0)
        shape = c.add("where", c.add("equal", shape, c.const(0, i64)), same, shape)
    free = c.add("equal", shape, c.const(-1, i64))
    others = c.add("reduce_prod", c.add("where", free, c.const(1, i64), shape), keepdims=False)
    rest = c.add("div", total, c.add("max", others, c.const(1, i64)))
    return c.b.sizes(c.add("where", free, rest, shape), name=f"{c.outputs[0]}_size")


@onnx_op("Flatten")
def flatten(c: Context) -> Result:
    x, axis = c.x(), c.a("axis", 1)
    axis = axis + x.rank if axis < 0 else axis
    return c.b.reshape(x, [product(x.shape[:axis]), product(x.shape[axis:])])


@onnx_op("Squeeze")
def squeeze(c: Context) -> Result:
    x, axes = c.x(), c.ints_of("axes", 1)
    if axes is None:
        axes = tuple([k for k, d in enumerate(x.shape) if as_int(d) == 1])
    _check_axes(c, axes, x.rank)
    for k in axes:
        if as_int(x.shape[k]) not in (1, None):
            raise c.error("shape-mismatch", f"Squeeze: axis {k} of {x.type} is not of size 1")
    return c.b.squeeze(x, axes)


@onnx_op("Unsqueeze")
def unsqueeze(c: Context) -> Result:
    axes = c.ints_of("axes", 1) or ()
    _check_axes(c, axes, c.x().rank + len(axes))
    return c.b.unsqueeze(c.x(), axes)


def _check_axes(c: Context, axes: Sequence[int], rank: int) -> None:
    if any(not -rank <= a < rank for a in axes) or len({a % rank for a in axes}) != len(axes):
        raise c.error("axis-out-of-range", f"{c.op}: axes {list(axes)} of a tensor of rank {rank}")


def _axis(c: Context, rank: int, default: int = 0) -> int:
    axis = int(c.a("axis", default))
    _check_axes(c, [axis], rank)
    return axis % rank


@onnx_op("Transpose")
def transpose(c: Context) -> Result:
    perm = c.a("perm")
    return c.add("transpose", c.x(), **({"perm": perm} if perm is not None else {}))


@onnx_op("Expand")
def expand(c: Context) -> Result:
    """Both ways: an axis that the target names with 1 keeps the input's size."""
    x = c.x()
    if not c.is_known(1):
        return _expand_to_data(c)
    probe = Operation("Expand", [], {}, [])
    y = c.add("expand", x, shape=broadcast(probe, x.shape, c.dims(1)))
    c.b.operations[-1].assumed += probe.assumed
    return y


def _expand_to_data(c: Context) -> Value:
    """To a shape that is data: where it says 1, the run takes the input's size."""
    x, to = c.x(), c.cast(c.x(1), i64)
    given = as_int(to.shape[0]) if to.rank == 1 else None
    if given is None:
        raise NeedsValue(f"the rank of the result of {c.op} depends on data", c.x(1), c.loc)
    rank = max(given, x.rank)

    def whole(v: Value, count: int) -> Value:
        """With ones in front."""
        return c.add("pad", v, before=(rank - count,), after=(0,), value=1) if count < rank else v
    to, one = whole(to, given), c.const(1, i64)
    sizes = whole(c.add("shape_of", x), x.rank) if x.rank else c.const([1] * rank, i64)
    found = c.b.sizes(c.add("where", c.add("equal", to, one), sizes, to), name=f"{c.outputs[0]}_size")
    full = list(found)
    for k, d in enumerate(x.shape, rank - x.rank):
        if as_int(d) not in (None, 1):
            full[k] = d
    y = c.add("expand", x, shape=full)
    for n, d in zip(found, full, strict=True):
        c.b.assume(n, d, f"the shape that {x.name} is broadcast to")
    return y


@onnx_op("Tile", since=6)
def tile(c: Context) -> Result:
    return c.add("tile", c.x(), repeats=c.dims(1))


@onnx_op("Concat", since=4)
def concat(c: Context) -> Result:
    return c.add("concat", *c.all(), axis=c.a("axis"))


# ---- slices ----------------------------------------------------------------------------------------------------------
@onnx_op("Slice")
def slice_attributes(c: Context) -> Result:
    starts, ends = c.a("starts"), c.a("ends")
    axes = c.a("axes", range(len(starts)))
    return _slice(c, starts, ends, axes, (1,) * len(starts))


@onnx_op("Slice", since=10)
def slice_inputs(c: Context) -> Result:
    count = as_int(c.x(1).shape[0]) if c.x(1).rank == 1 else None
    if count is None:
        raise c.error("onnx-dynamic-value", f"Slice: the starts are {c.x(1).type}, not a vector of known length")
    axes = c.ints(3) if c.opt(3) is not None else tuple(range(count))
    steps = c.ints(4) if c.opt(4) is not None else (1,) * count
    if c.is_known(1) and c.is_known(2):
        return _slice(c, c.dims(1), c.dims(2), axes, steps)
    return _run_time_slice(c, axes, steps)


def _run_time_slice(c: Context, axes: Sequence[int], steps: Sequence[int]) -> Value:
    """Starts and ends that are data: they may count from the back and lie beyond the ends."""
    x, n = c.x(), len(axes)
    _check_axes(c, axes, x.rank)
    if not n == len(steps) == as_int(c.x(1).shape[0]) == as_int(c.x(2).shape[0]):
        raise c.error("onnx-invalid-graph", "Slice: starts, ends, axes and steps differ in number")
    extents = c.add("gather", c.add("shape_of", x), c.const([a % x.rank for a in axes], i64))
    zero = c.const(0, i64)
    low = c.const([0 if s > 0 else -1 for s in steps], i64)
    high = c.add("add", extents, low)

    def place(k: int) -> Value:
        v = c.cast(c.x(k), i64)
        v = c.add("where", c.add("less", v, zero), c.add("add", v, extents), v)
        return c.add("min", c.add("max", v, low), high)
    first, last = place(1), place(2)
    span = c.add("mul", c.add("sub", last, first), c.const([1 if s > 0 else -1 for s in steps], i64))
    by = c.const([abs(s) for s in steps], i64)
    sizes = c.add("div", c.add("add", c.add("max", span, zero), c.add("sub", by, c.const(1, i64))), by)
    name = c.outputs[0]
    starts, counts = c.b.sizes(first, -1, f"{name}_start"), c.b.sizes(sizes, 0, f"{name}_size")
    attrs = [[const(0)] * x.rank, list(x.shape), [const(1)] * x.rank]
    for k, axis in enumerate(axes):
        attrs[0][axis], attrs[1][axis] = starts[k], counts[k]
    by_axis = dict(zip([a % x.rank for a in axes], steps, strict=True))
    return c.add("slice", x, starts=attrs[0], sizes=attrs[1], steps=tuple([by_axis.get(k, 1) for k in range(x.rank)]))


def _slice(c: Context, starts: Sequence[int | Expr], ends: Sequence[int | Expr], axes: Sequence[int],
           steps: Sequence[int]) -> Value:
    _check_axes(c, axes, c.x().rank)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise c.error("onnx-invalid-graph", f"Slice: {len(starts)} starts, {len(ends)} ends, {len(axes)} axes, "
                      f"{len(steps)} steps")
    return c.b.slice(c.x(), {a: (s, e, t) for a, s, e, t in zip(axes, starts, ends, steps, strict=True)})


@onnx_op("Split")
def split(c: Context) -> Result:
    """By given sizes; else into equal parts, of which the last may be smaller from version 18 on."""
    x = c.x()
    axis = _axis(c, x.rank)
    parts = c.dims(1) if c.opt(1) is not None else c.a("split")
    if parts is None:
        count = c.a("num_outputs") or len(c.outputs)
        if count != len(c.outputs):
            raise c.error("onnx-invalid-graph", f"Split: num_outputs is {count}, the node has {len(c.outputs)}")
        each = ceil_div(x.shape[axis], count)
        n = as_int(x.shape[axis])
        if n is not None and n % count and c.since < 18:
            raise c.error("shape-mismatch", f"Split: {n} elements do not fall into {count} equal parts")
        parts = [each] * (count - 1) + [dim(x.shape[axis] - each * (count - 1))]
    if len(parts) != len(c.outputs):
        raise c.error("onnx-invalid-graph", f"Split: {len(parts)} sizes for {len(c.outputs)} outputs")
    out, start = [], const(0)
    for part in parts:
        end = dim(start + part)
        out.append(c.b.slice(x, {axis: (start, end, 1)}))
        start = end
    n, total = as_int(x.shape[axis]), as_int(start)
    if n is not None and total is not None and n != total:
        raise c.error("shape-mismatch", f"Split: the sizes sum to {total}, the axis has {n} elements")
    if out:
        c.b.assume(start, x.shape[axis], f"the sum of the parts of axis {axis} of %{x.name}")
    return out


@onnx_op("Pad", since=2)
def pad_attributes(c: Context) -> Result:
    return padded(c, c.a("pads"), c.a("value", 0.0), range(c.x().rank))


@onnx_op("Pad", since=11)
def pad_inputs(c: Context) -> Result:
    value = c.scalar(2) if c.opt(2) is not None else 0
    axes = c.ints(3) if c.opt(3) is not None else range(c.x().rank)
    return padded(c, c.dims(1, -(1 << 31)), value, axes)


def padded(c: Context, pads: Sequence[int | Expr], value: float, axes: Sequence[int]) -> Value:
    x, n = c.x(), len(axes)
    _check_axes(c, axes, x.rank)
    if len(pads) != 2 * n:
        raise c.error("onnx-invalid-graph", f"Pad: {len(pads)} pads for {n} axes")
    before: list[int | Expr] = [0] * x.rank
    after = list(before)
    for k, axis in enumerate(axes):
        before[axis], after[axis] = pads[k], pads[n + k]
    return c.add("pad", x, before=before, after=after, mode=c.a("mode", "constant"), value=value)


# ---- by index --------------------------------------------------------------------------------------------------------
def _inside(c: Context, axes: Sequence[int]) -> Value:
    """The indices, input 1, checked against the axes of input 0 that they lead into."""
    x, at = c.x(0), c.x(1)
    return c.b.in_bounds(at, [x.shape[k] for k in axes]) if axes and at.dtype.is_int else at


def _indexed(c: Context, first: int = 0) -> range:
    """The axes of input 0 that the last axis of the indices leads into; none where their number is wrong."""
    at = c.x(1)
    count = (as_int(at.shape[-1]) or 0) if at.rank else 0
    return range(first, first + count) if first + count <= c.x(0).rank else range(0)


@onnx_op("Gather")
def gather(c: Context) -> Result:
    return c.add("gather", c.x(0), _inside(c, [_axis(c, c.x(0).rank)]), axis=c.a("axis", 0))


@onnx_op("GatherElements")
def gather_elements(c: Context) -> Result:
    return c.add("gather_elements", c.x(0), _inside(c, [_axis(c, c.x(0).rank)]), axis=c.a("axis", 0))


@onnx_op("GatherND")
def gather_nd(c: Context) -> Result:
    return c.add("gather_nd", c.x(0), _inside(c, _indexed(c, c.a("batch_dims", 0))), batch_dims=c.a("batch_dims", 0))


@onnx_op("Scatter", "ScatterElements")
def scatter_elements(c: Context) -> Result:
    at = _inside(c, [_axis(c, c.x(0).rank)])
    return c.add("scatter_elements", c.x(0), at, c.x(2), axis=c.a("axis", 0), reduction=c.a("reduction", "none"))


@onnx_op("ScatterND")
def scatter_nd(c: Context) -> Result:
    return c.add("scatter_nd", c.x(0), _inside(c, _indexed(c)), c.x(2), reduction=c.a("reduction", "none"))


@onnx_op("Compress")
def compress(c: Context) -> Result:
    x = c.x() if c.a("axis") is not None else c.b.reshape(c.x(), [-1])
    axis, keep = _axis(c, x.rank), c.x(1)
    places = c.add("nonzero", keep)
    return c.add("gather", x, c.b.reshape(places, [places.shape[1]]), axis=axis)


@onnx_op("NonZero")
def nonzero(c: Context) -> Result:
    return c.add("nonzero", c.x())


@onnx_op("OneHot")
def one_hot(c: Context) -> Result:
    """Indices of any number type; depth is one number."""
    (depth,) = c.dims(1) if c.x(1).dtype.is_int else (const(int(c.scalar(1))),)
    return c.add("one_hot", c.cast(c.x(0), i64), c.x(2), depth=depth, axis=c.a("axis", -1))


def _places(c: Context, x: Value, axis: int) -> Value:
    """0, 1, … along an axis of `x`, laid so that it broadcasts with it."""
    size = c.b.squeeze(c.b.slice(c.add("shape_of", x), {0: (axis, axis + 1, 1)}), [0])
    return c.per_channel(c.add("range", c.const(0, i64), size, c.const(1, i64)), x.rank, axis)


@onnx_op("ReverseSequence")
def reverse_sequence(c: Context) -> Result:
    """Along the time axis the first `length` elements of each batch in reverse, the rest as they are."""
    x, batch, time = c.x(), c.a("batch_axis", 1), c.a("time_axis", 0)
    if {batch, time} != {0, 1} or x.rank < 2:
        raise c.error("axis-out-of-range", f"ReverseSequence: batch_axis {batch} and time_axis {time} of {x.type}")
    lengths = c.reshape(c.cast(c.x(1), i64), [d if k == batch else 1 for k, d in enumerate(x.shape)])
    at = _places(c, x, time)
    last = c.b.in_bounds(c.add("sub", lengths, c.const(1, i64)), [x.shape[time]])
    mirrored = c.add("sub", last, at)
    at = c.add("where", c.add("less", at, lengths), mirrored, at)
    return c.add("gather_elements", x, c.add("expand", at, shape=x.shape), axis=time)


@onnx_op("TensorScatter")
def tensor_scatter(c: Context) -> Result:
    """A cache with new elements from `write_indices` on, for each batch; in a circle, or none may reach beyond the end."""
    x, new, first = c.x(0), c.x(1), c.opt(2)
    axis, mode = _axis(c, x.rank, -2), c.a("mode", "linear")
    c.expect(mode in ("linear", "circular") and axis > 0, f"mode {mode!r} along axis {axis}")
    at = _places(c, x, axis)
    size, count = (c.b.squeeze(c.b.slice(c.add("shape_of", v), {0: (axis, axis + 1, 1)}), [0]) for v in (x, new))
    if first is not None:
        first = c.cast(first, i64)
        if mode == "linear":
            behind = c.add("sub", count, c.const(1, i64))  # of the last new element, seen from the first
            first = c.add("sub", c.b.in_bounds(c.add("add", first, behind), [x.shape[axis]], from_front=True), behind)
        at = c.add("sub", at, c.reshape(first, [x.shape[0], *[1] * (x.rank - 1)]))
    if mode == "circular":
        at = c.add("mod", at, size)
    fits = c.add("logical_and", c.add("greater_equal", at, c.const(0, i64)), c.add("less", at, count))
    near = c.add("max", c.add("min", at, c.add("sub", count, c.const(1, i64))), c.const(0, i64))
    shape = [*new.shape[:axis], x.shape[axis], *new.shape[axis + 1:]]
    return c.add("where", fits, c.add("gather_elements", new, c.add("expand", near, shape=shape), axis=axis), x)


# ---- made from sizes -------------------------------------------------------------------------------------------------
@onnx_op("Range")
def range_(c: Context) -> Result:
    return c.add("range", *[c.reshape(v, []) for v in c.all()])


@onnx_op("ConstantOfShape")
def constant_of_shape(c: Context) -> Result:
    value = c.tensor(c.a("value")) if c.a("value") is not None else np.zeros(1, np.float32)
    if value.size != 1:
        raise c.error("onnx-invalid-graph", f"ConstantOfShape: the value has {value.size} elements")
    number = value.reshape(-1)[0].item() if value.dtype.kind in "biuf" else float(value.reshape(-1)[0])
    return c.add("full", shape=c.dims(0), value=number, dtype=value.dtype)


@onnx_op("EyeLike")
def eye_like(c: Context) -> Result:
    """A diagonal from the difference of two triangles."""
    x = c.x()
    number = c.a("dtype")
    to = element_type(number, c.loc) if number is not None else x.dtype
    ones = c.add("full", shape=x.shape, value=1, dtype=to)
    return c.add("trilu", c.add("trilu", ones, k=c.a("k", 0), upper=True), k=c.a("k", 0), upper=False)


@onnx_op("Trilu")
def trilu(c: Context) -> Result:
    return c.add("trilu", c.x(), k=c.ints(1)[0] if c.opt(1) is not None else 0, upper=bool(c.a("upper", 1)))


@onnx_op("Constant")
def constant(c: Context) -> Result:
    """One of several attributes holds the value."""
    given = [k for k in c.given if k != "doc_string"]
    if len(given) != 1:
        raise c.error("onnx-invalid-graph", f"Constant: {len(given)} values")
    value = c.a(given[0])
    if given[0] == "value":
        v = c.b.constant(c.tensor(value), c.outputs[0])
        return c.text(v) if value.data_type == STRING else v
    if given[0] in ("value_string", "value_strings"):
        return c.text(c.b.constant(strings.encode(np.array(value, object)), c.outputs[0]))
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if given[0] not in kinds:
        raise c.error("onnx-unsupported-type", f"Constant: {given[0]} is not supported")
    return c.b.constant(np.array(value, kinds[given[0]]), c.outputs[0])


# ---- channels and space ----------------------------------------------------------------------------------------------
@onnx_op("DepthToSpace")
def depth_to_space(c: Context) -> Result:
    x, b = c.x(), c.a("blocksize")
    n, ch, h, w = x.shape
    inner = dim(ch // (b * b))
    if c.a("mode", "DCR") == "DCR":
        y = c.add("transpose", c.b.reshape(x, [n, b, b, inner, h, w]), perm=(0, 3, 4, 1, 5, 2))
    else:
        y = c.add("transpose", c.b.reshape(x, [n, inner, b, b, h, w]), perm=(0, 1, 4, 2, 5, 3))
    return c.b.reshape(y, [n, inner, h * b, w * b])


@onnx_op("SpaceToDepth")
def space_to_depth(c: Context) -> Result:
    x, b = c.x(), c.a("blocksize")
    n, ch, h, w = x.shape
    perm = (0, 3, 5, 1, 2, 4) if c.a("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    y = c.add("transpose", c.b.reshape(x, [n, ch, h // b, b, w // b, b]), perm=perm)
    return c.b.reshape(y, [n, ch * (b * b), h // b, w // b])
