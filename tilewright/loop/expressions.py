"""The expressions of the loop IR, the buffers that they read, and how expressions are built; semantics in `loop/ir.py`."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Union

from tilewright.core.dtype import DType, boolean, dtype, f32, handle, i64
from tilewright.core.errors import InternalError
from tilewright.core.node import Node, node

IntoExpr = Union["Expr", "Axis", int, float, bool]


class Expr(Node):
    """A value: scalar, or a vector of `dtype.lanes`. Python operators build expressions (except == and !=)."""

    __slots__ = ()

    @property
    def dtype(self) -> DType:
        raise InternalError(f"{type(self).__name__} has no dtype")

    def __add__(self, o: IntoExpr) -> Expr: return _binary(Add, self, o)
    def __radd__(self, o: IntoExpr) -> Expr: return _binary(Add, o, self)
    def __sub__(self, o: IntoExpr) -> Expr: return _binary(Sub, self, o)
    def __rsub__(self, o: IntoExpr) -> Expr: return _binary(Sub, o, self)
    def __mul__(self, o: IntoExpr) -> Expr: return _binary(Mul, self, o)
    def __rmul__(self, o: IntoExpr) -> Expr: return _binary(Mul, o, self)
    def __truediv__(self, o: IntoExpr) -> Expr: return _binary(Div, self, o)
    def __rtruediv__(self, o: IntoExpr) -> Expr: return _binary(Div, o, self)
    def __floordiv__(self, o: IntoExpr) -> Expr: return _binary(FloorDiv, self, o)
    def __rfloordiv__(self, o: IntoExpr) -> Expr: return _binary(FloorDiv, o, self)
    def __mod__(self, o: IntoExpr) -> Expr: return _binary(FloorMod, self, o)
    def __rmod__(self, o: IntoExpr) -> Expr: return _binary(FloorMod, o, self)
    def __neg__(self) -> Expr: return Call("neg", (self,), self.dtype) if self.dtype.is_float else const(0, self) - self
    def __lt__(self, o: IntoExpr) -> Expr: return _binary(Lt, self, o)
    def __le__(self, o: IntoExpr) -> Expr: return _binary(Le, self, o)
    def __gt__(self, o: IntoExpr) -> Expr: return _binary(Lt, o, self)
    def __ge__(self, o: IntoExpr) -> Expr: return _binary(Le, o, self)
    def eq(self, o: IntoExpr) -> Expr: return _binary(Eq, self, o)
    def ne(self, o: IntoExpr) -> Expr: return _binary(Ne, self, o)
    def __and__(self, o: IntoExpr) -> Expr: return _binary(And, self, o)
    def __or__(self, o: IntoExpr) -> Expr: return _binary(Or, self, o)
    def __invert__(self) -> Expr: return Not(self)

    def __bool__(self) -> bool:
        raise InternalError(f"the truth of the expression {self} is not known while compiling; use Select or & |")

    def cast(self, to: DType | str) -> Expr:
        to = dtype(to).with_lanes(self.dtype.lanes)
        return self if to is self.dtype else Cast(to, self)


@node
class Const(Expr):
    """A scalar constant: Python int, float or bool according to the dtype."""
    value: Any
    type: DType

    @property
    def dtype(self) -> DType: return self.type


TYPICAL = 128
"""What a size without a hint is taken for."""


@dataclass(frozen=True)
class Span:
    """What is known of a size: its least and greatest value (None: any), what it is a multiple of, and a usual value."""
    least: int = 0
    most: int | None = None
    multiple: int = 1
    hint: int | None = None

    @property
    def usual(self) -> int:
        """The value that decisions about cost assume: the hint, or else TYPICAL, moved into the span."""
        n = TYPICAL if self.hint is None else self.hint
        return max(self.least, n if self.most is None else min(n, self.most))

    def __contains__(self, n: int) -> bool:
        return self.least <= n and (self.most is None or n <= self.most) and n % self.multiple == 0

    def __str__(self) -> str:
        multiple = f"%{self.multiple}" if self.multiple != 1 else ""
        return f"{self.least}..{'' if self.most is None else self.most}{multiple}"


@node
class Var(Expr):
    """A variable, equal only to itself; its name is a hint for printing. `span`: of a symbolic size, what is known of it
    wherever it is used: proofs use its ends, schedule rules its usual value."""
    by_identity = True
    name: str
    type: DType = i64
    span: Span | None = None

    @property
    def dtype(self) -> DType: return self.type


@node
class Binary(Expr):
    """Two operands of one dtype."""
    a: Expr
    b: Expr

    @property
    def dtype(self) -> DType:
        e = self.a
        while isinstance(e, Binary) and not isinstance(e, Compare):  # a loop, since unrolled sums are deep
            e = e.a
        return e.dtype


@node
class Add(Binary): ...
@node
class Sub(Binary): ...
@node
class Mul(Binary): ...
@node
class Div(Binary):
    """Division; of integers it truncates towards zero."""
@node
class FloorDiv(Binary): ...
@node
class FloorMod(Binary): ...
@node
class Min(Binary): ...
@node
class Max(Binary): ...
@node
class And(Binary): ...
@node
class Or(Binary): ...


@node
class Compare(Binary):
    @property
    def dtype(self) -> DType: return boolean.with_lanes(self.a.dtype.lanes)


@node
class Eq(Compare): ...
@node
class Ne(Compare): ...
@node
class Lt(Compare): ...
@node
class Le(Compare): ...


@node
class Not(Expr):
    a: Expr

    @property
    def dtype(self) -> DType: return self.a.dtype


@node
class Select(Expr):
    """`a` where `cond`, else `b`; both sides are evaluated."""
    cond: Expr
    a: Expr
    b: Expr

    @property
    def dtype(self) -> DType: return self.a.dtype


@node
class Guard(Expr):
    """`a` if `cond`, else `b`; only the chosen side is evaluated. `cond` is scalar."""
    cond: Expr
    a: Expr
    b: Expr

    @property
    def dtype(self) -> DType: return self.a.dtype


@node
class Cast(Expr):
    type: DType
    a: Expr

    @property
    def dtype(self) -> DType: return self.type


@node
class Load(Expr):
    """An element of `buffer`; one vector load or gather where an index is a vector."""
    buffer: Buffer
    indices: tuple[Expr, ...]

    @property
    def dtype(self) -> DType:
        return self.buffer.dtype.with_lanes(max([i.dtype.lanes for i in self.indices], default=1))


@node
class Ramp(Expr):
    """The vector base, base + stride, …, base + (lanes-1) * stride."""
    base: Expr
    stride: Expr
    lanes: int

    @property
    def dtype(self) -> DType: return self.base.dtype.with_lanes(self.lanes)


@node
class Broadcast(Expr):
    a: Expr
    lanes: int

    @property
    def dtype(self) -> DType: return self.a.dtype.with_lanes(self.lanes)


@node
class Call(Expr):
    """An intrinsic by name (`loop/intrinsics.py` says what it means): exp, fma, shift_left, prefetch, …"""
    name: str
    args: tuple[Expr, ...]
    type: DType

    @property
    def dtype(self) -> DType: return self.type


@node
class Address(Expr):
    """The address of an element of a buffer; only as an argument of a Call or Launch."""
    buffer: Buffer
    indices: tuple[Expr, ...]

    @property
    def dtype(self) -> DType: return handle


# ---- buffers ---------------------------------------------------------------------------------------------------------
Scope = Literal["global", "local", "shared", "warp", "arena", "const"]


@node
class Buffer(Node):
    """Memory with an element type and a shape of expressions; equal only to itself.

    `scope`: "global" (parameters), "local" (private to a thread; small ones indexed by constants become registers),
    "shared", "warp", "arena" (host programs: at a planned offset of the context's arena), "const" (the weights).
    `strides` in elements, None for row major. `packing` = elements per byte for sub-byte types, 1 otherwise.
    `data` holds the elements of a small compile-time table (row major); loads at constant indices fold.
    """
    by_identity = True
    name: str
    dtype: DType
    shape: tuple[Expr, ...]
    scope: str = "global"
    strides: tuple[Expr, ...] | None = None
    packing: int = 1
    data: tuple[Any, ...] | None = None

    @property
    def rank(self) -> int: return len(self.shape)

    def __getitem__(self, indices: Any) -> Load:
        idx = indices if isinstance(indices, tuple) else (indices,)
        if len(idx) != len(self.shape):
            raise InternalError(f"{self.name} has {len(self.shape)} dimensions, indexed with {len(idx)}")
        return Load(self, tuple([expr(i) for i in idx]))


class Axis:
    """What stands for its variable in arithmetic without being an expression: the compute language's axes."""

    var: Var

    def __add__(self, o: IntoExpr) -> Expr: return self.var + o
    def __radd__(self, o: IntoExpr) -> Expr: return o + self.var
    def __sub__(self, o: IntoExpr) -> Expr: return self.var - o
    def __rsub__(self, o: IntoExpr) -> Expr: return o - self.var
    def __mul__(self, o: IntoExpr) -> Expr: return self.var * o
    def __rmul__(self, o: IntoExpr) -> Expr: return o * self.var
    def __floordiv__(self, o: IntoExpr) -> Expr: return self.var // o
    def __mod__(self, o: IntoExpr) -> Expr: return self.var % o
    def __lt__(self, o: IntoExpr) -> Expr: return self.var < o
    def __le__(self, o: IntoExpr) -> Expr: return self.var <= o
    def __gt__(self, o: IntoExpr) -> Expr: return self.var > o
    def __ge__(self, o: IntoExpr) -> Expr: return self.var >= o
    def eq(self, o: IntoExpr) -> Expr: return self.var.eq(o)
    def ne(self, o: IntoExpr) -> Expr: return self.var.ne(o)
    def cast(self, to: DType | str) -> Expr: return self.var.cast(to)


# ---- building --------------------------------------------------------------------------------------------------------
def const(value: Any, like: Expr | DType = i64) -> Expr:
    """A constant of the dtype (and lanes) of `like`."""
    t = like.dtype if isinstance(like, Expr) else like
    e = t.element
    v = float(value) if e.is_float else bool(value) if e.is_bool else int(value)
    c = Const(v, e)
    return c if t.lanes == 1 else Broadcast(c, t.lanes)


def expr(value: IntoExpr) -> Expr:
    """An expression from itself, an axis or a Python number: bool → bool, int → i64, float → f32."""
    if isinstance(value, Expr):
        return value
    if isinstance(value, Axis):
        return value.var
    if isinstance(value, bool):
        return Const(value, boolean)
    if isinstance(value, int):
        return Const(value, i64)
    if isinstance(value, float):
        return Const(value, f32)
    if hasattr(value, "item"):  # a NumPy scalar
        return expr(value.item())
    raise InternalError(f"{value!r} is no expression")


def as_int(e: Any) -> int | None:
    """The value of a constant integer expression, else None."""
    if isinstance(e, int):
        return e
    return e.value if isinstance(e, Const) and isinstance(e.value, int) else None


def estimate(e: IntoExpr, otherwise: int = 1) -> int:
    """The typical value of an integer expression: its sizes at their usual values, other variables and loads at `otherwise`.
    For decisions about cost, never about correctness."""
    match e:
        case int():
            return e
        case Const(value):
            return int(value)
        case Var():
            return otherwise if e.span is None else e.span.usual
        case Min(a, b) | Max(a, b) | Add(a, b) | Sub(a, b) | Mul(a, b) | FloorDiv(a, b) | FloorMod(a, b):
            x, y = estimate(a, otherwise), estimate(b, otherwise)
            return otherwise if y == 0 and isinstance(e, FloorDiv | FloorMod) else _FOLD_I64[type(e)](x, y)
        case Cast(_, a):
            return estimate(a, otherwise)
    return otherwise


def _binary(cls: Any, a: IntoExpr, b: IntoExpr) -> Expr:
    """Build `cls(a, b)`: numbers take the other side's dtype; scalars are broadcast; constants of integers fold."""
    if not isinstance(a, Expr):
        a = const(a, b) if isinstance(b, Expr) else expr(a)
    if not isinstance(b, Expr):
        b = expr(b) if isinstance(b, Axis) else const(b, a)
    ta, tb = a.dtype, b.dtype
    if ta is not tb:
        if ta.lanes != tb.lanes and 1 in (ta.lanes, tb.lanes):
            if ta.lanes == 1:
                a = Broadcast(a, tb.lanes)
            else:
                b = Broadcast(b, ta.lanes)
        if a.dtype is not b.dtype:
            raise InternalError(f"{cls.__name__} of {ta} and {tb}: cast one of them ({a} and {b})")
    if isinstance(a, Const) and isinstance(b, Const) and ta is i64 and cls in _FOLD_I64:
        return Const(_FOLD_I64[cls](a.value, b.value), i64) if b.value or cls not in (FloorDiv, FloorMod) else cls(a, b)
    if ta is i64:  # the identities that index arithmetic is full of; loop/simplify.py knows the rest
        if cls is Add:
            if isinstance(b, Const) and b.value == 0:
                return a
            if isinstance(a, Const) and a.value == 0:
                return b
        elif cls is Mul:
            if isinstance(b, Const) and b.value == 1:
                return a
            if isinstance(a, Const) and a.value == 1:
                return b
    return cls(a, b)  # type: ignore[no-any-return]


_FOLD_I64: dict[Any, Any] = {
    Add: lambda a, b: a + b, Sub: lambda a, b: a - b, Mul: lambda a, b: a * b, FloorDiv: lambda a, b: a // b,
    FloorMod: lambda a, b: a % b, Min: min, Max: max}


def minimum(a: IntoExpr, b: IntoExpr) -> Expr:
    return _binary(Min, a, b)


def maximum(a: IntoExpr, b: IntoExpr) -> Expr:
    return _binary(Max, a, b)


TRUE: Expr = Const(True, boolean)
FALSE: Expr = Const(False, boolean)
ZERO: Expr = Const(0, i64)
ONE: Expr = Const(1, i64)
