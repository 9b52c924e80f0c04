"""The expressions of the kernel language: Python's syntax trees become loop IR, with errors that point at the user's line.

In: an expression of a kernel's source, the names that it may see, and what is known at its place. Out: an expression, or
UserError "kernel-syntax".
"""
from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from tilewright.core.dtype import DType, boolean, f32, i64
from tilewright.core.errors import InternalError, UserError
from tilewright.loop import intrinsics
from tilewright.loop.bounds import Knowledge
from tilewright.loop.ir import ZERO, Buffer, Call, Expr, Guard, Le, Load, Lt, Max, Min, Not, Select, Var, const

Number = Expr | int | float | bool
"""A value: Python's own numbers take the dtype of what they meet."""

_INFIX = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.BitAnd: "&",
          ast.BitOr: "|", ast.LShift: "shift_left", ast.RShift: "shift_right", ast.BitXor: "bit_xor"}
_FOLD: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "//": operator.floordiv,
    "%": operator.mod}
_COMPARE = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}


@dataclass
class Source:
    """The text of a function, and where it is."""
    text: str
    file: str
    first_line: int

    def wrong(self, at: ast.AST, what: str, hint: str = "") -> NoReturn:
        """Raise an error that shows the user's line."""
        row, column = getattr(at, "lineno", 1), getattr(at, "col_offset", 0)
        line = self.text.splitlines()[row - 1]
        length = max(1, (getattr(at, "end_col_offset", column + 1) if getattr(at, "end_lineno", row) == row
                         else len(line)) - column)
        where = f"{self.file}:{self.first_line + row - 1}\n    {line}\n    {' ' * column}{'^' * length}"
        raise UserError("kernel-syntax", what, where=where, hint=hint)


@dataclass
class Named:
    """What a local name stands for; `stale` names the buffer that was stored since its value was read from it."""
    value: Number
    reads: frozenset[Buffer]
    stale: str = ""


@dataclass
class Place:
    """Where a statement stands: the loops around it and the conditions that hold."""
    loops: tuple[tuple[Var, Expr], ...] = ()
    conditions: tuple[Expr, ...] = ()
    known: Knowledge = field(default_factory=Knowledge)


