"""ONNX's sequences and optional values. Their structure is known while a model is read, so these are rearrangements of
names: no code is made but where tensors are cut apart or joined. Positions must be known while compiling.
"""
from __future__ import annotations

from tilewright.core.dtype import boolean, i64
from tilewright.frontend.onnx.structure import Series
from tilewright.frontend.onnx.table import Context, Result, onnx_op
from tilewright.graph.ir import Value
from tilewright.loop.ir import as_int

MAY_BE_EMPTY = frozenset({"Optional", "Identity", "If", "Loop", "OptionalGetElement", "SequenceAt"})
"""Operators that may give an empty optional value."""
MAX_ELEMENTS = 10_000
"""A sequence of more elements is refused: each is a value of the graph."""


def _position(c: Context, k: int, count: int, default: int, last: int) -> int:
    """Input `k` as a place among `count` elements, from the back where negative; `last` is the largest."""
    at = default if c.opt(k) is None else int(c.scalar(k))
    place = at + count if at < 0 else at
    if not 0 <= place <= last:
        raise c.error("onnx-invalid-graph", f"{c.op}: the position {at} is outside a sequence of {count}")
    return place


@onnx_op("SequenceConstruct")
def construct(c: Context) -> Result:
    return Series(tuple(c.inputs))


@onnx_op("SequenceEmpty")
def empty(c: Context) -> Result:
    return Series(())


@onnx_op("SequenceInsert")
def insert(c: Context) -> Result:
    items = list(c.series().items)
    if len(items) >= MAX_ELEMENTS:
        raise c.error("onnx-unsupported-variant", f"{c.op}: more than {MAX_ELEMENTS} elements")
    items.insert(_position(c, 2, len(items), len(items), len(items)), c.x(1))
    return Series(tuple(items))


@onnx_op("SequenceErase")
def erase(c: Context) -> Result:
    items = list(c.series().items)
    del items[_position(c, 1, len(items), len(items) - 1, len(items) - 1)]
    return Series(tuple(items))


@onnx_op("SequenceAt")
def at(c: Context) -> Result:
    items = c.series().items
    return items[_position(c, 1, len(items), 0, len(items) - 1)]


@onnx_op("SequenceLength")
def length(c: Context) -> Result:
    return c.const(len(c.series().items), i64)


@onnx_op("SplitToSequence")
def split(c: Context) -> Result:
    """Pieces of given sizes, of one size (the last may be smaller), or of size 1, then also without the axis."""
    x, axis = c.x(), c.a("axis", 0)
    if not -x.rank <= axis < x.rank:
        raise c.error("axis-out-of-range", f"{c.op}: axis {axis} of {x.type}")
    axis %= x.rank
    size = as_int(x.shape[axis])
    if size is None:
        raise c.error("onnx-dynamic-value", f"{c.op}: the size of axis {axis} must be known", "set the symbolic sizes")
    keep = c.opt(1) is not None or c.a("keepdims", 1)
    if c.opt(1) is None:
        sizes = [1] * size
    elif c.x(1).rank == 0:
        step = int(c.scalar(1))
        if step < 1:
            raise c.error("onnx-invalid-graph", f"{c.op}: pieces of {step}")
        sizes = [min(step, size - k) for k in range(0, size, step)]
    else:
        sizes = list(c.ints(1))
        if min(sizes, default=0) < 0 or sum(sizes) != size:
            raise c.error("onnx-invalid-graph", f"{c.op}: the sizes {sizes} do not add up to {size}")
    if len(sizes) > MAX_ELEMENTS:
        raise c.error("onnx-unsupported-variant", f"{c.op}: more than {MAX_ELEMENTS} elements")
    out: list[Value] = []
    start = 0
    for n in sizes:
        piece = c.b.slice(x, {axis: (start, start + n, 1)}, f"{c.outputs[0]}.{len(out)}")
        out.append(piece if keep else c.b.squeeze(piece, [axis]))
        start += n
    if c.is_text(x):
        c.strings |= set(out)
    return Series(tuple(out))


@onnx_op("ConcatFromSequence")
def concat(c: Context) -> Result:
    parts = [v for v in c.series().items if isinstance(v, Value)]
    if not parts or len(parts) != len(c.series().items):
        raise c.error("onnx-invalid-graph", f"{c.op}: tensors to join are needed, one at least")
    axis = c.a("axis")
    if c.a("new_axis", 0):
        if not -parts[0].rank - 1 <= axis <= parts[0].rank:
            raise c.error("axis-out-of-range", f"{c.op}: axis {axis} of {parts[0].type}")
        axis %= parts[0].rank + 1
        parts = [c.b.unsqueeze(v, [axis]) for v in parts]
    out = c.add("concat", *parts, axis=axis)
    return c.text(out) if c.is_text(c.series()) else out


@onnx_op("SequenceMap")
def sequence_map(c: Context) -> Result:
    """The body once for each element; further inputs are sequences of the same length, or tensors that every turn sees."""
    count = len(c.series().items)
    for x in c.inputs[1:]:
        if isinstance(x, Series) and len(x.items) != count:
            raise c.error("onnx-invalid-graph", f"{c.op}: sequences of {count} and {len(x.items)} elements")
    turns = [c.inline("body", [x.items[k] if isinstance(x, Series) else x for x in c.inputs]) for k in range(count)]
    return [Series(tuple([turn[k] for turn in turns])) for k in range(len(c.outputs))]


# ---- optional values -------------------------------------------------------------------------------------------------
@onnx_op("Optional")
def optional(c: Context) -> Result:
    return c.item(0)


@onnx_op("OptionalHasElement")
def has_element(c: Context) -> Result:
    return c.const(c.item(0) is not None, boolean)


@onnx_op("OptionalGetElement")
def get_element(c: Context) -> Result:
    if c.item(0) is None:
        raise c.error("onnx-invalid-graph", f"{c.op}: the optional value is empty")
    return c.item(0)


@onnx_op("Identity")
def identity(c: Context) -> Result:
    return c.item(0)


