"""From the source of a kernel to its blocks. In: a Python function's text and the names around it. Out: a Program.

Every store becomes a block of its own, whose iteration variables are the loops around it. A loop whose variable picks
the element is spatial; one over which `y[i] = y[i] + …` repeats is a reduction, whose initial value is the store before
it; where neither can be shown, the block is marked to run in the order in which its loops are written, and no schedule
changes that.
"""
from __future__ import annotations

import ast
import operator
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from tilewright.core.dtype import DType, boolean, f32, i64
from tilewright.core.errors import InternalError, UserError
from tilewright.core.node import walk
from tilewright.loop import intrinsics
from tilewright.loop.bounds import Knowledge
from tilewright.loop.ir import (
    ONE,
    TRUE,
    ZERO,
    Add,
    Allocate,
    Block,
    Buffer,
    Call,
    Const,
    Div,
    Expr,
    For,
    Guard,
    If,
    IterVar,
    Le,
    Load,
    Lt,
    Max,
    Min,
    Mul,
    Not,
    Program,
    Select,
    Span,
    Stmt,
    Store,
    Sub,
    Var,
    as_int,
    const,
    seq,
)
from tilewright.loop.simplify import simplify
from tilewright.loop.substitute import substitute
from tilewright.tensor.scatter import ORDERED

Number = Expr | int | float | bool
"""A value: Python's own numbers take the dtype of what they meet."""

_INFIX = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.BitAnd: "&",
          ast.BitOr: "|", ast.LShift: "shift_left", ast.RShift: "shift_right", ast.BitXor: "bit_xor"}
_FOLD: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "//": operator.floordiv,
    "%": operator.mod}
_COMPARE = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
_LOOPS = {"range": "serial", "grid": "serial", "parallel": "parallel", "vectorized": "vectorized", "unrolled": "unrolled"}
_MEMORY = {"local": "local", "shared": "shared"}


@dataclass(frozen=True)
class Annotated:
    """A buffer in a parameter list: an element type, and numbers and names of sizes."""
    dtype: DType
    sizes: tuple[Any, ...]


@dataclass
class Parsed:
    """The program of a function, and the loops of which it asks another kind."""
    program: Program
    kinds: list[tuple[Var, str]]


def parse_function(text: str, file: str, first_line: int, around: Mapping[str, Any]) -> Parsed:
    """Parse the source of one function. `around`: the names that it may see. Raises UserError "kernel-syntax"."""
    source = _Source(textwrap.dedent(text), file, first_line)
    tree = ast.parse(source.text)
    function = tree.body[0] if tree.body else None
    if not isinstance(function, ast.FunctionDef):
        raise UserError("kernel-syntax", "a kernel is an ordinary function", where=f"{file}:{first_line}")
    return _Function(source, around).parse(function)


@dataclass
class _Source:
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
class _Named:
    """What a local name stands for; `stale` names the buffer that was stored since its value was read from it."""
    value: Number
    reads: frozenset[Buffer]
    stale: str = ""


@dataclass
class _Place:
    """Where a statement stands: the loops around it and the conditions that hold."""
    loops: tuple[tuple[Var, Expr], ...] = ()
    conditions: tuple[Expr, ...] = ()
    known: Knowledge = field(default_factory=Knowledge)


