"""Parsing loop IR, the tokens: text with its indentation made explicit, and a cursor over them that reads words and numbers.

In: the text of a module, program or expression. Out: tokens in turn; UserError "loop-syntax" with line and column where
what is expected is not there.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from tilewright.core.dtype import DType, dtype
from tilewright.core.errors import UserError

_TOKEN = re.compile(r"""
    (?P<space>[ ]+) | (?P<comment>\#.*)
  | (?P<number>(\d+\.\d+([eE][+-]?\d+)?|\d+[eE][+-]?\d+|\d+|(inf|nan)(?![\w.]))(:[a-z]\w*)?)
  | (?P<name>[A-Za-z_]\w*(\.\w+)*(:[a-z]\w*(?=\())?)
  | (?P<string>"([^"\\]|\\.)*"(:[a-z]\w*(?=\())?)
  | (?P<op>\.\.|==|!=|<=|>=|//|[-+*/%<>=()\[\]{},:&])
""", re.VERBOSE | re.ASCII)


@dataclass(frozen=True)
class Token:
    kind: str  # "number", "name", "string", "op", "newline", "indent", "dedent", "end"
    text: str
    line: int
    column: int


def tokens_of(text: str) -> Iterator[Token]:
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
                yield Token("indent", "", number, indent + 1)
            while indent < levels[-1]:
                levels.pop()
                yield Token("dedent", "", number, indent + 1)
            if indent != levels[-1]:
                _complain("this line's indentation matches no line before it", number, indent + 1, line)
        at = 0
        while at < len(line):
            m = _TOKEN.match(line, at)
            if m is None:
                _complain(f"unexpected character {line[at]!r}", number, at + 1, line)
            if m.lastgroup is not None and m.lastgroup not in ("space", "comment"):
                depth += (m[0] in "([{") - (m[0] in ")]}") if m.lastgroup == "op" else 0
                yield Token(m.lastgroup, m[0], number, at + 1)
            at = m.end()
        if depth <= 0:
            depth = 0
            yield Token("newline", "", number, len(line) + 1)
    yield from [Token("dedent", "", number + 1, 1)] * (len(levels) - 1)
    yield Token("end", "", number + 1, 1)


def _complain(message: str, line: int, column: int, source: str) -> NoReturn:
    raise UserError("loop-syntax", message, where=f"line {line}, column {column}\n    {source}\n    {' ' * (column - 1)}^")


class Cursor:
    """A place among the tokens of a text."""

    def __init__(self, text: str) -> None:
        self.source = text.split("\n")
        self.tokens = list(tokens_of(text))
        self.pos = 0

    # -- tokens
    @property
    def here(self) -> Token:
        return self.tokens[self.pos]

    def fail(self, message: str, at: Token | None = None) -> NoReturn:
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

    # -- words and numbers
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

    def _dtype(self, name: str, at: Token) -> DType:
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
