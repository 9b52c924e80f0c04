"""Help for the shape and type rules of operators: dimension arithmetic, broadcasting, known elements, error messages.

Dimensions that are not known to differ (two symbols, a symbol and a number above 1) are taken to be equal, and noted as such
in the operation (`Operation.assumed`, of which `assumed.py` makes checks of the run); only what is known to be wrong is an
error here.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from tilewright.core.dtype import DType, boolean, i64
from tilewright.core.errors import UserError
from tilewright.graph.ir import Assumed, Operation, Relation, TensorType, Value
from tilewright.loop.bounds import prove
from tilewright.loop.ir import Const, Expr, IntoExpr, Var, as_int, const, expr
from tilewright.loop.simplify import simplify
from tilewright.loop.substitute import free_vars

Shape = tuple[Expr, ...]
Array = np.ndarray[Any, Any]

MAX_ELEMENTS = 256
"""Integer tensors of at most this many elements carry their elements as expressions."""


# ---- dimensions ------------------------------------------------------------------------------------------------------
def dim(value: IntoExpr) -> Expr:
    """A dimension in its simplest form; symbols stand for sizes, which are not negative and lie in their spans."""
    e = expr(value)
    return e if isinstance(e, Const | Var) else simplify(e, {v: (0, None) for v in free_vars(e) if v.span is None})


def is_natural(e: Expr) -> bool:
    """Whether an expression of sizes is known not to be negative."""
    return prove(const(0) <= e, {v: (0, None) for v in free_vars(e) if v.span is None})


def dims(values: Iterable[IntoExpr]) -> Shape:
    return tuple([dim(v) for v in values])


def same(a: IntoExpr, b: IntoExpr) -> bool | None:
    """Whether two dimensions are equal: True or False where that is known, else None."""
    a, b = expr(a), expr(b)
    if a == b:
        return True
    x, y = as_int(a), as_int(b)
    if x is not None and y is not None:
        return x == y
    d = as_int(dim(a - b))
    return None if d is None else d == 0


def is_one(d: Expr) -> bool:
    return as_int(d) == 1


def product(values: Iterable[IntoExpr]) -> Expr:
    out: Expr = const(1)
    for v in values:
        out = out * v
    return dim(out)


def ceil_div(a: IntoExpr, b: int) -> Expr:
    return dim((expr(a) + (b - 1)) // b)


# ---- operands --------------------------------------------------------------------------------------------------------
def operand(op: Operation, k: int) -> Value:
    """Input `k`, which must be given."""
    if k >= len(op.inputs) or op.inputs[k] is None:
        raise UserError("operand-missing", f"{op.op} needs its input {k}")
    return op.inputs[k]  # type: ignore[return-value]


def optional(op: Operation, k: int) -> Value | None:
    return op.inputs[k] if k < len(op.inputs) else None


def operands(op: Operation, count: int) -> tuple[Value, ...]:
    """Exactly `count` inputs, all given."""
    if len(op.inputs) != count:
        raise UserError("operand-count", f"{op.op} takes {count} inputs, {len(op.inputs)} were given")
    return tuple([operand(op, k) for k in range(count)])


def show(shape: Sequence[Expr]) -> str:
    return f"[{', '.join(map(repr, shape))}]"


# ---- checks ----------------------------------------------------------------------------------------------------------
def expect(ok: bool, code: str, message: Callable[[], str] | str, hint: str = "") -> None:
    if not ok:
        raise UserError(code, message if isinstance(message, str) else message(), hint=hint)


def expect_rank(op: Operation, v: Value, at_least: int, at_most: int | None = None) -> None:
    most = at_least if at_most is None else at_most
    if not at_least <= v.rank <= most:
        wanted = f"{at_least}" if most == at_least else f"{at_least} or more" if most > 99 else f"{at_least} to {most}"
        raise UserError("rank-mismatch", f"{op.op} expects a tensor of rank {wanted}, "
                        f"%{v.name} has the shape {show(v.shape)}")


def expect_dtype(op: Operation, v: Value, ok: bool, wanted: str) -> None:
    if not ok:
        raise UserError("dtype-mismatch", f"{op.op} expects {wanted}, %{v.name} is {v.dtype}")


def expect_same_dtype(op: Operation, *values: Value) -> DType:
    """The element type that all operands share."""
    for v in values[1:]:
        if v.dtype is not values[0].dtype:
            raise UserError("dtype-mismatch", f"{op.op} expects one element type, "
                            f"%{values[0].name} is {values[0].dtype} and %{v.name} is {v.dtype}", hint="insert a cast")
    return values[0].dtype


def expect_same_dim(op: Operation, a: Expr, b: Expr, what: str) -> Expr:
    """One of two dimensions that must be equal (the number, if one of them is)."""
    known = same(a, b)
    if known is False:
        raise UserError("shape-mismatch", f"{op.op}: {what}: {a!r} and {b!r} differ")
    if known is None:
        op.assumed.append(Assumed(a, b, what))
    return b if as_int(b) is not None else a


def expect_at_most(op: Operation, a: Expr, b: Expr, what: str) -> None:
    """A dimension must be no larger than another."""
    x, y = as_int(a), as_int(b)
    if x is not None and y is not None:
        expect(x <= y, "shape-mismatch", f"{op.op}: {what}: {x} is more than {y}")
    elif same(a, b) is not True and not is_natural(dim(b - a)):
        op.assumed.append(Assumed(a, b, what, "at most"))


def expect_expands(op: Operation, shape: Shape, to: Shape, what: str, relation: Relation = "broadcast") -> None:
    """A shape must be broadcast to another that is given (NumPy's rule)."""
    fits = len(shape) <= len(to)
    for k, (d, n) in enumerate(zip(reversed(shape), reversed(to), strict=False)):
        known = True if is_one(d) else same(d, n)
        fits = fits and known is not False
        if known is None:
            op.assumed.append(Assumed(d, n, f"{what}, axis {-1 - k}", relation))
    expect(fits, "shape-mismatch", lambda: f"{op.op}: {what} {show(shape)} does not expand to {show(to)}")


def axis_of(op: Operation, axis: int, rank: int) -> int:
    """`axis` counted from the front; it may be given from the back."""
    if not -rank <= axis < rank:
        raise UserError("axis-out-of-range", f"{op.op}: axis {axis} of a tensor of rank {rank}",
                        hint=f"axes are {-rank} to {rank - 1}")
    return axis % rank


def axes_of(op: Operation, axes: Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Sorted axes counted from the front; None means all."""
    if axes is None:
        return tuple(range(rank))
    out = tuple(sorted(axis_of(op, a, rank) for a in axes))
    if len(set(out)) != len(out):
        raise UserError("axis-out-of-range", f"{op.op}: an axis is given twice in {tuple(axes)}")
    return out


# ---- broadcasting ----------------------------------------------------------------------------------------------------
def broadcast(op: Operation, *shapes: Shape) -> Shape:
    """The shape to which the operands are broadcast (NumPy's rule)."""
    rank = max(len(s) for s in shapes)
    out: list[Expr] = []
    for axis in range(rank):
        here = [s[axis - rank + len(s)] for s in shapes if axis - rank + len(s) >= 0]
        best = here[0]
        for d in here[1:]:
            if is_one(best):
                best = d
            elif not is_one(d):
                known = same(best, d)
                if known is None:
                    op.assumed.append(Assumed(best, d, f"axis {axis - rank}", "broadcast"))
                if known is False:
                    raise UserError("shape-mismatch", f"{op.op}: the shapes {' and '.join(map(show, shapes))} do not "
                                    f"broadcast: {best!r} against {d!r} at axis {axis - rank}")
                if as_int(d) is not None:
                    best = d
        out.append(best)
    return tuple(out)


# ---- known elements --------------------------------------------------------------------------------------------------
def elements_of(v: Value | None) -> tuple[Expr, ...] | None:
    """The row-major elements of a small tensor where they are known: integers as i64 expressions whatever their width,
    booleans as boolean ones, floats as constants of their type. None where unknown or large."""
    if v is None:
        return None
    if v.elements is not None:
        return v.elements
    if v.data is None or v.data.size > MAX_ELEMENTS:
        return None
    t = i64 if v.dtype.is_int else v.dtype
    return tuple([const(x, t) for x in v.data.ravel().tolist()])


def constant_of(v: Value | None) -> Array | None:
    """The value as an array where it is a constant or all its elements are known numbers."""
    if v is None:
        return None
    if v.data is not None:
        return v.data
    if v.elements is None or not all(isinstance(e, Const) for e in v.elements):
        return None
    flat = np.array([e.value for e in v.elements], dtype=v.dtype.numpy())  # type: ignore[attr-defined]
    return flat.reshape(v.type.sizes())


def element_count(t: TensorType) -> int | None:
    """How many elements a static type has, else None."""
    n = 1
    for d in t.shape:
        size = as_int(d)
        if size is None:
            return None
        n *= size
    return n


def is_small_int(t: TensorType) -> bool:
    """Whether values of this type may carry their elements."""
    if not (t.dtype.is_int or t.dtype is boolean):
        return False
    n = element_count(t)
    return n is not None and n <= MAX_ELEMENTS


def element_grid(v: Value) -> Any:
    """The known elements of a value as a NumPy object array of its shape, so that NumPy's own indexing moves them."""
    found = elements_of(v)
    if found is None:
        return None
    grid = np.empty(len(found), dtype=object)
    grid[:] = found
    return grid.reshape(v.type.sizes())


def grid_elements(grid: Any) -> tuple[Expr, ...]:
    return tuple(np.asarray(grid, dtype=object).ravel().tolist())
