"""Steps of random graphs that move elements: views, pieces and joins, indices, shapes as values, generators of values."""
from __future__ import annotations

import numpy as np
from onnx import numpy_helper

from tests.random_graph import Dim, Graph, Unfit, Value, element_type, is_number
from tests.random_operators import broadcast, step


def movable(g: Graph, lowest: int = 1) -> Value:
    return g.pick(lambda v: v.rank >= lowest)


def replaced(v: Value, axis: int, d: Dim) -> tuple[Dim, ...]:
    return (*v.shape[:axis], d, *v.shape[axis + 1:])


@step(3)
def reshape(g: Graph) -> None:
    """Numbers are regrouped; symbols stay, as 0 or behind -1 or by way of Shape."""
    v = movable(g)
    symbols = [k for k, d in enumerate(v.shape) if not is_number(d)]
    match g.rng.randrange(4):
        case 0 if not symbols:
            n, new = v.size(0), []
            for _ in range(g.rng.randrange(4)):
                new.append(g.rng.choice([d for d in (1, 2, 3, 4, 5, 6, 8) if n % d == 0]))
                n //= new[-1]
            to = [*new, n]
            hidden = g.rng.randrange(len(to))
            given = [-1 if k == hidden and g.rng.random() < 0.4 else d for k, d in enumerate(to)]
            g.add("Reshape", [v, g.weight(np.array(given))], g.dims(*to), v)
        case 1:
            axis = g.rng.randrange(v.rank + 1)
            sides: list[Dim] = [tuple([int(np.prod([d[k] for d in part])) for k in range(g.runs)])
                                for part in (v.shape[:axis], v.shape[axis:])]
            g.add("Flatten", [v], tuple(sides), v, axis=axis)
        case 2:
            whole: Dim = tuple([v.size(k) for k in range(g.runs)])
            g.add("Reshape", [v, g.weight(np.array([-1]))], (whole,), v)
        case _:  # the first size, taken from Shape, and the rest
            first = g.node("Shape", [v], start=0, end=1)[0]
            to_shape = g.node("Concat", [first, g.weight(np.array([-1]))], axis=0)[0]
            rest: Dim = tuple([v.size(k) // v.shape[0][k] for k in range(g.runs)])
            g.add("Reshape", [v, to_shape], (v.shape[0], rest), v)


@step(3)
def axes(g: Graph) -> None:
    v = movable(g)
    match g.rng.randrange(4):
        case 0:
            axis = g.rng.randrange(v.rank + 1)
            g.add("Unsqueeze", [v, g.weight(np.array([g.signed(axis, v.rank + 1)]))],
                  (*v.shape[:axis], g.dim(1), *v.shape[axis:]), v)
        case 1:
            ones = [k for k, d in enumerate(v.shape) if d == g.dim(1)]
            if not ones:
                raise Unfit
            g.add("Squeeze", [v, g.weight(np.array(ones))], tuple([d for d in v.shape if d != g.dim(1)]), v)
        case _:
            perm = g.rng.sample(range(v.rank), v.rank)
            g.add("Transpose", [v], tuple([v.shape[p] for p in perm]), v, perm=perm)


@step(4)
def cut(g: Graph) -> None:
    """Slices with steps of either sign, over symbols too."""
    v = movable(g)
    axis = g.axis(v)
    d = v.shape[axis]
    by, start = g.rng.choice([1, 1, 2, -1, -2]), g.rng.choice([0, 0, 1, -1, -2])
    end = g.rng.choice([1 << 40, -1, 2, 3]) if by > 0 else g.rng.choice([-(1 << 40), 0])
    out = tuple([len(range(n)[start:end:by]) for n in d])
    if min(out) < 1 or set(out) == {1} and not is_number(d):  # of a symbol: not known to be 1, so it does not broadcast
        raise Unfit
    g.add("Slice", [v, *[g.weight(np.array([x])) for x in (start, end, g.signed(axis, v.rank), by)]],
          replaced(v, axis, out), v)


@step(2)
def concat(g: Graph) -> None:
    v = movable(g)
    axis = g.axis(v)
    fits = [w for w in g.values if w.type == v.type and w.rank == v.rank
            and replaced(w, axis, v.shape[axis]) == v.shape][-6:]
    parts = [v, *g.rng.choices(fits, k=g.rng.randrange(1, 3))]
    out: Dim = tuple([sum(p.shape[axis][k] for p in parts) for k in range(g.runs)])
    g.add("Concat", parts, replaced(v, axis, out), v, bound=max(p.bound for p in parts),
          error=max(p.error for p in parts), fraction=max(p.fraction for p in parts), axis=g.signed(axis, v.rank))


@step()
def split(g: Graph) -> None:
    v = movable(g)
    axis = g.axis(v, number=True)
    n = v.shape[axis][0]
    if n < 2:
        raise Unfit
    if g.rng.random() < 0.3 and n % 2 == 0 and g.opset >= 18:
        sizes, outs = [n // 2] * 2, g.node("Split", [v], 2, axis=axis, num_outputs=2)
    else:
        first = g.rng.randrange(1, n)
        sizes = [first, n - first]
        outs = g.node("Split", [v, g.weight(np.array(sizes))], 2, axis=axis)
    for out, size in zip(outs, sizes, strict=True):
        g.made(out, replaced(v, axis, g.dim(size)), v.type, v.bound, v.error, v.fraction)


@step(2)
def pad(g: Graph) -> None:
    v = g.pick(lambda v: v.rank > 0 and v.type in ("float32", "float64", "int32", "int64"))
    mode = g.rng.choice(["constant", "constant", "edge", "reflect"])
    before, after = ([g.rng.randrange(2 if min(d) > 1 or mode != "reflect" else 1) for d in v.shape] for _ in range(2))
    out = tuple([tuple([b + n + a for n in d]) for b, d, a in zip(before, v.shape, after, strict=True)])
    fill = [g.weight(np.array(1, v.type))] if mode == "constant" and g.rng.random() < 0.5 else []
    g.add("Pad", [v, g.weight(np.array([*before, *after])), *fill], out, v, bound=max(v.bound, 1), mode=mode)


@step()
def tile(g: Graph) -> None:
    v = g.pick(lambda v: v.rank > 0 and v.type in ("float32", "int64", "int32", "bool"))
    repeats = [g.rng.choice([1, 1, 2, 3]) for _ in v.shape]
    g.add("Tile", [v, g.weight(np.array(repeats))],
          tuple([tuple([n * r for n in d]) for d, r in zip(v.shape, repeats, strict=True)]), v)


@step(2)
def expand(g: Graph) -> None:
    """To the shape of another value, read at run time, or to a fixed one."""
    v = g.pick(lambda v: v.type in ("float32", "int64", "int32", "bool", "float64"))
    if g.rng.random() < 0.6:
        w = g.rng.choice(g.values[-8:])
        shape = broadcast(v.shape, w.shape)
        if shape is None:
            raise Unfit
        g.add("Expand", [v, g.node("Shape", [w])[0]], shape, v)
    else:
        shape = (g.dim(2), *[g.dim(3) if d == g.dim(1) else d for d in v.shape])
        to = [2, *[3 if d == g.dim(1) else 1 for d in v.shape]]
        g.add("Expand", [v, g.weight(np.array(to))], shape, v)


@step(2)
def triangle(g: Graph) -> None:
    v = g.pick(lambda v: v.rank >= 2 and v.type in ("float32", "float64", "int64", "bool"))
    g.add("Trilu", [v, g.weight(np.int64(g.rng.choice([-1, 0, 1])))], v.shape, v, upper=g.rng.randrange(2))


# ---- indices ---------------------------------------------------------------------------------------------------------
def indices(g: Graph, shape: tuple[int, ...], low: int, high: int, of: tuple[str, ...] = ("int32", "int64")) -> str:
    return g.weight(g.numpy().integers(low, high, shape).astype(g.rng.choice(of)))


def bounded(g: Graph, size: int) -> Value:
    """An integer value of the graph, brought into [0, size)."""
    v = g.pick(lambda v: v.type in ("int32", "int64"))
    return g.add("Mod", [v, g.weight(np.array(size, v.type))], v.shape, v, bound=size)


@step(3)
def gather(g: Graph) -> None:
    v = movable(g)
    axis = g.axis(v)
    n = min(v.shape[axis])
    if g.rng.random() < 0.5:
        at: Value | str = bounded(g, n)
        assert isinstance(at, Value)
        shape = at.shape
    else:
        sizes = tuple([g.rng.choice([1, 2, 3]) for _ in range(g.rng.randrange(3))])
        at, shape = indices(g, sizes, -n, n), g.dims(*sizes)
    g.add("Gather", [v, at], (*v.shape[:axis], *shape, *v.shape[axis + 1:]), v, axis=g.signed(axis, v.rank))


@step()
def gather_elements(g: Graph) -> None:
    v = g.pick(lambda v: v.rank > 0 and all(is_number(d) for d in v.shape))
    axis = g.axis(v)
    sizes = [g.rng.randrange(1, d[0] + 1) for d in v.shape]
    n = v.shape[axis][0]
    g.add("GatherElements", [v, indices(g, tuple(sizes), -n, n)], g.dims(*sizes), v, axis=axis)


@step()
def gather_nd(g: Graph) -> None:
    v = movable(g)
    depth = g.rng.randrange(1, v.rank + 1)
    picks = np.stack([g.numpy().integers(0, min(v.shape[k]), (2, 3)) for k in range(depth)], -1)
    g.add("GatherND", [v, g.weight(picks)], (*g.dims(2, 3), *v.shape[depth:]), v)


@step(2)
def scatter(g: Graph) -> None:
    v = g.pick(lambda v: v.rank > 0 and all(is_number(d) for d in v.shape) and v.type in ("float32", "int64"))
    axis = g.axis(v)
    shape = [d[0] for d in v.shape]
    how = g.rng.choice(["none", "add", "max", "min"])
    if g.rng.random() < 0.5:
        sizes = [g.rng.randrange(1, n + 1) for n in shape]
        rows = np.argsort(g.numpy().random(shape), axis)  # each place once: "none" is defined then
        at = rows[tuple([slice(n) for n in sizes])]
        updates, op, more = g.quarters(tuple(sizes), v.type), "ScatterElements", {"axis": axis}
    else:
        n = g.rng.randrange(1, shape[0] + 1)
        at = g.numpy().permutation(shape[0])[:n, None]
        updates, op, more = g.quarters((n, *shape[1:]), v.type), "ScatterND", {}
    g.add(op, [v, g.weight(at.astype(np.int64)), updates], v.shape, v, bound=v.bound + updates.bound,
          fraction=max(v.fraction, updates.fraction), reduction=how, **more)


@step()
def one_hot(g: Graph) -> None:
    v = g.pick(lambda v: v.type == "int64" and v.rank < 4)
    depth = g.rng.choice([2, 5])
    g.add("OneHot", [v, g.weight(np.int64(depth)), g.weight(np.array([-0.5, 2], np.float32))],
          (*v.shape, g.dim(depth)), v, type="float32", bound=2, fraction=1)


@step()
def found(g: Graph) -> None:
    """How many there are, data decide: outputs only."""
    v = g.pick(lambda v: v.exact and v.rank > 0 and v.type in ("float32", "bool", "int64"))
    match g.rng.randrange(2):
        case 0:
            at = g.node("NonZero", [v])[0]
            g.ends.append((at, 0))
            g.ends.append((g.node("GatherND", [v, g.node("Transpose", [at], perm=[1, 0])[0]])[0], 0))
        case _:
            axis = g.axis(v)
            if not is_number(v.shape[axis]):
                raise Unfit
            keep = g.weight(g.numpy().random(v.shape[axis][0]) < 0.6)
            g.ends.append((g.node("Compress", [v, keep], axis=axis)[0], 0))


# ---- shapes as values, and values from nothing -----------------------------------------------------------------------
@step(2)
def sizes(g: Graph) -> None:
    v = movable(g)
    largest = max(max(d) for d in v.shape)
    match g.rng.randrange(5):
        case 0:
            g.made(g.node("Shape", [v])[0], (g.dim(v.rank),), "int64", largest)
        case 1:
            g.made(g.node("Size", [v])[0], (), "int64", max(v.size(k) for k in range(g.runs)))
        case 2:
            n = g.node("Gather", [g.node("Shape", [v])[0], g.weight(np.int64(0))])[0]
            g.made(g.node("Range", [g.weight(np.int64(0)), n, g.weight(np.int64(1))])[0], (v.shape[0],), "int64", largest)
        case 3:
            fill = g.rng.choice([np.array([0.5], np.float32), np.array([3], np.int64)])
            name = g.node("ConstantOfShape", [g.node("Shape", [v])[0]], value=numpy_helper.from_array(fill))[0]
            g.made(name, v.shape, str(fill.dtype), 3, 0.0, 1 if fill.dtype == np.float32 else 0)
        case _:
            if v.rank != 2 or v.type not in ("float32", "int64"):
                raise Unfit
            g.add("EyeLike", [v], v.shape, v, type="float32", bound=1, error=0.0, fraction=0, k=g.rng.choice([-1, 0, 1]),
                  dtype=element_type("float32"))


@step()
def sequence(g: Graph) -> None:
    """Lists whose lengths are known: made, changed, joined."""
    v = g.pick(lambda v: v.rank > 0 and v.type in ("float32", "int64"))
    axis = g.axis(v)
    some = g.node("SequenceConstruct", [v, v])[0]
    match g.rng.randrange(3):
        case 0:
            at = g.weight(np.int64(g.rng.choice([0, 1, -1])))
            g.add("SequenceAt", [some, at], v.shape, v)
        case 1:
            more = g.node("SequenceInsert", [some, v, g.weight(np.int64(1))])[0]
            g.add("ConcatFromSequence", [more], replaced(v, axis, tuple([3 * n for n in v.shape[axis]])), v, axis=axis)
        case _:
            g.add("ConcatFromSequence", [some], (*v.shape[:axis], g.dim(2), *v.shape[axis:]), v, axis=axis, new_axis=1)


@step()
def reverse(g: Graph) -> None:
    v = g.pick(lambda v: v.rank >= 2 and v.type in ("float32", "int64") and is_number(v.shape[0]))
    batch, time = v.shape[0][0], min(v.shape[1])
    lengths = g.weight(g.numpy().integers(1, time + 1, batch))
    g.add("ReverseSequence", [v, lengths], v.shape, v, batch_axis=0, time_axis=1)
