"""The algebra of views: reshape, transpose, expand, slice, pad and concat that do nothing or that merge with a neighbour.

In: any Graph. Out: the same graph where chains of views are as short as they can be, gathers at constant places are
slices, and slices stand behind reshapes (a reshape of stored memory costs nothing, a slice folds into its readers).
"""
from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import prod

from tilewright.graph.infer import constant_of, is_one
from tilewright.graph.ir import Graph, Operation, Value
from tilewright.graph.ops.view import aligned_groups
from tilewright.graph.passes.match import Result, Rule, Walk, apply, same_shape
from tilewright.loop.ir import Expr, as_int, const


def simplify_views(graph: Graph) -> Graph:
    """Merge and drop views."""
    return apply(graph, _RULES)


def _reshape(op: Operation, w: Walk) -> Result:
    """To the same shape: nothing. Of a reshape: one."""
    x = op.inputs[0]
    assert x is not None
    if same_shape(x, op.output):
        return x
    inner = w.producer(x, "reshape")
    return None if inner is None else w.b.add("reshape", inner.inputs, {"shape": op.output.shape}, name=op.output.name)


def _reshape_of_slice(op: Operation, w: Walk) -> Result:
    """reshape(slice(x)) → slice(reshape(x)), where the reshape keeps or splits each axis that is cut."""
    inner = w.producer(op.inputs[0], "slice")
    if inner is None or inner.inputs[0] is None:
        return None
    x, cut, out = inner.inputs[0], inner.attrs, op.output.shape
    if any(s != 1 for s in cut["steps"]) or any(as_int(d) == 0 for d in inner.output.shape):
        return None
    shape: list[Expr] = []
    first: list[int] = []
    for src, dst in aligned_groups(inner.output.shape, out):
        if all(x.shape[k] == inner.output.shape[k] for k in src):
            shape += [out[k] for k in dst]
            first += [0] * len(dst)
            continue
        numbers = [[as_int(d[k]) for k in axes] for d, axes in
                   ((x.shape, src), (inner.output.shape, src), (cut["starts"], src), (out, dst))]
        whole, part, starts, split = ([n for n in ns if n is not None] for ns in numbers)
        if [len(ns) for ns in (whole, part, starts, split)] != [len(ns) for ns in numbers]:
            return None
        wide = [k for k, (n, m) in enumerate(zip(part, whole, strict=True)) if (n, m) != (1, 1)]
        if len(wide) != 1 or not split:
            return None
        lead = next((k for k, n in enumerate(split) if n != 1), len(split) - 1)
        rest = prod(split[lead + 1:])
        start = starts[wide[0]]
        if start % rest or whole[wide[0]] % rest:
            return None
        shape += [const(whole[wide[0]] // rest if k == lead else n) for k, n in enumerate(split)]
        first += [start // rest if k == lead else 0 for k in range(len(split))]
    y = w.b.add("reshape", [x], {"shape": shape}, name=op.output.name)
    return w.b.add("slice", [y], {"starts": first, "sizes": out}, name=op.output.name)


def _moved_axes(x: Value, y: Value, perm: Sequence[int]) -> list[int] | None:
    """The permutation of x's axes that moves its elements as `perm` does those of its reshape `y`; None if it parts axes
    that the reshape merges or splits."""
    moved: list[int] = []
    groups = {g[1].start: g for g in aligned_groups(x.shape, y.shape)}
    left = list(perm)
    while left:
        group = groups.pop(left[0], None)
        if group is None or not group[0] or left[:len(group[1])] != [*group[1]]:
            return None
        moved += group[0]
        left = left[len(group[1]):]
    return None if groups else moved


def _reshape_of_transpose(op: Operation, w: Walk) -> Result:
    """reshape(transpose(reshape(x))) → reshape(transpose(x)), where the first reshape merges axes and the last parts some of
    them again."""
    inner = w.producer(op.inputs[0], "transpose")
    first = None if inner is None else w.producer(inner.inputs[0], "reshape")
    if inner is None or first is None or first.inputs[0] is None:
        return None
    x = first.inputs[0]
    moved = _moved_axes(x, first.output, inner.attrs["perm"])
    if moved is None or not first.output.rank < min(x.rank, op.output.rank):
        return None
    y = w.b.add("transpose", [x], {"perm": tuple(moved)}, name=op.output.name)
    return w.b.reshape(y, op.output.shape, op.output.name)


def _transpose_of_reshape(op: Operation, w: Walk) -> Result:
    """transpose(reshape(transpose(x))) → reshape(transpose(x)), where the axes that the reshape merges or splits stay
    together."""
    x, perm = op.inputs[0], op.attrs["perm"]
    middle = w.producer(x, "reshape")
    inner = None if middle is None else w.producer(middle.inputs[0], "transpose")
    if x is None or middle is None or inner is None or middle.inputs[0] is None:
        return None
    moved = _moved_axes(middle.inputs[0], x, perm)
    if moved is None:
        return None
    both = tuple([inner.attrs["perm"][p] for p in moved])
    y = w.b.add("transpose", inner.inputs, {"perm": both}, name=op.output.name)
    return w.b.reshape(y, op.output.shape, op.output.name)


def _transpose(op: Operation, w: Walk) -> Result:
    """The identity: nothing. Of a transpose: one. Moving only axes of size 1: a reshape."""
    x, perm = op.inputs[0], op.attrs["perm"]
    assert x is not None
    if perm == tuple(range(len(perm))):
        return x
    inner = w.producer(x, "transpose")
    if inner is not None:
        both = tuple([inner.attrs["perm"][p] for p in perm])
        return w.b.add("transpose", inner.inputs, {"perm": both}, name=op.output.name)
    moved = [p for p in perm if not is_one(x.shape[p])]
    if moved == sorted(moved):
        return w.b.add("reshape", [x], {"shape": op.output.shape}, name=op.output.name)
    return None


def _expand(op: Operation, w: Walk) -> Result:
    """To the same shape: nothing. Of an expand: one. Only adding axes of size 1: a reshape."""
    x = op.inputs[0]
    assert x is not None
    if same_shape(x, op.output):
        return x
    inner = w.producer(x, "expand")
    if inner is not None:
        return w.b.add("expand", inner.inputs, {"shape": op.output.shape}, name=op.output.name)
    extra = op.output.rank - x.rank
    if op.output.shape[extra:] == x.shape and all(is_one(d) for d in op.output.shape[:extra]):
        return w.b.add("reshape", [x], {"shape": op.output.shape}, name=op.output.name)
    return None


def _slice(op: Operation, w: Walk) -> Result:
    """Of everything: nothing. Of a slice: one."""
    x, a = op.inputs[0], op.attrs
    assert x is not None
    if all(s == 1 for s in a["steps"]) and same_shape(x, op.output):
        return x
    inner = w.producer(x, "slice")
    if inner is None:
        return None
    b = inner.attrs
    starts: list[Expr] = [p + q * t for p, q, t in zip(b["starts"], a["starts"], b["steps"], strict=True)]
    steps = [s * t for s, t in zip(b["steps"], a["steps"], strict=True)]
    return w.b.add("slice", inner.inputs, {"starts": starts, "sizes": a["sizes"], "steps": steps}, name=op.output.name)


def _pad(op: Operation, w: Walk) -> Result:
    """Of nothing: nothing. Cropping only: a slice."""
    x, before, after = op.inputs[0], op.attrs["before"], op.attrs["after"]
    assert x is not None
    amounts = [as_int(d) for d in (*before, *after)]
    if any(n is None or n > 0 for n in amounts):
        return None
    if not any(amounts):
        return x
    return w.b.add("slice", [x], {"starts": [0 - d for d in before], "sizes": op.output.shape}, name=op.output.name)


def _concat(op: Operation, w: Walk) -> Result:
    """Of one: nothing. Operands that are empty are left out. Of a concat along the same axis: one."""
    axis = op.attrs["axis"]
    parts: list[Value] = []
    for v in op.inputs:
        assert v is not None
        if as_int(v.shape[axis]) == 0:
            continue
        inner = w.producer(v, "concat")
        if inner is not None and inner.attrs["axis"] == axis and w.lone(v):
            parts += [p for p in inner.inputs if p is not None]
        else:
            parts.append(v)
    if len(parts) == 1:
        return parts[0]
    if not parts or len(parts) == len(op.inputs) and all(a is b for a, b in zip(parts, op.inputs, strict=True)):
        return None
    return w.b.add("concat", parts, {"axis": axis}, name=op.output.name)


def _gather(op: Operation, w: Walk) -> Result:
    """At constant places with a constant step: a slice."""
    x, axis = op.inputs[0], op.attrs["axis"]
    at = constant_of(op.inputs[1])
    extent = None if x is None else as_int(x.shape[axis])
    if x is None or at is None or extent is None or at.size == 0 or at.ndim > 1:
        return None
    places = [int(i) + (extent if i < 0 else 0) for i in at.ravel()]
    step = places[1] - places[0] if len(places) > 1 else 1
    if step == 0 or any(b - a != step for a, b in itertools.pairwise(places)):
        return None
    if not 0 <= min(places) <= max(places) < extent:
        return None
    starts, steps, sized = [const(0)] * x.rank, [1] * x.rank, list(x.shape)
    starts[axis], steps[axis], sized[axis] = const(places[0]), step, const(len(places))
    y = w.b.add("slice", [x], {"starts": starts, "sizes": sized, "steps": steps}, name=op.output.name)
    return y if at.ndim else w.b.reshape(y, op.output.shape, op.output.name)


_RULES: dict[str, Sequence[Rule]] = {
    "reshape": [_reshape, _reshape_of_slice, _reshape_of_transpose], "transpose": [_transpose, _transpose_of_reshape],
    "expand": [_expand], "slice": [_slice], "pad": [_pad], "concat": [_concat], "gather": [_gather]}