class _Function:
    """One walk over a function."""

    def __init__(self, source: _Source, around: Mapping[str, Any]) -> None:
        self.source, self.around = source, around
        self.wrong = source.wrong
        self.names: dict[str, _Named | Buffer] = {}
        self.kinds: list[tuple[Var, str]] = []
        self.block_names: dict[str, int] = {}
        self.place = _Place()

    def parse(self, f: ast.FunctionDef) -> Parsed:
        a = f.args
        if a.vararg or a.kwarg or a.kwonlyargs or a.defaults or a.posonlyargs:
            self.wrong(f, "a kernel has plain parameters only, without defaults and *")
        sizes: dict[str, Var] = {}
        params: list[Var | Buffer] = [self.parameter(p, sizes) for p in a.args]
        for p in params:
            self.define(f, p.name, p if isinstance(p, Buffer) else _Named(p, frozenset()))
        for name, v in sizes.items():
            self.define(f, name, _Named(v, frozenset()))
        body = self.suite(f.body)
        if not any(isinstance(n, Block) for n in walk(body)):
            self.wrong(f, "this kernel stores nothing")
        program = Program(f.name, (*params, *sizes.values()), body, (("noalias", True), ("weights", ())))
        return Parsed(program, self.kinds)

    # ---- parameters and names ----------------------------------------------------------------------------------------
    def parameter(self, p: ast.arg, sizes: dict[str, Var]) -> Var | Buffer:
        e = p.annotation
        if isinstance(e, ast.Constant) and isinstance(e.value, str):
            e = ast.copy_location(ast.parse(e.value, mode="eval").body, e)
        if e is None:
            self.wrong(p, f"the parameter {p.arg} has no type", "write x: f32[\"n\", 4], or a: f32 for a scalar")
        if not isinstance(e, ast.Subscript):
            return Var(p.arg, self.element(e))
        items = e.slice.elts if isinstance(e.slice, ast.Tuple) else [e.slice]
        shape: list[Expr] = []
        for item in items:
            if isinstance(item, ast.Constant) and isinstance(item.value, str) and item.value.isidentifier():
                shape.append(sizes.setdefault(item.value, Var(item.value, i64, Span(1))))
            else:
                n = item.value if isinstance(item, ast.Constant) else self.outside(item)
                if isinstance(n, bool) or not isinstance(n, int) or n < 0:
                    self.wrong(item, "a size is a number from 0, or a name in quotes")
                shape.append(const(n))
        return Buffer(p.arg, self.element(e.value), tuple(shape))

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

    def define(self, at: ast.AST, name: str, what: _Named | Buffer) -> None:
        if name in self.names:
            self.wrong(at, f"{name} has a value already: a name is given one value",
                       f"what changes is kept in memory: {name} = local(f32, 1), then {name}[0] = …")
        self.names[name] = what

    @contextmanager
    def inside(self, place: _Place) -> Iterator[None]:
        """A suite in another place; the names that it defines end with it."""
        before, self.place = self.place, place
        outer = dict(self.names)
        try:
            yield
        finally:
            self.place = before
            self.names = outer

    # ---- statements --------------------------------------------------------------------------------------------------
    def suite(self, stmts: Sequence[ast.stmt]) -> Stmt:
        out: list[Stmt] = []
        for k, s in enumerate(stmts):
            match s:
                case ast.Expr(ast.Constant(str())) | ast.Pass():
                    continue
                case ast.For():
                    out.append(self.loop(s))
                case ast.If():
                    out += self.branch(s)
                case ast.Assign(targets=[ast.Name(name)], value=ast.Call(func=ast.Name(scope)) as call) if scope in _MEMORY:
                    b = self.memory(name, _MEMORY[scope], call)
                    self.define(s, name, b)
                    return seq(*out, Allocate(b, self.suite(stmts[k + 1:])))
                case ast.Assign(targets=[ast.Name(name)], value=value):
                    e = self.value(value)
                    self.define(s, name, _Named(e, _read(e)))
                case ast.Assign(targets=[ast.Subscript() as target], value=value):
                    out.append(self.store(s, target, self.value(value)))
                case ast.AugAssign(target=ast.Subscript() as target, op=op, value=value):
                    old = self.subscript(target)
                    out.append(self.store(s, target, self.infix(s, op, old, self.value(value))))
                case _:
                    self.wrong(s, f"{type(s).__name__.lower()} statements are not of the kernel language",
                               "there are for, if, name = …, and stores y[i] = …")
        return seq(*self.with_initial_values(out))

    def with_initial_values(self, stmts: list[Stmt]) -> list[Stmt]:
        """A store and the reduction behind it that starts from what was stored become one block, as in the compute
        language: schedules then see what is computed."""
        out: list[Stmt] = []
        for s in stmts:
            block, loops = _single_block(s)
            first = out[-1] if out else None
            if isinstance(first, Block) and block is not None and loops and _starts(first, block) \
                    and all(self.place.known.decide(Le(ONE, f.extent)) is True for f in loops):
                renamed: dict[Any, Any] = {a.var: b.var for a, b in zip(first.iters, block.iters, strict=False)}
                whole: Stmt = block.replace(name=first.name, init=substitute(first.body, renamed))
                for f in reversed(loops):
                    whole = f.replace(body=whole)
                out[-1] = whole
            else:
                out.append(s)
        return out

    def memory(self, name: str, scope: str, call: ast.Call) -> Buffer:
        if not call.args or call.keywords:
            self.wrong(call, f"{ast.unparse(call.func)} takes an element type and sizes")
        shape = tuple([self.index(n) for n in call.args[1:]])
        return Buffer(name, self.element(call.args[0]), shape, scope)

    def loop(self, s: ast.For) -> Stmt:
        if s.orelse:
            self.wrong(s, "loops have no else")
        call = s.iter
        name = call.func.id if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) else ""
        if not isinstance(call, ast.Call) or name not in _LOOPS or call.keywords or not call.args:
            self.wrong(call, "a loop is over range(n), range(start, end), grid(n, m, …), parallel(n), vectorized(n) or "
                       "unrolled(n)")
        ends = [self.index(a) for a in call.args]
        targets = s.target.elts if isinstance(s.target, ast.Tuple) else [s.target]
        if name == "grid":
            spans = [(ZERO, e) for e in ends]
        elif len(ends) > 2:
            self.wrong(call, "a loop has no step: multiply the index")
        else:
            spans = [(ends[0] if len(ends) == 2 else ZERO, ends[-1])]
        if len(targets) != len(spans) or not all(isinstance(t, ast.Name) for t in targets):
            self.wrong(s.target, f"{len(spans)} loop variable{'s' * (len(spans) > 1)} here")
        return self.nest(s, [(t.id, *span) for t, span in zip(targets, spans, strict=True) if isinstance(t, ast.Name)],
                         _LOOPS[name])

    def nest(self, s: ast.For, spans: list[tuple[str, Expr, Expr]], kind: str) -> Stmt:
        if not spans:
            return self.suite(s.body)
        (name, start, end), *rest = spans
        extent = simplify(end - start)
        v = Var(name)
        known = self.place.known.with_range(v, 0, extent - 1)
        with self.inside(_Place((*self.place.loops, (v, extent)), self.place.conditions, known)):
            self._stale(stored_names(s.body))
            self.define(s, name, _Named(v + start if as_int(start) != 0 else v, frozenset()))
            body = self.nest(s, rest, kind)
        self._stale(stored_names(s.body))
        if kind != "serial":
            self.kinds.append((v, kind))
        return For(v, ZERO, extent, body)

    def branch(self, s: ast.If) -> list[Stmt]:
        cond = self.truth(s.test)
        out = []
        for holds, stmts in ((True, s.body), (False, s.orelse)):
            if stmts:
                known = self.place.known.assuming(cond, holds)
                c = cond if holds else Not(cond)
                with self.inside(_Place(self.place.loops, (*self.place.conditions, c), known)):
                    out.append(self.suite(stmts))
                self._stale(stored_names(stmts))
        return out

    def _stale(self, stored: set[str]) -> None:
        """Values that were read from what is now stored are not to be used any more."""
        buffers = {b: n for n in stored if isinstance(b := self.names.get(n), Buffer)}
        for name, what in self.names.items():
            if isinstance(what, _Named) and not what.stale:
                for b in what.reads & buffers.keys():
                    self.names[name] = _Named(what.value, what.reads, buffers[b])

    def store(self, s: ast.stmt, target: ast.Subscript, value: Number) -> Block:
        to = self.subscript(target)
        assert isinstance(to, Load)
        body: Stmt = Store(to.buffer, to.indices, self.converted(s, value, to.dtype))
        pure = [c for c in self.place.conditions if not _read(c)]
        for c in reversed([c for c in self.place.conditions if _read(c)]):
            body = If(c, body)
        predicate: Expr = TRUE
        for c in pure:
            predicate = c if predicate is TRUE else predicate & c
        kinds = iteration_kinds(to, body, [v for v, _ in self.place.loops])
        iters = tuple([IterVar(Var(v.name), n, k or "reduce") for (v, n), k in zip(self.place.loops, kinds, strict=True)])
        renamed: dict[Any, Any] = {v: it.var for (v, _), it in zip(self.place.loops, iters, strict=True)}
        count = self.block_names[to.buffer.name] = self.block_names.get(to.buffer.name, -1) + 1
        name = to.buffer.name if count == 0 else f"{to.buffer.name}_{count}"
        block = Block(name, iters, tuple([v for v, _ in self.place.loops]), substitute(predicate, renamed),
                      substitute(body, renamed), None, (ORDERED,) if None in kinds else ())
        self._stale({n for n, b in self.names.items() if b is to.buffer})
        return block

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
            self.place = _Place(place.loops, place.conditions, place.known.assuming(cond, holds))
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


