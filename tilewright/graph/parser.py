"""Parsing graphs: the text that `graph/printer.py` writes, and its side table of large constants, in; a Graph out."""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np

from tilewright.core.dtype import dtype, i64
from tilewright.core.errors import UserError
from tilewright.graph import ops
from tilewright.graph.ir import Graph, Operation, TensorType, Value
from tilewright.graph.printer import digest
from tilewright.graph.registry import OPS, Array, Attr, known_elements
from tilewright.loop.ir import Expr, Var, const, maximum, minimum

assert ops.FAMILIES  # importing the package enters the operators

_TOKEN = re.compile(r"""
    (?P<space>\s+|\#[^\n]*)
  | (?P<digest>sha256:[0-9a-f]{16})
  | (?P<number>(\d+\.\d+([eE][+-]?\d+)?|\d+[eE][+-]?\d+|\d+))
  | (?P<value>%([A-Za-z_]\w*|"([^"\\]|\\.)*"))
  | (?P<name>[A-Za-z_]\w*)
  | (?P<string>"([^"\\]|\\.)*")
  | (?P<op>->|//|==|!=|<=|>=|[-+*/%()\[\]{}:,=@<>])
""", re.VERBOSE | re.ASCII)


def parse_graph(text: str, data: Mapping[str, Array] | None = None) -> Graph:
    """The graph of a text. `data` holds the constants that the text names by digest. Raises UserError with the line."""
    return _Parser(text, data or {}).graph("graph")


