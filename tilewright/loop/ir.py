"""The loop IR: scheduled and lowered programs over buffers; also the language of host programs.

Semantics, for every stage and every code generator (`loop/interpret.py` is the executable definition):
- Integers wrap in their width. FloorDiv rounds down and FloorMod takes the sign of the divisor; dividing by zero is
  undefined and must be guarded. Shift counts are in range.
- Floats follow IEEE 754 in the stated order of operations; `a*b + c` may be contracted to a fused multiply-add. Min and
  Max propagate NaN. Casting a float to an integer truncates; out of range is undefined unless a recipe clamps first.
- Expressions are pure except Call to an effectful intrinsic. Operands are evaluated in no particular order.
  Select evaluates both sides (both must be safe); Guard evaluates only the chosen side, so its loads may be out of
  bounds on the other side.
- Loads and stores must be in bounds. A buffer's elements are undefined until written.
- Serial loops run in order; parallel iterations must be independent; vectorized, unrolled and vthread loops mean the
  same as serial ones. So do loops over blockIdx and threadIdx, whose iterations must be independent, too, as long as
  nobody in them calls the intrinsic barrier. With barriers, nested threadIdx loops are threads that run at once: each
  runs up to its next barrier, in any order, and goes on when all have arrived at it; a "shared" buffer is allocated
  around the loops over its threads. A Block means: for the values bound to its iteration variables, if the predicate
  holds, run `init` (when all reduction variables are at their first value) and then `body`.
- A buffer's index of rank k addresses `offset + sum(index[i] * stride[i])` elements of its memory, row major by default.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union

from tilewright.core.dtype import DType, boolean, dtype, f32, handle, i64
from tilewright.core.errors import InternalError
from tilewright.core.node import Node, node

IntoExpr = Union["Expr", "Axis", int, float, bool]


# ---- expressions -------------------------------------------------------------------------------------------------
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


# ---- statements ------------------------------------------------------------------------------------------------------
class Stmt(Node):
    __slots__ = ()


@node
class Store(Stmt):
    buffer: Buffer
    indices: tuple[Expr, ...]
    value: Expr


@node
class Evaluate(Stmt):
    """An effectful call: prefetch, assertion helpers, host calls."""
    value: Expr


@node
class Seq(Stmt):
    stmts: tuple[Stmt, ...]


LoopKind = Literal["serial", "parallel", "vectorized", "unrolled", "vthread",
                   "blockIdx.x", "blockIdx.y", "blockIdx.z", "threadIdx.x", "threadIdx.y", "threadIdx.z"]


@node
class For(Stmt):
    """`for var in start .. start+extent`. `attrs` are (key, value) pairs of plain data for later passes and emission."""
    binders = ("var",)
    var: Var
    start: Expr
    extent: Expr
    body: Stmt
    kind: str = "serial"
    attrs: tuple[tuple[str, Any], ...] = ()


@node
class If(Stmt):
    cond: Expr
    then: Stmt
    otherwise: Stmt | None = None


@node
class While(Stmt):
    """Repeat `body` as long as `cond` (evaluated before each turn) holds."""
    cond: Expr
    body: Stmt


@node
class Let(Stmt):
    binders = ("var",)
    var: Var
    value: Expr
    body: Stmt


@node
class Allocate(Stmt):
    """`buffer` exists within `body`. For scope "arena", `offset` is its planned byte offset."""
    binders = ("buffer",)
    buffer: Buffer
    body: Stmt
    offset: Expr | None = None


@node
class IterVar(Node):
    """An iteration variable of a block: its domain is [0, extent), `kind` "spatial" or "reduce"."""
    binders = ("var",)
    var: Var
    extent: Expr
    kind: str = "spatial"


@node
class Block(Stmt):
    """One compute statement. `bindings[i]` is the value of `iters[i].var` in terms of the loops around the block.

    `name` is unique within a program: it is the block's handle. `init` runs before `body` when every reduction variable
    is at its first value. Instances where `predicate` is false do nothing.
    """
    binders = ("iters",)
    name: str
    iters: tuple[IterVar, ...]
    bindings: tuple[Expr, ...]
    predicate: Expr
    body: Stmt
    init: Stmt | None = None
    attrs: tuple[tuple[str, Any], ...] = ()


@node
class TensorCall(Stmt):
    """One application of the tensor intrinsic `name` (`loop/tensor_intrinsics.py`) to tiles in memory.

    `body` is what it does, as ordinary loops: passes and the interpreter look at it; code generators write the
    intrinsic's instructions instead. `tiles` says where these find their operands, as places that are not read: for each
    operand the first element of its tile, then for each of its dimensions the element one step further (the first again
    in a dimension of one).
    """
    name: str
    tiles: tuple[Load, ...]
    body: Stmt


@node
class ExternCall(Stmt):
    """A call of the C function `symbol`, of which nothing is known but what it may touch (`loop/externs.py`).

    `args` are what it is passed, in order: numbers, which contain no loads, and Loads, which are places that are not read:
    the function gets their addresses. `body` reads and writes, by ordinary loops, all that the function may read and write:
    passes look at it, nobody runs it. With `status` the function returns an int, which ends the run unless it is 0.
    """
    symbol: str
    args: tuple[Expr, ...]
    body: Stmt
    status: bool = False


@node
class Launch(Stmt):
    """Call a program of the module: a kernel from the host, or (`tasks` given) a parallel region's body for 0 … tasks-1.

    `args` are scalars and Addresses, matching the callee's parameters. A region has one parameter before them, the task,
    or two, a range: then it is called for disjoint ranges begin <= task < end that together are all tasks.
    The callee HOST_CALL is a function of the process that runs the program: `args` are its slot and Addresses.
    `grid` makes it the launch of a device's kernel: its blocks along x, y, z, then the threads of a block along x, y, z.
    The kernel's own loops over blockIdx and threadIdx say the same.
    """
    callee: str
    args: tuple[Expr, ...]
    tasks: Expr | None = None
    grid: tuple[Expr, ...] = ()


@node
class Assert(Stmt):
    """Return the error `code` with `message` to the caller of the entry point unless `cond` holds. Each {} of the message
    is one of `values`: up to three i64, which are evaluated in any case."""
    cond: Expr
    code: int
    message: str
    values: tuple[Expr, ...] = ()


# ---- programs --------------------------------------------------------------------------------------------------------
@node
class Program(Node):
    """A function over buffers and scalars: what one fused group computes, or the host's main.

    `params` in ABI order; outputs are the buffers that the body writes. `attrs`: ("noalias", True), ("params", names of
    buffers that hold weights and may be prepacked), …
    """
    binders = ("params",)
    name: str
    params: tuple[Var | Buffer, ...]
    body: Stmt
    attrs: tuple[tuple[str, Any], ...] = ()

    def attr(self, key: str, default: Any = None) -> Any:
        return dict(self.attrs).get(key, default)


@node
class Module(Node):
    """Programs that call each other by name; the unit of code generation."""
    programs: tuple[Program, ...]


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


def seq(*stmts: Stmt | Sequence[Stmt] | None) -> Stmt:
    """The statements in order, nested sequences flattened, None left out."""
    flat: list[Stmt] = []
    for s in stmts:
        for t in ([s] if isinstance(s, Stmt) else s or ()):
            flat.extend(t.stmts if isinstance(t, Seq) else (t,))
    return flat[0] if len(flat) == 1 else Seq(tuple(flat))


TRUE: Expr = Const(True, boolean)
FALSE: Expr = Const(False, boolean)
ZERO: Expr = Const(0, i64)
ONE: Expr = Const(1, i64)
HOST_CALL = "tw_host_call"