# ---- what a block's loops are ----------------------------------------------------------------------------------------
def iteration_kinds(to: Load, body: Stmt, loops: Sequence[Var]) -> list[str | None]:
    """Per loop around a store "spatial", "reduce", or None where the instances must keep their order.

    A loop is spatial if its variable alone (plus a constant) is an index of the store: other turns store elsewhere. It is
    reduced over if no index depends on it and the store combines the old element with something else by one operator
    that may be reordered."""
    alone = set()
    for i in to.indices:
        used = [n for n in walk(i) if isinstance(n, Var) and n in loops]
        plain = isinstance(i, Var) or isinstance(i, Add | Sub) and isinstance(i.a, Var) and isinstance(i.b, Const)
        if len(used) == 1 and plain:
            alone.add(used[0])
    used_at_all = {n for i in to.indices for n in walk(i) if isinstance(n, Var)}
    out: list[str | None] = []
    for v in loops:
        if v in alone:
            out.append("spatial")
        elif v not in used_at_all and _combines(to, body):
            out.append("reduce")
        else:
            out.append(None)
    return out


def _single_block(s: Stmt) -> tuple[Block | None, list[For]]:
    """The block that is all there is under some loops, and these."""
    loops = []
    while isinstance(s, For):
        loops.append(s)
        s = s.body
    return (s, loops) if isinstance(s, Block) else (None, loops)