class _Parser:
    def __init__(self, text: str, data: Mapping[str, Array]) -> None:
        self.text, self.data = text, data
        self.tokens: list[tuple[str, str, int]] = []
        at = 0
        while at < len(text):
            m = _TOKEN.match(text, at)
            if m is None:
                self._complain(f"unexpected character {text[at]!r}", at)
            if m.lastgroup != "space":
                self.tokens.append((str(m.lastgroup), m[0], at))
            at = m.end()
        self.tokens.append(("end", "", at))
        self.pos = 0
        self.values: dict[str, Value] = {}
        self.symbols: dict[str, Var] = {}

    # ---- tokens ------------------------------------------------------------------------------------------------------
    def _complain(self, message: str, at: int) -> NoReturn:
        line = self.text.count("\n", 0, at) + 1
        column = at - (self.text.rfind("\n", 0, at) + 1)
        source = self.text.split("\n")[line - 1]
        raise UserError("graph-syntax", message, where=f"line {line}\n    {source}\n    {' ' * column}^")

    def fail(self, message: str) -> NoReturn:
        self._complain(message, self.tokens[self.pos][2])

    def accept(self, text: str) -> bool:
        kind, found, _ = self.tokens[self.pos]
        if found == text and kind in ("op", "name"):
            self.pos += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.accept(text):
            self.fail(f"expected '{text}', found '{self.tokens[self.pos][1]}'")

    def take(self, kind: str, what: str) -> str:
        if self.tokens[self.pos][0] != kind:
            self.fail(f"expected {what}, found '{self.tokens[self.pos][1]}'")
        self.pos += 1
        return self.tokens[self.pos - 1][1]

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.pos][:2]

    def listed(self, close: str, item: Callable[[], Any]) -> list[Any]:
        out: list[Any] = []
        while not self.accept(close):
            if out:
                self.expect(",")
            out.append(item())
        return out

    def string(self) -> str:
        return _unquoted(self.take("string", "a string"))

    def word(self) -> str:
        return self.string() if self.peek()[0] == "string" else self.take("name", "a name")

    def loc(self) -> str:
        return self.string() if self.accept("@") else ""

    # ---- values ------------------------------------------------------------------------------------------------------
    def name(self) -> str:
        raw = self.take("value", "a value")[1:]
        return _unquoted(raw) if raw.startswith('"') else raw

    def use(self) -> Value | None:
        if self.accept("-"):
            return None
        start = self.pos
        name = self.name()
        if name not in self.values:
            self.pos = start
            self.fail(f"%{name} is not defined here")
        return self.values[name]

    def define(self, name: str, v: Value) -> Value:
        if name in self.values:
            self.pos -= 1
            self.fail(f"%{name} is defined twice")
        self.values[name] = v
        return v

    def type(self) -> TensorType:
        element = dtype(self.take("name", "an element type"))
        self.expect("[")
        return TensorType(element, tuple(self.listed("]", self.dim)))

    # ---- dimensions --------------------------------------------------------------------------------------------------
    def dim(self) -> Expr:
        left = self.product()
        while True:
            if self.accept("+"):
                left = left + self.product()
            elif self.accept("-"):
                left = left - self.product()
            else:
                return left

    def product(self) -> Expr:
        left = self.atom()
        while True:
            if self.accept("*"):
                left = left * self.atom()
            elif self.accept("//"):
                left = left // self.atom()
            elif self.accept("%"):
                left = left % self.atom()
            else:
                return left

    def atom(self) -> Expr:
        if self.accept("("):
            e = self.dim()
            self.expect(")")
            return e
        if self.accept("-"):
            return const(-int(self.take("number", "a number")))
        if self.peek()[0] == "number":
            return const(int(self.take("number", "a number")))
        name = self.take("name", "a dimension")
        if name in ("min", "max") and self.accept("("):
            a, b = self.listed(")", self.dim)
            return minimum(a, b) if name == "min" else maximum(a, b)
        if name not in self.symbols:
            self.symbols[name] = Var(name, i64)
        return self.symbols[name]

    # ---- attributes --------------------------------------------------------------------------------------------------
    def attr(self, spec: Attr) -> Any:
        if self.accept("none"):
            return None
        if spec.type in ("ints", "floats", "dims", "symbols"):
            self.expect("[")
            sizes = spec.type in ("dims", "symbols")
            return tuple(self.listed("]", self.dim if sizes else lambda: self.scalar(spec.type == "floats")))
        match spec.type:
            case "strs":
                self.expect("[")
                return tuple(self.listed("]", self.string))
            case "dim":
                return self.dim()
            case "str":
                return self.string()
            case "dtype":
                return dtype(self.take("name", "an element type"))
            case _:
                return self.scalar(spec.type == "float")

    def scalar(self, as_float: bool) -> Any:
        if self.accept("true"):
            return True
        if self.accept("false"):
            return False
        sign = -1 if self.accept("-") else 1
        kind, text = self.peek()
        if kind == "name" and text in ("inf", "nan"):
            self.pos += 1
            return sign * float(text)
        text = self.take("number", "a number")
        return sign * (int(text) if text.isdigit() and not as_float else float(text))

    # ---- graphs ------------------------------------------------------------------------------------------------------
    def graph(self, word: str) -> Graph:
        self.expect(word)
        name = self.word()
        outer = dict(self.values)
        self.expect("(")
        inputs = self.listed(")", self.parameter)
        self.expect("->")
        self.expect("(")
        ends = self.listed(")", self.end)
        self.expect("{")
        if self.accept("symbols"):
            while True:
                symbol = self.take("name", "a symbol")
                self.symbols.setdefault(symbol, Var(symbol, i64))
                if not self.accept(","):
                    break
        operations: list[Operation] = []
        while not self.accept("}"):
            op = self.statement()
            if op is not None:
                operations.append(op)
        for n, _, at in ends:
            if n not in self.values:
                self._complain(f"%{n} is not defined", at)
        outputs = [self.values[n] for n, _, _ in ends]
        self.values = outer
        return Graph(name, inputs, outputs, operations, [n if alias is None else alias for n, alias, _ in ends])

    def parameter(self) -> Value:
        name = self.name()
        self.expect(":")
        t = self.type()
        return self.define(name, Value(name, t, loc=self.loc()))

    def end(self) -> tuple[str, str | None, int]:
        at = self.tokens[self.pos][2]
        name = self.name()
        return name, self.string() if self.accept("as") else None, at

    def statement(self) -> Operation | None:
        names = []
        if self.peek()[0] == "value":
            names.append(self.name())
            while self.accept(","):
                names.append(self.name())
            self.expect("=")
        if self.accept("constant"):
            self.constant(names)
            return None
        return self.operation(names)

    def constant(self, names: list[str]) -> None:
        t = self.type()
        shape = t.sizes()
        if self.peek()[0] == "digest":
            key = self.take("digest", "a digest")
            data = self.data.get(key)
            if data is None:
                raise UserError("graph-constant-missing", f"the data of %{names[0]} ({key}) was not given")
            if digest(data) != key or data.shape != shape or data.dtype != t.dtype.numpy():
                raise UserError("graph-constant-mismatch", f"the data given for %{names[0]} is not that of {key}")
        else:
            self.expect("[")
            elements = self.listed("]", lambda: self.scalar(t.dtype.is_float))
            if len(elements) != int(np.prod(shape)):
                self.fail(f"{t} has {int(np.prod(shape))} elements, {len(elements)} are given")
            data = np.array(elements, dtype=np.float64 if t.dtype.is_float else None).astype(t.dtype.numpy())
            data = data.reshape(shape)
        self.define(names[0], Value(names[0], t, data, loc=self.loc()))

    def operation(self, names: list[str]) -> Operation:
        rec = OPS.get(self.take("name", "an operator"))
        self.expect("(")
        inputs = self.listed(")", self.use)
        attrs: dict[str, Any] = {}
        if self.accept("{"):
            while not self.accept("}"):
                if attrs:
                    self.expect(",")
                key = self.take("name", "an attribute")
                if key not in rec.attrs:
                    self.pos -= 1
                    self.fail(f"{rec.name} has no attribute {key!r}")
                self.expect("=")
                attrs[key] = self.attr(rec.attrs[key])
        for key, spec in rec.attrs.items():
            if key not in attrs and spec.default is ...:
                self.fail(f"{rec.name} needs the attribute {key!r}")
            attrs.setdefault(key, spec.default)
        self.expect(":")
        types = [self.type()] if names else []
        while len(types) < len(names):
            self.expect(",")
            types.append(self.type())
        loc, regions = self.loc(), []
        if self.accept("{"):
            while not self.accept("}"):
                regions.append(self.graph("region"))
        outs = [Value(n, t, loc=loc) for n, t in zip(names, types, strict=True)]
        op = Operation(rec.name, inputs, attrs, outs, regions, loc)
        for v, e in zip(outs, known_elements(rec, op), strict=True):
            v.elements = e
        for n, v in zip(names, outs, strict=True):
            self.define(n, v)
        return op


def _unquoted(raw: str) -> str:
    return raw[1:-1].replace('\\"', '"').encode("ascii", "backslashreplace").decode("unicode_escape")

