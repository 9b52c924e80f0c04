"""ONNX's operators that keep some of many, how many being data: NonMaxSuppression and Unique."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tilewright.core.dtype import boolean, i64
from tilewright.frontend.onnx.table import Context, Result, onnx_op
from tilewright.graph.builder import GraphBuilder
from tilewright.graph.infer import product
from tilewright.graph.ir import Graph, Value, tensor_type
from tilewright.loop.ir import ONE


# ---- NonMaxSuppression -----------------------------------------------------------------------------------------------
@dataclass
class _Boxes:
    """Corners (least and greatest along two axes) and areas of boxes, each of one shape."""
    corners: list[Value]
    area: Value

    def each(self, b: GraphBuilder, op: str, *others: Value, **attrs: object) -> _Boxes:
        """All of them after an operation of the graph."""
        *corners, area = [b.add(op, [v, *others], attrs) for v in (*self.corners, self.area)]
        return _Boxes(corners, area)


@onnx_op("NonMaxSuppression")
def non_max_suppression(c: Context) -> Result:
    """Turn by turn, the best box that is left of each class of each batch is taken, and those that overlap it too much
    leave. A turn works on all classes at once, in vectors; boxes [batch, n, 4], scores [batch, class, n] → [selected, 3]."""
    scores, limit, threshold = c.x(1), c.opt(2), c.opt(4)
    if c.x(0).rank != 3 or scores.rank != 3:
        raise c.error("rank-mismatch", f"NonMaxSuppression: boxes are {c.x(0).type}, scores {scores.type}")
    alive = c.add("greater", scores, threshold) if threshold is not None else c.add("equal", scores, scores)
    overlap = c.const(0, scores.dtype) if c.opt(3) is None else c.reshape(c.x(3), [])
    most = c.const(0, i64) if limit is None else c.reshape(c.cast(limit, i64), [])
    going = c.add("reduce_any", alive, keepdims=False)
    turn = _turn(c, _boxes(c), overlap, alive)
    _, picked = c.add_all("loop", most, going, alive, regions=[turn])
    picked = c.add("transpose", picked, perm=(1, 2, 0))
    places = c.add("nonzero", c.add("greater_equal", picked, c.const(0, i64)))
    places = c.add("transpose", places, perm=(1, 0))
    box = c.add("gather_nd", picked, places)
    return c.add("concat", c.b.slice(places, {1: (0, 2, 1)}), c.b.unsqueeze(box, [1]), axis=1)


def _boxes(c: Context) -> _Boxes:
    """The boxes [batch, n], given as two corners or as center and size."""
    boxes = c.x(0)
    first, second, third, fourth = [c.b.squeeze(c.b.slice(boxes, {2: (k, k + 1, 1)}), [2]) for k in range(4)]
    if c.a("center_point_box"):
        halves = [c.add("div", v, c.const(2, boxes.dtype)) for v in (third, fourth)]
        pairs = [(c.add("sub", v, h), c.add("add", v, h)) for v, h in zip((first, second), halves, strict=True)]
    else:
        pairs = [(c.add("min", v, w), c.add("max", v, w)) for v, w in ((first, third), (second, fourth))]
    (x0, x1), (y0, y1) = pairs
    return _Boxes([x0, x1, y0, y1], c.add("mul", c.add("sub", x1, x0), c.add("sub", y1, y0)))


def _turn(c: Context, boxes: _Boxes, overlap: Value, alive: Value) -> Graph:
    """(turn, -, alive) → (whether one is left, alive after the turn, picked): `picked` [batch, class] is -1 where none
    was left. Scores of boxes that are left are raised to the least number, so that each is better than any other."""
    scores = c.x(1)
    b = GraphBuilder(c.b.unique("suppress"), c.b)
    b.loc = c.loc
    b.input("turn", tensor_type(i64, ()))
    b.input("going", tensor_type(boolean, ()))
    left = b.input("left", alive.type)
    zero, nothing = c.const(0, scores.dtype), c.const(float("-inf"), scores.dtype)
    least = c.const(np.finfo(np.float32).min, scores.dtype)
    best = b.add("argmax", [b.add("where", [left, b.add("max", [scores, least]), nothing])], {"axis": 2, "keepdims": False})
    found = b.add("reduce_any", [left], {"axes": (2,), "keepdims": False})
    mine = boxes.each(b, "gather_elements", best, axis=1).each(b, "reshape", shape=(*best.shape, ONE))
    all_ = boxes.each(b, "reshape", shape=(boxes.area.shape[0], ONE, boxes.area.shape[1]))
    sides = [b.add("sub", [b.add("min", [mine.corners[k + 1], all_.corners[k + 1]]),
                           b.add("max", [mine.corners[k], all_.corners[k]])]) for k in (0, 2)]
    shared = b.add("mul", sides)
    union = b.add("sub", [b.add("add", [mine.area, all_.area]), shared])
    real = [b.add("greater", [v, zero]) for v in (*sides, mine.area, all_.area)]
    too_near = b.add("greater", [b.add("div", [shared, union]), overlap])
    for other in real:
        too_near = b.add("logical_and", [too_near, other])
    places = b.add("range", [c.const(0, i64), c.const(0, i64), c.const(1, i64)], {"length": scores.shape[2]})
    taken = b.add("equal", [places, b.unsqueeze(best, [2])])
    gone = b.add("logical_or", [too_near, taken])
    after = b.add("logical_and", [left, b.add("logical_not", [gone])])
    picked = b.add("where", [found, best, c.const(-1, i64)])
    going = b.add("reduce_any", [after], {"keepdims": False})
    return b.finish([going, after, picked])


# ---- Unique ----------------------------------------------------------------------------------------------------------
@onnx_op("Unique")
def unique(c: Context) -> Result:
    """Slices along an axis (or all elements) are sorted; the first of equal ones stands for them. Results: the slices,
    where each stands first, the number of each slice's equal, how many are equal."""
    x = c.x()
    if c.a("axis") is None:
        x, axis = c.b.reshape(x, [product(x.shape)]), 0
    else:
        axis = int(c.a("axis"))
        if not -x.rank <= axis < x.rank:
            raise c.error("axis-out-of-range", f"Unique: axis {axis} of {x.type}")
        axis %= x.rank
    n = x.shape[axis]
    front = c.add("transpose", x, perm=(axis, *[k for k in range(x.rank) if k != axis])) if axis else x
    rows = c.b.reshape(front, [n, product(front.shape[1:])])
    zero, one = c.const(0, i64), c.const(1, i64)
    at = c.add("range", zero, zero, one, length=n)
    nowhere = c.add("full", shape=(n,), value=0, dtype=i64)
    order = c.add("scatter_elements", nowhere, c.add("rank_rows", rows), at, axis=0)
    new = _starts(c, c.add("gather", rows, order, axis=0), at)
    group = c.add("sub", c.add("cumsum", c.cast(new, i64), axis=0), one)  # of each place in the order
    starts = c.add("nonzero", new)
    count = starts.shape[1]
    first = c.add("gather", order, c.b.reshape(starts, [count]), axis=0)
    if not c.a("sorted"):
        is_first = c.add("scatter_elements", nowhere, order, c.cast(new, i64), axis=0)
        numbers = c.add("sub", c.add("cumsum", is_first, axis=0), one)
        group = c.add("gather", c.add("gather", numbers, first, axis=0), group, axis=0)
        places = c.add("nonzero", is_first)
        first = c.b.reshape(places, [places.shape[1]])
        count = places.shape[1]
    result = [c.add("gather", x, first, axis=axis), first,
              c.add("scatter_elements", nowhere, order, group, axis=0),
              c.add("scatter_elements", c.add("full", shape=(count,), value=0, dtype=i64), group,
                    c.add("full", shape=(n,), value=1, dtype=i64), axis=0, reduction="add")]
    return result[:len(c.outputs)]


def _starts(c: Context, rows: Value, at: Value) -> Value:
    """Whether each of sorted rows differs from the one before it; NaNs are equal."""
    before = c.add("gather", rows, c.add("max", c.add("sub", at, c.const(1, i64)), c.const(0, i64)), axis=0)
    differ = c.add("not_equal", rows, before)
    if rows.dtype.is_float:
        numbers = c.add("logical_and", c.add("isnan", rows), c.add("isnan", before))
        differ = c.add("logical_and", differ, c.add("logical_not", numbers))
    return c.add("logical_or", c.add("reduce_any", differ, axes=(1,), keepdims=False),
                 c.add("equal", at, c.const(0, i64)))
