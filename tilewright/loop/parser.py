"""Parsing loop IR: the text that `loop/printer.py` writes in, programs out; print → parse → print changes nothing.

Hand-written text may also use `>`, `>=`, unary minus, comments, and one name in several suites that do not enclose
each other; it may break lines inside brackets. The two sides of an operator must have one dtype: literals are not converted.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from tilewright.core.dtype import DType, boolean, dtype, f32, i64
from tilewright.core.errors import UserError
from tilewright.loop import ir
from tilewright.loop.printer import INFIX, KEYWORDS, NOT

_TOKEN = re.compile(r"""
    (?P<space>[ ]+) | (?P<comment>\#.*)
  | (?P<number>(\d+\.\d+([eE][+-]?\d+)?|\d+[eE][+-]?\d+|\d+|(inf|nan)(?![\w.]))(:[a-z]\w*)?)
  | (?P<name>[A-Za-z_]\w*(\.\w+)*(:[a-z]\w*(?=\())?)
  | (?P<string>"([^"\\]|\\.)*"(:[a-z]\w*(?=\())?)
  | (?P<op>\.\.|==|!=|<=|>=|//|[-+*/%<>=()\[\]{},:&])
""", re.VERBOSE | re.ASCII)
_OPS = {op: (cls, level) for cls, (op, level) in INFIX.items()}
_FLIPPED = {">": ir.Lt, ">=": ir.Le}
_COMPARE = 4


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


@dataclass(frozen=True)
class _Token:
    kind: str  # "number", "name", "string", "op", "newline", "indent", "dedent", "end"
    text: str
    line: int
    column: int


def _tokens(text: str) -> Iterator[_Token]:
    """Tokens with indentation made explicit, as in Python's own grammar; no newlines inside brackets."""
    levels, depth, number = [0], 0, 0
    for number, line in enumerate(text.split("\n"), 1):
        body = line.lstrip(" ")
        if not depth:
            if not body or body.startswith("#"):
                continue
            indent = len(line) - len(body)
            if indent > levels[-1]:
                levels.append(indent)
                yield _Token("indent", "", number, indent + 1)
            while indent < levels[-1]:
                levels.pop()
                yield _Token("dedent", "", number, indent + 1)
            if indent != levels[-1]:
                _complain("this line's indentation matches no line before it", number, indent + 1, line)
        at = 0
        while at < len(line):
            m = _TOKEN.match(line, at)
            if m is None:
                _complain(f"unexpected character {line[at]!r}", number, at + 1, line)
            if m.lastgroup is not None and m.lastgroup not in ("space", "comment"):
                depth += (m[0] in "([{") - (m[0] in ")]}") if m.lastgroup == "op" else 0
                yield _Token(m.lastgroup, m[0], number, at + 1)
            at = m.end()
        if depth <= 0:
            depth = 0
            yield _Token("newline", "", number, len(line) + 1)
    yield from [_Token("dedent", "", number + 1, 1)] * (len(levels) - 1)
    yield _Token("end", "", number + 1, 1)


def _complain(message: str, line: int, column: int, source: str) -> NoReturn:
    raise UserError("loop-syntax", message, where=f"line {line}, column {column}\n    {source}\n    {' ' * (column - 1)}^")


class _Parser:
    """Recursive descent over the tokens; `scope` holds the names that are visible."""

    def __init__(self, text: str) -> None:
        self.source = text.split("\n")
        self.tokens = list(_tokens(text))
        self.pos = 0
        self.scope: dict[str, ir.Var | ir.Buffer] = {}

    # -- tokens
    @property
    def here(self) -> _Token:
        return self.tokens[self.pos]

    def fail(self, message: str, at: _Token | None = None) -> NoReturn:
        t = at or self.here
        source = self.source[t.line - 1] if t.line <= len(self.source) else ""
        _complain(message, t.line, t.column, source)

    def peek(self, text: str) -> bool:
        return self.here.text == text and self.here.kind in ("op", "name")

    def accept(self, text: str) -> bool:
        if self.peek(text):
            self.pos += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.accept(text):
            self.fail(f"expected '{text}', found {self._found()}")

    def _found(self) -> str:
        return f"'{self.here.text}'" if self.here.text else f"the {self.here.kind} of the line" \
            if self.here.kind == "newline" else self.here.kind

    def take(self, kind: str, what: str) -> str:
        t = self.here
        if t.kind != kind:
            self.fail(f"expected {what}, found {self._found()}")
        self.pos += 1
        return t.text

    def listed(self, close: str, item: Callable[[], Any]) -> tuple[Any, ...]:
        """Items between commas up to `close`, which is consumed."""
        out: list[Any] = []
        while not self.accept(close):
            if out:
                self.expect(",")
                if self.accept(close):
                    break
            out.append(item())
        return tuple(out)

    # -- names
    @contextmanager
    def nested(self) -> Iterator[None]:
        """Names defined within are not visible after."""
        outer = self.scope
        self.scope = dict(outer)
        yield
        self.scope = outer

    def define(self, what: Any, at: _Token) -> Any:
        if what.name in self.scope:
            self.fail(f"{what.name} is already defined here", at)
        self.scope[what.name] = what
        return what

    def new_name(self) -> tuple[str, _Token]:
        at = self.here
        name = self.take("name", "a name")
        if name in KEYWORDS:
            self.fail(f"'{name}' is a keyword, not a name", at)
        return name, at

    def known(self, kind: type, at: _Token) -> Any:
        got = self.scope.get(at.text)
        if got is None:
            self.fail(f"{at.text} is not defined here", at)
        if not isinstance(got, kind):
            self.fail(f"{at.text} is a {'buffer' if kind is ir.Var else 'variable'}, not a {kind.__name__.lower()}", at)
        return got

    def word(self) -> str:
        if self.here.kind == "string":
            return self.string()
        return self.take("name", "a name")

    def string(self) -> str:
        raw = self.take("string", "a string")
        return raw[1:-1].encode("ascii", "backslashreplace").decode("unicode_escape")

    def dtype(self) -> DType:
        at = self.here
        return self._dtype(self.take("name", "an element type"), at)

    def _dtype(self, name: str, at: _Token) -> DType:
        try:
            return dtype(name)
        except UserError:
            self.fail(f"there is no element type {name}", at)

    def integer(self) -> int:
        negative = self.accept("-")
        at = self.here
        text = self.take("number", "an integer")
        if not text.isdigit():
            self.fail("expected an integer", at)
        return -int(text) if negative else int(text)

    # -- plain data
    def data(self) -> Any:
        if self.here.kind == "string":
            return self.string()
        if self.accept("("):
            return self.listed(")", self.data)
        for text, value in (("True", True), ("False", False), ("None", None)):
            if self.accept(text):
                return value
        if self.accept("dtype"):
            return self.dtype()
        return self.number()

    def number(self) -> Any:
        """A Python number without a dtype."""
        negative = self.accept("-")
        at = self.here
        text = self.take("number", "a number, string, tuple, True, False or None")
        if ":" in text:
            self.fail("no dtype is expected here", at)
        value = int(text) if text.isdigit() else float(text)
        return -value if negative else value

    def attrs(self) -> tuple[tuple[str, Any], ...]:
        def item() -> tuple[str, Any]:
            key = self.word()
            self.expect("=")
            return key, self.data()
        return self.listed("}", item) if self.accept("{") else ()

    # -- expressions
    def expr(self, level: int = 0) -> Any:
        """An expression of operators that bind at least as tightly as `level`."""
        if level <= NOT and self.peek("not"):
            self.pos += 1
            left = ir.Not(self.expr(NOT))
        else:
            left = self.unary()
        while self.here.kind in ("op", "name"):
            at = self.here
            cls, mine = _OPS.get(at.text) or (_FLIPPED.get(at.text), _COMPARE)
            if cls is None or mine < level:
                break
            self.pos += 1
            right = self.expr(mine + 1)
            if left.dtype is not right.dtype:
                self.fail(f"the operands of '{at.text}' are {left.dtype} and {right.dtype}", at)
            left = cls(right, left) if at.text in _FLIPPED else cls(left, right)
            if mine == _COMPARE and (self.here.text in _FLIPPED or _OPS.get(self.here.text, (None, 0))[1] == _COMPARE):
                self.fail("comparisons do not chain: use parentheses")
        return left

    def unary(self) -> Any:
        if not self.peek("-"):
            return self.atom()
        self.pos += 1
        if self.here.kind == "number":
            return self.literal(-1)
        return -self.atom()

    def literal(self, sign: int = 1) -> ir.Const:
        at = self.here
        text, _, name = self.take("number", "a number").partition(":")
        if text.isdigit():
            return ir.Const(sign * int(text), self._dtype(name, at) if name else i64)
        return ir.Const(sign * float(text), self._dtype(name, at) if name else f32)

    def atom(self) -> Any:
        at = self.here
        if at.kind == "number":
            return self.literal()
        if self.accept("("):
            e = self.expr()
            self.expect(")")
            return e
        if self.accept("&"):
            return ir.Address(*self.access())
        if at.kind == "string":
            return self.call()
        if at.kind != "name" or at.text in KEYWORDS - {"true", "false"}:
            self.fail(f"expected an expression, found {self._found()}")
        if at.text in ("true", "false"):
            self.pos += 1
            return ir.Const(at.text == "true", boolean)
        following = self.tokens[self.pos + 1].text
        if following == "(":
            return self.call()
        if following == "[":
            return ir.Load(*self.access())
        self.pos += 1
        return self.known(ir.Var, at)

    def access(self) -> tuple[ir.Buffer, tuple[ir.Expr, ...]]:
        at = self.here
        self.take("name", "a buffer")
        buffer = self.known(ir.Buffer, at)
        self.expect("[")
        indices = self.listed("]", self.expr)
        if len(indices) != buffer.rank:
            self.fail(f"{buffer.name} has {buffer.rank} dimensions, indexed with {len(indices)}", at)
        return buffer, indices

    def call(self) -> Any:
        at = self.here
        if at.kind == "string":
            text, _, type_ = at.text.rpartition(":") if not at.text.endswith('"') else (at.text, "", "")
            name = text[1:-1].encode("ascii", "backslashreplace").decode("unicode_escape")
        else:
            name, _, type_ = at.text.partition(":")
        self.pos += 1
        self.expect("(")
        if type_:
            return ir.Call(name, self.listed(")", self.expr), self._dtype(type_, at))
        if name in _BUILTINS:
            return self.builtin(name, at)
        if name in _ELEMENTS or "x" in name and name.partition("x")[0] in _ELEMENTS and name[-1].isdigit():
            e = ir.Cast(self._dtype(name, at), self.expr())
            self.expect(")")
            return e
        args = self.listed(")", self.expr)
        if not args:
            self.fail(f"a call without arguments must say its type: {name}:f32()", at)
        return ir.Call(name, args, args[0].dtype)

    def builtin(self, name: str, at: _Token) -> Any:
        cls, operands, lanes = _BUILTINS[name]
        args: list[Any] = []
        for k in range(operands + lanes):
            if k:
                self.expect(",")
            args.append(self.expr() if k < operands else self.integer())
        self.expect(")")
        if not lanes and args[-2].dtype is not args[-1].dtype:
            self.fail(f"the operands of '{name}' are {args[-2].dtype} and {args[-1].dtype}", at)
        return cls(*args)

    # -- definitions
    def buffer(self) -> tuple[ir.Buffer, _Token]:
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
        names: list[_Token] = []

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


_ELEMENTS = frozenset((
    "f64", "f32", "f16", "bf16", "f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f8e5m2fnuz", "f8e8m0fnu", "f4e2m1fn", "i64", "i32",
    "i16", "i8", "i4", "i2", "u64", "u32", "u16", "u8", "u4", "u2", "bool", "handle"))
_BUILTINS: dict[str, tuple[Any, int, int]] = {  # class, operands, whether a number of lanes follows
    "min": (ir.Min, 2, 0), "max": (ir.Max, 2, 0), "select": (ir.Select, 3, 0), "guard": (ir.Guard, 3, 0),
    "ramp": (ir.Ramp, 2, 1), "broadcast": (ir.Broadcast, 1, 1)}
_STMTS: dict[str, Callable[[_Parser], ir.Stmt]] = {
    "for": _Parser._for, "if": _Parser._if, "while": _Parser._while, "let": _Parser._let, "alloc": _Parser._alloc,
    "block": _Parser._block, "seq": _Parser._seq, "launch": _Parser._launch, "assert": _Parser._assert,
    "tensor": _Parser._tensor, "extern": _Parser._extern}
