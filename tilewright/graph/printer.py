"""Printing graphs: readable text that `graph/parser.py` reads back exactly.

    graph main(%x: f32[batch, 64]) -> (%y) {
      symbols batch
      %w = constant f32[64, 10] sha256:3f0c91aa5e7d2b46
      %axes = constant i64[1] [1]
      %y = matmul(%x, %w) {transpose_b=false, out=none} : f32[batch, 10] @ "fc1"
    }

Constants of at most 16 elements stand in the text. Larger ones are named by a digest of type, shape and bytes; their data
is kept in a side table (`print_with_data`). Names of values and symbols are made unique in order of appearance. A region
is a graph of its own within braces after its operation; it sees the names around it.
"""
from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from tilewright.core.dtype import DType
from tilewright.graph.ir import Graph, Operation, TensorType, Value, used_values
from tilewright.graph.registry import Array
from tilewright.loop.ir import Const, Expr, Var
from tilewright.loop.printer import print_expr
from tilewright.loop.substitute import free_vars, substitute

INLINE = 16
_PLAIN = re.compile(r"[A-Za-z_][\w]*\Z", re.ASCII)


def print_graph(graph: Graph) -> str:
    """The text of a graph."""
    return print_with_data(graph)[0]


def print_with_data(graph: Graph) -> tuple[str, dict[str, Array]]:
    """The text, and the large constants by digest."""
    printer = _Printer()
    printer.graph(graph, "", "graph")
    return "\n".join(printer.lines) + "\n", printer.data


def digest(array: Array) -> str:
    """Names a constant by its type, shape and bytes."""
    a = np.ascontiguousarray(array)
    h = hashlib.sha256(f"{a.dtype.name}{array.shape}".encode())
    h.update(a.reshape(-1).view(np.uint8).data)
    return f"sha256:{h.hexdigest()[:16]}"


def quoted(text: str) -> str:
    return '"' + text.encode("unicode_escape").decode("ascii").replace('"', '\\"') + '"'


class _Printer:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.data: dict[str, Array] = {}
        self.names: dict[Value, str] = {}
        self.symbols: dict[Var, Var] = {}
        self.taken: set[str] = set()
        self.defined: set[Value] = set()

    # ---- names -------------------------------------------------------------------------------------------------------
    def value(self, v: Value | None) -> str:
        if v is None:
            return "-"
        if v not in self.names:
            self.names[v] = self._unique(v.name)
        name = self.names[v]
        return f"%{name}" if _PLAIN.match(name) else f"%{quoted(name)}"

    def _unique(self, name: str, space: str = "%") -> str:
        trial, n = name, 0
        while space + trial in self.taken:
            n += 1
            trial = f"{name}_{n}"
        self.taken.add(space + trial)
        return trial

    def dim(self, d: Expr) -> str:
        for v in free_vars(d):
            if v not in self.symbols:
                plain = re.sub(r"\W", "_", v.name)
                plain = plain if _PLAIN.match(plain) else f"s_{plain}"
                self.symbols[v] = Var(self._unique(plain, ""), v.type)
        return print_expr(d if isinstance(d, Const) else substitute(d, self.symbols))

    def type(self, t: TensorType) -> str:
        return f"{t.dtype}[{', '.join([self.dim(d) for d in t.shape])}]"

    # ---- parts -------------------------------------------------------------------------------------------------------
    def graph(self, g: Graph, indent: str, word: str) -> None:
        params = ", ".join([f"{self.value(v)}: {self.type(v.type)}{self.loc(v.loc)}" for v in g.inputs])
        head, inner = len(self.lines), indent + "  "
        known = set(self.symbols) if word == "region" else set()
        self.lines.append("")
        for op in g.operations:
            self.operation(op, inner)
        for v in g.outputs:
            self.constant(v, inner)
        outs = ", ".join([self.value(v) + ("" if n == self.names[v] else f" as {quoted(n)}")
                          for v, n in zip(g.outputs, g.output_names, strict=True)])
        self.lines[head] = f"{indent}{word} {self.name(g.name)}({params}) -> ({outs}) {{"
        new = [s.name for v, s in self.symbols.items() if v not in known]
        if new and word == "graph":
            self.lines.insert(head + 1, f"{inner}symbols {', '.join(new)}")
        self.lines.append(f"{indent}}}")

    def name(self, name: str) -> str:
        return name if _PLAIN.match(name) else quoted(name)

    def loc(self, loc: str) -> str:
        return f" @ {quoted(loc)}" if loc else ""

    def constant(self, v: Value, indent: str) -> None:
        """The definition of a constant, in front of its first use."""
        if v.data is None or v in self.defined:
            return
        self.defined.add(v)
        if v.data.size <= INLINE:
            what = f"[{', '.join([number(x, v.dtype) for x in v.data.ravel()])}]"
        else:
            what = digest(v.data)
            self.data[what] = v.data
        self.lines.append(f"{indent}{self.value(v)} = constant {self.type(v.type)} {what}{self.loc(v.loc)}")

    def operation(self, op: Operation, indent: str) -> None:
        for v in _in_order(op):
            self.constant(v, indent)
        args = ", ".join([self.value(v) for v in op.inputs])
        attrs = ", ".join([f"{k}={self.attr(x)}" for k, x in op.attrs.items()])
        braces = f" {{{attrs}}}" if attrs else ""
        outs = ", ".join([self.value(v) for v in op.outputs])
        types = ", ".join([self.type(v.type) for v in op.outputs])
        equals = f"{outs} = " if outs else ""
        self.lines.append(f"{indent}{equals}{op.op}({args}){braces} : {types}{self.loc(op.loc)}"
                          + (" {" if op.regions else ""))
        for r in op.regions:
            self.graph(r, indent + "  ", "region")
        if op.regions:
            self.lines.append(f"{indent}}}")

    def attr(self, x: Any) -> str:
        if x is None:
            return "none"
        if isinstance(x, bool):
            return "true" if x else "false"
        if isinstance(x, Expr):
            return self.dim(x)
        if isinstance(x, DType):
            return str(x)
        if isinstance(x, str):
            return quoted(x)
        if isinstance(x, tuple):
            return f"[{', '.join([self.attr(e) for e in x])}]"
        return repr(x)


def number(x: Any, t: DType) -> str:
    """One element, exactly."""
    if t.is_bool:
        return "true" if x else "false"
    return repr(float(x)) if t.is_float else str(int(x))


def _in_order(op: Operation) -> Iterator[Value]:
    """Constants that an operation needs; those of its regions stand in front of it too."""
    for v in used_values(op):
        if v.is_constant:
            yield v
