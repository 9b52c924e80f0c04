"""Parsing loop IR, the expressions: recursive descent over operators, by how tightly they bind; names in scope.

In: tokens. Out: expressions over the variables and buffers that are visible. The two sides of an operator must have one
dtype: literals are not converted.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tilewright.core.dtype import boolean, f32, i64
from tilewright.loop import ir
from tilewright.loop.parser_tokens import Cursor, Token
from tilewright.loop.printer import INFIX, KEYWORDS, NOT

_OPS = {op: (cls, level) for cls, (op, level) in INFIX.items()}
_FLIPPED = {">": ir.Lt, ">=": ir.Le}
_COMPARE = 4
_ELEMENTS = frozenset((
    "f64", "f32", "f16", "bf16", "f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f8e5m2fnuz", "f8e8m0fnu", "f4e2m1fn", "i64", "i32",
    "i16", "i8", "i4", "i2", "u64", "u32", "u16", "u8", "u4", "u2", "bool", "handle"))
_BUILTINS: dict[str, tuple[Any, int, int]] = {  # class, operands, whether a number of lanes follows
    "min": (ir.Min, 2, 0), "max": (ir.Max, 2, 0), "select": (ir.Select, 3, 0), "guard": (ir.Guard, 3, 0),
    "ramp": (ir.Ramp, 2, 1), "broadcast": (ir.Broadcast, 1, 1)}


class ExprParser(Cursor):
    """Expressions from tokens; `scope` holds the names that are visible."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.scope: dict[str, ir.Var | ir.Buffer] = {}

    # -- names
    @contextmanager
    def nested(self) -> Iterator[None]:
        """Names defined within are not visible after."""
        outer = self.scope
        self.scope = dict(outer)
        yield
        self.scope = outer

    def define(self, what: Any, at: Token) -> Any:
        if what.name in self.scope:
            self.fail(f"{what.name} is already defined here", at)
        self.scope[what.name] = what
        return what

    def new_name(self) -> tuple[str, Token]:
        at = self.here
        name = self.take("name", "a name")
        if name in KEYWORDS:
            self.fail(f"'{name}' is a keyword, not a name", at)
        return name, at

    def known(self, kind: type, at: Token) -> Any:
        got = self.scope.get(at.text)
        if got is None:
            self.fail(f"{at.text} is not defined here", at)
        if not isinstance(got, kind):
            self.fail(f"{at.text} is a {'buffer' if kind is ir.Var else 'variable'}, not a {kind.__name__.lower()}", at)
        return got

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

    def builtin(self, name: str, at: Token) -> Any:
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