def _starts(first: Block, block: Block) -> bool:
    """Whether `first` stores the elements that `block`, deeper by reductions alone, goes on from."""
    a, b = first.body, block.body
    if not (isinstance(a, Store) and isinstance(b, Store) and a.buffer is b.buffer) or first.attrs or block.attrs \
            or first.init is not None or block.init is not None or a.buffer in _read(a.value):
        return False
    n = len(first.iters)
    renamed: dict[Any, Any] = {x.var: y.var for x, y in zip(first.iters, block.iters, strict=False)}
    return (first.bindings == block.bindings[:n] and all(it.kind == "spatial" for it in first.iters)
            and [it.kind for it in block.iters[:n]] == ["spatial"] * n
            and all(it.kind == "reduce" for it in block.iters[n:])
            and substitute(first.predicate, renamed) == block.predicate
            and tuple([substitute(i, renamed) for i in a.indices]) == b.indices)


def _combines(to: Load, body: Stmt) -> bool:
    while isinstance(body, If):
        body = body.then
    if not isinstance(body, Store):
        return False
    e = body.value
    if isinstance(e, Add | Mul | Min | Max) or isinstance(e, Sub | Div) and e.a == to:
        sides = [e.a == to, e.b == to]
        other = e.b if sides[0] else e.a
        return any(sides) and to.buffer not in _read(other)
    return False


def _read(e: Any) -> frozenset[Buffer]:
    return frozenset(n.buffer for n in walk(e) if isinstance(n, Load)) if isinstance(e, Expr) else frozenset()


def stored_names(stmts: Sequence[ast.stmt]) -> set[str]:
    """Names of the buffers that statements store to."""
    return {t.value.id for s in stmts for n in ast.walk(s) if isinstance(n, ast.Assign | ast.AugAssign)
            for t in (n.targets if isinstance(n, ast.Assign) else [n.target])
            if isinstance(t, ast.Subscript) and isinstance(t.value, ast.Name)}


def inspect_module(found: Any) -> bool:
    """Whether attributes may be taken of something without running anything: it is a module."""
    return type(found).__name__ == "module"
