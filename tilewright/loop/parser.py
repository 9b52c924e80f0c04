"""Parsing loop IR: the text that `loop/printer.py` writes in, programs out; print → parse → print changes nothing.

Hand-written text may also use `>`, `>=`, unary minus, comments, and one name in several suites that do not enclose
each other; it may break lines inside brackets. The two sides of an operator must have one dtype: literals are not converted.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tilewright.core.dtype import i64
from tilewright.core.errors import UserError
from tilewright.loop import ir
from tilewright.loop.expr_parser import ExprParser
from tilewright.loop.parser_tokens import Token


def parse_program(text: str) -> ir.Program:
    """The program of a text (constant tables may precede it). Raises UserError with line and column."""
    programs = _Parser(text).programs()
    if len(programs) != 1:
        raise UserError("loop-syntax", f"one program was expected, the text has {len(programs)}")
    return programs[0]


def parse_module(text: str) -> ir.Module:
    """The module of a text. Raises UserError with line and column."""
    return ir.Module(tuple(_Parser(text).programs()))


def parse_expr(text: str, names: Mapping[str, ir.Var]) -> ir.Expr:
    """The expression of a text over named variables. Raises UserError with line and column."""
    parser = _Parser(text)
    parser.scope.update(names)
    e: ir.Expr = parser.expr()
    parser.end_of_line()
    return e


class _Parser(ExprParser):
    """Definitions, statements and programs."""

    # -- definitions
    def buffer(self) -> tuple[ir.Buffer, Token]:
        """`A: f32[n, 4] local strides[8, 1] packing 2 data (…)`; the name is not yet defined."""
        name, at = self.new_name()
        self.expect(":")
        t = self.dtype()
        self.expect("[")
        shape = self.listed("]", self.expr)
        scope, strides, packing, data = "global", None, 1, None
        while self.here.kind == "name" and self.here.text != "at":
            key = self.take("name", "a scope")
            if key == "strides":
                self.expect("[")
                strides = self.listed("]", self.expr)
            elif key == "packing":
                packing = self.integer()
            elif key == "data":
                if self.peek("<"):
                    self.fail("the data of this table was left out of the text")
                data = self.data()
            else:
                scope = key
        return ir.Buffer(name, t, shape, scope, strides, packing, data), at

    def parameters(self) -> tuple[Any, ...]:
        """Scalars are defined first: the shape of an earlier buffer may name them."""
        start, scalars = self.pos, dict[str, tuple[ir.Var, int]]()
        depth = 1
        while depth and self.here.kind not in ("newline", "end"):
            if depth == 1 and self.here.kind == "name" and self.tokens[self.pos + 1].text == ":" \
                    and self.tokens[self.pos + 3].text in (",", ")", "size"):
                name, at = self.new_name()
                self.expect(":")
                t = self.dtype()
                v = self.define(ir.Var(name, t, self.span()), at)
                scalars[name] = v, self.pos
                continue
            depth += (self.here.text in ("(", "[")) - (self.here.text in (")", "]"))
            self.pos += 1
        self.pos = start

        def parameter() -> Any:
            if self.here.text in scalars and self.tokens[self.pos + 3].text in (",", ")", "size"):
                v, self.pos = scalars[self.here.text]
                return v
            return self.define(*self.buffer())
        return self.listed(")", parameter)

    def span(self) -> ir.Span | None:
        """`size least..most times multiple like hint`, or nothing."""
        if not self.accept("size"):
            return None
        least = self.integer()
        self.expect("..")
        most = self.integer() if self.here.kind == "number" else None
        multiple = self.integer() if self.accept("times") else 1
        return ir.Span(least, most, multiple, self.integer() if self.accept("like") else None)

    # -- statements
    def end_of_line(self) -> None:
        if self.here.kind != "newline":
            self.fail(f"expected the end of the line, found {self._found()}")
        self.pos += 1

    def open_suite(self) -> None:
        self.expect(":")
        self.end_of_line()
        if self.here.kind != "indent":
            self.fail("expected an indented statement")
        self.pos += 1

    def suite(self) -> ir.Stmt:
        """`:` newline, then indented statements."""
        self.open_suite()
        with self.nested():
            body = self.rest()
        self.pos += 1
        return body

    def statements(self) -> list[ir.Stmt]:
        out: list[ir.Stmt] = []
        while self.here.kind not in ("dedent", "end"):
            if self.here.kind == "indent":
                self.fail("unexpected indentation")
            if self.accept("pass"):
                self.end_of_line()
                continue
            out.append(self.stmt())
        return out

    def rest(self) -> ir.Stmt:
        """The statements up to the end of the suite as one."""
        stmts = self.statements()
        return stmts[0] if len(stmts) == 1 else ir.Seq(tuple(stmts))

    def body(self) -> ir.Stmt:
        """What a `let` or `alloc` holds for: an indented suite, or the rest of this one."""
        if self.peek(":"):
            return self.suite()
        self.end_of_line()
        return self.rest()

    def stmt(self) -> ir.Stmt:
        at = self.here
        reader = _STMTS.get(at.text) if at.kind == "name" else None
        if reader is not None:
            self.pos += 1
            return reader(self)
        e = self.expr()
        if not self.accept("="):
            self.end_of_line()
            return ir.Evaluate(e)
        if not isinstance(e, ir.Load):
            self.fail("only an element of a buffer can be assigned to", at)
        value = self.expr()
        self.end_of_line()
        return ir.Store(e.buffer, e.indices, value)

    def _for(self) -> ir.Stmt:
        name, at = self.new_name()
        t = self.dtype() if self.accept(":") else i64
        self.expect("in")
        start = self.expr()
        self.expect("..")
        if not self.accept("+") and not (isinstance(start, ir.Const) and start.value == 0):
            self.fail("a loop that does not start at 0 gives its extent: start..+extent")
        extent = self.expr()
        kind = self.take("name", "a loop kind") if self.here.kind == "name" else "serial"
        attrs = self.attrs()
        with self.nested():
            var = self.define(ir.Var(name, t), at)
            return ir.For(var, start, extent, self.suite(), kind, attrs)

    def _if(self) -> ir.Stmt:
        cond = self.expr()
        then = self.suite()
        otherwise: ir.Stmt | None = None
        if self.accept("elif"):
            otherwise = self._if()
        elif self.accept("else"):
            otherwise = self.suite()
        return ir.If(cond, then, otherwise)

    def _while(self) -> ir.Stmt:
        return ir.While(self.expr(), self.suite())

    def _let(self) -> ir.Stmt:
        name, at = self.new_name()
        t = self.dtype() if self.accept(":") else None
        self.expect("=")
        value = self.expr()
        with self.nested():
            var = self.define(ir.Var(name, t or value.dtype), at)
            return ir.Let(var, value, self.body())

    def _alloc(self) -> ir.Stmt:
        buffer, at = self.buffer()
        offset = self.expr() if self.accept("at") else None
        with self.nested():
            self.define(buffer, at)
            return ir.Allocate(buffer, self.body(), offset)

    def _block(self) -> ir.Stmt:
        name = self.word()
        self.expect("(")
        bindings: list[ir.Expr] = []
        names: list[Token] = []

        def item() -> ir.IterVar:
            var_name, at = self.new_name()
            self.expect(":")
            spec = self.take("name", "a dtype, spatial or reduce")
            t, kind = (i64, spec) if spec in ("spatial", "reduce") else (self._dtype(spec, at), "")
            kind = kind or self.take("name", "spatial or reduce")
            extent = self.expr()
            self.expect("=")
            bindings.append(self.expr())
            names.append(at)
            return ir.IterVar(ir.Var(var_name, t), extent, kind)
        iters = self.listed(")", item)
        with self.nested():
            for it, at in zip(iters, names, strict=True):
                self.define(it.var, at)
            predicate = self.expr() if self.accept("if") else ir.TRUE
            attrs = self.attrs()
            body, init = self._block_parts()
        return ir.Block(name, iters, tuple(bindings), predicate, body, init, attrs)

    def _block_parts(self) -> tuple[ir.Stmt, ir.Stmt | None]:
        k = self.pos
        if [t.text or t.kind for t in self.tokens[k:k + 5]] != [":", "newline", "indent", "init", ":"]:
            return self.suite(), None
        self.pos += 4
        init = self.suite()
        self.expect("body")
        body = self.suite()
        if self.here.kind != "dedent":
            self.fail("a block ends with its body")
        self.pos += 1
        return body, init

    def _seq(self) -> ir.Stmt:
        self.open_suite()
        with self.nested():
            stmts = self.statements()
        self.pos += 1
        return ir.Seq(tuple(stmts))

    def _launch(self) -> ir.Stmt:
        callee = self.word()
        self.expect("(")
        args = self.listed(")", self.expr)
        tasks = self.expr() if self.accept("tasks") else None
        grid: tuple[ir.Expr, ...] = ()
        if self.accept("grid"):
            self.expect("(")
            grid = self.listed(")", self.expr)
        self.end_of_line()
        return ir.Launch(callee, args, tasks, grid)

    def _tensor(self) -> ir.Stmt:
        at = self.here
        name = self.word()
        self.expect("(")
        tiles = self.listed(")", self.expr)
        places = tuple([t for t in tiles if isinstance(t, ir.Load)])
        if len(places) != len(tiles):
            self.fail("the tiles of an intrinsic are given by elements of buffers", at)
        return ir.TensorCall(name, places, self.suite())

    def _extern(self) -> ir.Stmt:
        symbol = self.word()
        self.expect("(")
        args = [ir.Load(a.buffer, a.indices) if isinstance(a, ir.Address) else a for a in self.listed(")", self.expr)]
        status = self.accept("status")
        return ir.ExternCall(symbol, tuple(args), self.suite(), status)

    def _assert(self) -> ir.Stmt:
        cond = self.expr()
        self.expect(",")
        code = self.integer()
        self.expect(",")
        message = self.string()
        values: tuple[ir.Expr, ...] = ()
        if self.accept(","):
            self.expect("(")
            values = self.listed(")", self.expr)
        self.end_of_line()
        return ir.Assert(cond, code, message, values)

    # -- programs
    def programs(self) -> list[ir.Program]:
        out: list[ir.Program] = []
        while self.here.kind != "end":
            if self.accept("table"):
                self.define(*self.buffer())
                self.end_of_line()
                continue
            self.expect("program")
            name = self.word()
            self.expect("(")
            with self.nested():
                params = self.parameters()
                attrs = self.attrs()
                out.append(ir.Program(name, params, self.suite(), attrs))
        return out


_STMTS: dict[str, Callable[[_Parser], ir.Stmt]] = {
    "for": _Parser._for, "if": _Parser._if, "while": _Parser._while, "let": _Parser._let, "alloc": _Parser._alloc,
    "block": _Parser._block, "seq": _Parser._seq, "launch": _Parser._launch, "assert": _Parser._assert,
    "tensor": _Parser._tensor, "extern": _Parser._extern}
