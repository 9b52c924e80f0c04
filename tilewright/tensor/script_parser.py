"""From the source of a kernel to its blocks. In: a Python function's text and the names around it. Out: a Program.

Every store becomes a block of its own, whose iteration variables are the loops around it. A loop whose variable picks
the element is spatial; one over which `y[i] = y[i] + …` repeats is a reduction, whose initial value is the store before
it; where neither can be shown, the block is marked to run in the order in which its loops are written, and no schedule
changes that.
"""
from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tilewright.core.dtype import DType, i64
from tilewright.core.errors import UserError
from tilewright.core.node import walk
from tilewright.loop.ir import (
    ONE,
    TRUE,
    ZERO,
    Allocate,
    Block,
    Buffer,
    Expr,
    For,
    If,
    IterVar,
    Le,
    Load,
    Not,
    Program,
    Span,
    Stmt,
    Store,
    Var,
    as_int,
    const,
    seq,
)
from tilewright.loop.simplify import simplify
from tilewright.loop.substitute import substitute
from tilewright.tensor.scatter import ORDERED
from tilewright.tensor.script_blocks import buffers_in, iteration_kinds, single_block, starts, stored_names
from tilewright.tensor.script_expressions import Expressions, Named, Number, Place, Source

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
    source = Source(textwrap.dedent(text), file, first_line)
    tree = ast.parse(source.text)
    function = tree.body[0] if tree.body else None
    if not isinstance(function, ast.FunctionDef):
        raise UserError("kernel-syntax", "a kernel is an ordinary function", where=f"{file}:{first_line}")
    return _Function(source, around).parse(function)


class _Function(Expressions):
    """One walk over a function."""

    def __init__(self, source: Source, around: Mapping[str, Any]) -> None:
        super().__init__(source, around)
        self.kinds: list[tuple[Var, str]] = []
        self.block_names: dict[str, int] = {}

    def parse(self, f: ast.FunctionDef) -> Parsed:
        a = f.args
        if a.vararg or a.kwarg or a.kwonlyargs or a.defaults or a.posonlyargs:
            self.wrong(f, "a kernel has plain parameters only, without defaults and *")
        sizes: dict[str, Var] = {}
        params: list[Var | Buffer] = [self.parameter(p, sizes) for p in a.args]
        for p in params:
            self.define(f, p.name, p if isinstance(p, Buffer) else Named(p, frozenset()))
        for name, v in sizes.items():
            self.define(f, name, Named(v, frozenset()))
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

    def define(self, at: ast.AST, name: str, what: Named | Buffer) -> None:
        if name in self.names:
            self.wrong(at, f"{name} has a value already: a name is given one value",
                       f"what changes is kept in memory: {name} = local(f32, 1), then {name}[0] = …")
        self.names[name] = what

    @contextmanager
    def inside(self, place: Place) -> Iterator[None]:
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
                    self.define(s, name, Named(e, buffers_in(e)))
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
            block, loops = single_block(s)
            first = out[-1] if out else None
            if isinstance(first, Block) and block is not None and loops and starts(first, block) \
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
        with self.inside(Place((*self.place.loops, (v, extent)), self.place.conditions, known)):
            self._stale(stored_names(s.body))
            self.define(s, name, Named(v + start if as_int(start) != 0 else v, frozenset()))
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
                with self.inside(Place(self.place.loops, (*self.place.conditions, c), known)):
                    out.append(self.suite(stmts))
                self._stale(stored_names(stmts))
        return out

    def _stale(self, stored: set[str]) -> None:
        """Values that were read from what is now stored are not to be used any more."""
        buffers = {b: n for n in stored if isinstance(b := self.names.get(n), Buffer)}
        for name, what in self.names.items():
            if isinstance(what, Named) and not what.stale:
                for b in what.reads & buffers.keys():
                    self.names[name] = Named(what.value, what.reads, buffers[b])

    def store(self, s: ast.stmt, target: ast.Subscript, value: Number) -> Block:
        to = self.subscript(target)
        assert isinstance(to, Load)
        body: Stmt = Store(to.buffer, to.indices, self.converted(s, value, to.dtype))
        pure = [c for c in self.place.conditions if not buffers_in(c)]
        for c in reversed([c for c in self.place.conditions if buffers_in(c)]):
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