class Expressions:
    """What expressions mean at one place of a function."""

    def __init__(self, source: Source, around: Mapping[str, Any]) -> None:
        self.source, self.around = source, around
        self.wrong = source.wrong
        self.names: dict[str, Named | Buffer] = {}
        self.place = Place()

    # ---- what is outside of the function -----------------------------------------------------------------------------
    def element(self, e: ast.expr) -> DType:
        found = self.outside(e)
        found = getattr(found, "dtype", found)
        if not isinstance(found, DType):
            self.wrong(e, f"{ast.unparse(e)} is no element type", "from tilewright.tensor.script import f32, i64, …")
        return found

    def outside(self, e: ast.expr) -> Any:
        """What a name (or module.name) outside of the function stands for; None if there is none."""
        if isinstance(e, ast.Name):
            return self.around.get(e.id)
        if isinstance(e, ast.Attribute) and inspect_module(self.outside(e.value)):
            return getattr(self.outside(e.value), e.attr, None)
        return None

    # ---- expressions -------------------------------------------------------------------------------------------------
    def value(self, e: ast.expr) -> Number:
        match e:
            case ast.Constant(bool() | int() | float() as v):
                return v
            case ast.Name(name):
                return self.named(e, name)
            case ast.Subscript():
                return self.subscript(e)
            case ast.BinOp(a, op, b):
                return self.infix(e, op, self.value(a), self.value(b))
            case ast.UnaryOp(ast.USub(), a):
                x = self.value(a)
                return -x
            case ast.UnaryOp(ast.Not() | ast.Invert(), a):
                return Not(self.truth(a))
            case ast.BoolOp(op, parts):
                whole = self.truth(parts[0])
                for p in parts[1:]:
                    whole = whole & self.truth(p) if isinstance(op, ast.And) else whole | self.truth(p)
                return whole
            case ast.Compare():
                return self.comparison(e)
            case ast.IfExp(test, a, b):
                return self.choice(e, test, a, b)
            case ast.Call():
                return self.call(e)
        v = self.outside(e)
        if isinstance(v, bool | int | float):
            return v
        self.wrong(e, f"{ast.unparse(e)} is not of the kernel language")

    def named(self, e: ast.expr, name: str) -> Number:
        found = self.names.get(name)
        if isinstance(found, Buffer):
            self.wrong(e, f"{name} is a buffer: its elements are {name}[{', '.join('…' * found.rank)}]")
        if found is not None:
            if found.stale:
                self.wrong(e, f"{name} was read from {found.stale}, which has been stored since",
                           "keep the value in memory of the kernel's own: local(f32, 1)")
            return found.value
        v = self.around.get(name)
        if isinstance(v, bool | int | float):
            return v
        self.wrong(e, f"{name} is not defined", "sizes are defined by the parameters' annotations")

    def index(self, e: ast.expr) -> Expr:
        v = self.value(e)
        if isinstance(v, bool | float) or isinstance(v, Expr) and not v.dtype.is_int:
            self.wrong(e, "an index or a size is an integer")
        return const(v) if isinstance(v, int) else v.cast(i64)

    def truth(self, e: ast.expr) -> Expr:
        v = self.value(e)
        if isinstance(v, bool):
            return const(v, boolean)
        if not isinstance(v, Expr) or not v.dtype.is_bool:
            self.wrong(e, "a condition is a comparison or a boolean", "compare with 0: x != 0")
        return v

    def subscript(self, e: ast.Subscript) -> Load:
        b = self.names.get(e.value.id) if isinstance(e.value, ast.Name) else None
        if not isinstance(b, Buffer):
            self.wrong(e.value, f"{ast.unparse(e.value)} is no buffer")
        parts = e.slice.elts if isinstance(e.slice, ast.Tuple) else [e.slice]
        if len(parts) != b.rank:
            self.wrong(e, f"{b.name} has {b.rank} dimension{'s' * (b.rank != 1)}, indexed with {len(parts)}")
        return Load(b, tuple([self.place_in(b, d, p) for d, p in enumerate(parts)]))

    def place_in(self, b: Buffer, d: int, e: ast.expr) -> Expr:
        """An index, proved to be inside of its dimension unless the user answers for it."""
        if isinstance(e, ast.Call) and isinstance(e.func, ast.Name) and e.func.id == "unchecked" and len(e.args) == 1:
            return self.index(e.args[0])
        at = self.index(e)
        for cond, how in ((Le(ZERO, at), "may be below 0"), (Lt(at, b.shape[d]), f"may reach {b.shape[d]!r}, the size of "
                                                             f"dimension {d} of {b.name}")):
            if self.place.known.decide(cond) is not True:
                self.wrong(e, f"this index {how}", "test or clamp it, or answer for it: unchecked(…)")
        return at

    def choice(self, e: ast.expr, test: ast.expr, a: ast.expr, b: ast.expr) -> Number:
        cond = self.truth(test)
        place = self.place
        sides: list[Number] = []
        for holds, side in ((True, a), (False, b)):
            self.place = Place(place.loops, place.conditions, place.known.assuming(cond, holds))
            sides.append(self.value(side))
        self.place = place
        x, y = self.alike(e, *sides)
        return Guard(cond, x, y)

    def comparison(self, e: ast.Compare) -> Expr:
        whole: Expr | None = None
        left = self.value(e.left)
        for op, part in zip(e.ops, e.comparators, strict=True):
            if type(op) not in _COMPARE:
                self.wrong(e, "comparisons are < <= > >= == !=")
            right = self.value(part)
            a, b = self.alike(e, left, right)
            sign = _COMPARE[type(op)]
            one = {"<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b, "==": a.eq(b), "!=": a.ne(b)}[sign]
            whole, left = one if whole is None else whole & one, right
        assert whole is not None
        return whole

    def infix(self, at: ast.AST, op: ast.operator, a: Number, b: Number) -> Number:
        sign = _INFIX.get(type(op))
        if sign is None:
            self.wrong(at, f"there is no operator {type(op).__name__} in the kernel language",
                       "powers are products, or pow(x, y)")
        if not isinstance(a, Expr) and not isinstance(b, Expr):
            if sign in ("/", "//", "%") and b == 0:
                self.wrong(at, "division by zero")
            folded = _FOLD.get(sign)
            if folded is None:
                self.wrong(at, f"{ast.unparse(at)} is not of the kernel language")
            return folded(a, b)  # type: ignore[no-any-return]
        x, y = self.alike(at, a, b)
        if sign in ("&", "|") and not x.dtype.is_bool:
            return Call("bit_and" if sign == "&" else "bit_or", (x, y), x.dtype)
        if sign in ("//", "%") and not x.dtype.is_int:
            self.wrong(at, f"{sign} is of integers, not of {x.dtype}", "floor(a / b)" if sign == "//" else "")
        if sign == "/" and x.dtype.is_int:
            self.wrong(at, f"/ of {x.dtype} is not a whole number", "a // b, or convert first: f32(a) / f32(b)")
        made = _FOLD.get(sign)
        if made is not None:
            return made(x, y)  # type: ignore[no-any-return]
        if sign in ("&", "|"):
            return x & y if sign == "&" else x | y
        return Call(sign, (x, y), x.dtype)

    def call(self, e: ast.Call) -> Number:
        name = e.func.id if isinstance(e.func, ast.Name) else e.func.attr if isinstance(e.func, ast.Attribute) else ""
        if e.keywords:
            self.wrong(e, "functions of the kernel language take no keywords")
        kind = getattr(self.outside(e.func), "dtype", None)
        args = [self.value(a) for a in e.args]
        if isinstance(kind, DType):
            (x,) = args if len(args) == 1 else [self.wrong(e, f"{name} converts one value")]
            return x.cast(kind) if isinstance(x, Expr) else const(x, kind)
        if name in ("min", "max") and len(args) >= 2:
            out = args[0]
            for b in args[1:]:
                x, y = self.alike(e, out, b)
                out = Min(x, y) if name == "min" else Max(x, y)
            return out
        if name == "select" and len(args) == 3:
            cond = self.truth(e.args[0])
            return Select(cond, *self.alike(e, args[1], args[2]))
        if name == "sigmoid" and len(args) == 1:
            x = self.as_expr(args[0])
            return const(1, x) / (const(1, x) + Call("exp", (const(0, x) - x,), x.dtype))
        try:
            record = intrinsics.intrinsic(name)
        except InternalError:
            self.wrong(e, f"there is no function {name or ast.unparse(e.func)}",
                       "min, max, select, element types, and intrinsics such as exp, log, sqrt, erf, tanh, floor, ceil, pow")
        values = [self.as_expr(a) for a in args]
        if len(values) != record.arity or not record.pure:
            self.wrong(e, f"{name} takes {record.arity} argument{'s' * (record.arity != 1)}" if record.pure
                       else f"{name} is not for kernels")
        like = next((v for v, a in zip(values, args, strict=True) if isinstance(a, Expr)), values[0] if values else const(0))
        values = [self.converted(e, a, like.dtype) if not isinstance(a, Expr) else a for a in args]
        for result in (like.dtype, boolean):
            if record.result(tuple([v.dtype for v in values]), result):
                return Call(name, tuple(values), result)
        self.wrong(e, f"{name} is not defined for {', '.join(repr(v.dtype) for v in values)}")

    def as_expr(self, v: Number) -> Expr:
        return v if isinstance(v, Expr) else const(v, boolean if isinstance(v, bool) else i64 if isinstance(v, int) else f32)

    def alike(self, at: ast.AST, a: Number, b: Number) -> tuple[Expr, Expr]:
        """Two operands of one dtype: a plain number takes that of the other."""
        if isinstance(a, Expr) and isinstance(b, Expr):
            if a.dtype is not b.dtype:
                self.wrong(at, f"the two sides are {a.dtype} and {b.dtype}", f"convert one of them: {a.dtype}(…)")
            return a, b
        if isinstance(a, Expr):
            return a, self.converted(at, b, a.dtype)
        if isinstance(b, Expr):
            return self.converted(at, a, b.dtype), b
        return self.as_expr(a), self.as_expr(b)

    def converted(self, at: ast.AST, v: Number, to: DType) -> Expr:
        if isinstance(v, Expr):
            if v.dtype is not to:
                self.wrong(at, f"the value is {v.dtype}, the place {to}", f"convert it: {to}(…)")
            return v
        if isinstance(v, float) and not to.is_float or isinstance(v, bool) != to.is_bool:
            self.wrong(at, f"{v} is no {to}")
        return const(v, to)


def inspect_module(found: Any) -> bool:
    """Whether attributes may be taken of something without running anything: it is a module."""
    return type(found).__name__ == "module"
