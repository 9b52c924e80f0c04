"""Printing loop IR: any node in, readable Python-like text out; `loop/parser.py` reads the text back exactly.

Names are hints, so printing makes them unique in the order in which they first appear. `canonical=True` replaces them
(v0, v1, … for variables, b0, b1, … for buffers) and tables of data by a digest: the text of alpha-equal programs is then
the same in every process and serves as a cache key. Names of programs and blocks stay: they are handles, not hints.

    program f(n: i64, A: f32[n, 4], B: f32[n]) {noalias=True}:
        for i in 0..n parallel:
            alloc acc: f32[1] local
            block sum(y: spatial n = i, k: reduce 4 = 0) if y < n:
                init:
                    acc[0] = 0.0
                body:
                    acc[0] = acc[0] + A[y, k]
            B[i] = acc[0]

Constants: `1` is i64, `1.5` is f32, `true` is bool; any other dtype is a suffix (`1:i32`, `-inf:f64`). A call whose
result is not of its first argument's dtype says which: `isnan:bool(x)`. A loop that does not start at 0 is `for i in
s..+extent`. A parameter that is a symbolic size says its span: `n: i64 size 8..512 times 8 like 128`, without an
upper end, a divisor or a usual value where there is none. `let` and `alloc` reach to the end of their suite, or over
an indented suite when they end in a colon.
"""
from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Any

from tilewright.core.dtype import DType, boolean, f32, i64
from tilewright.core.node import PRINTERS, Node, walk
from tilewright.loop import ir

IDENT = re.compile(r"[A-Za-z_]\w*(\.\w+)*\Z", re.ASCII)
KEYWORDS = frozenset((
    "program", "table", "for", "in", "while", "if", "elif", "else", "let", "alloc", "at", "block", "init", "body", "launch",
    "tasks", "grid", "assert", "pass", "seq", "tensor", "extern", "and", "or", "not", "true", "false", "nan", "inf"))
BUILTINS = frozenset(("min", "max", "select", "guard", "ramp", "broadcast"))
INFIX: dict[type, tuple[str, int]] = {
    ir.Or: ("or", 1), ir.And: ("and", 2), ir.Eq: ("==", 4), ir.Ne: ("!=", 4), ir.Lt: ("<", 4), ir.Le: ("<=", 4),
    ir.Add: ("+", 5), ir.Sub: ("-", 5), ir.Mul: ("*", 6), ir.Div: ("/", 6), ir.FloorDiv: ("//", 6), ir.FloorMod: ("%", 6)}
NOT, ATOM = 3, 8
_OPEN, _CLOSE = "\x01", "\x02"  # around the marked text, until the lines are joined
_ELIDE = 16


Names = dict[Node, str]
"""Variables and buffers by the names that they were given; kept from text to text, they stay the same."""


def print_program(p: ir.Program, *, canonical: bool = False, mark: Any = None, names: Names | None = None) -> str:
    """The text of a program. `mark` (a statement, expression, variable, buffer, or a block's name) is underlined; `names`
    are those to use, to which new ones are added."""
    return _Text(canonical, mark, names=names).finish(lambda t: t.module((p,)))


def print_module(m: ir.Module, *, mark: Any = None) -> str:
    """The text of a module: its constant tables, then its programs."""
    return _Text(False, mark).finish(lambda t: t.module(m.programs))


def print_stmt(s: ir.Stmt, *, mark: Any = None) -> str:
    """The text of a statement; variables defined outside it appear by name only."""
    return _Text(False, mark).finish(lambda t: t.suite(s, ""))


def print_expr(e: ir.Expr, *, names: Names | None = None) -> str:
    """The text of an expression; variables appear by name only."""
    return _Text(False, None, names=names).expr(e)


def print_around(p: ir.Program | ir.Module, mark: Any, context: int = 8) -> str:
    """The marked place in a program with some lines around it, for error messages; the whole if the mark is not in it."""
    whole = print_module(p, mark=mark) if isinstance(p, ir.Module) else print_program(p, mark=mark)
    lines = whole.split("\n")
    hits = [k for k, line in enumerate(lines) if line.strip(" ^") == "" and "^" in line]
    if not hits:
        return whole
    lo, hi = max(0, hits[0] - context), min(len(lines), hits[-1] + context + 1)
    return "\n".join([*(["…"] if lo else []), *lines[lo:hi], *(["…"] if hi < len(lines) else [])])


def digest(values: Iterable[Any]) -> str:
    """A short digest of a table of numbers, stable between processes."""
    h = hashlib.sha256()
    for v in values:
        h.update(f"{plain(v)!r},".encode())
    return h.hexdigest()[:32]


def plain(v: Any) -> Any:
    """A NumPy scalar as the Python number; anything else as it is."""
    return v.item() if hasattr(v, "item") else v


def constant(value: Any, t: DType) -> str:
    """A constant with as much of its dtype as is needed to read it back."""
    if t is boolean:
        return "true" if value else "false"
    text = repr(plain(value))
    natural = f32 if isinstance(value, float) else i64
    return text if t is natural else f"{text}:{t}"


def word(name: str) -> str:
    """A handle (name of a program, block, callee, attribute): bare if it is an identifier, else quoted."""
    return name if IDENT.match(name) and name not in KEYWORDS else _quoted(name)


def _quoted(s: str) -> str:
    return '"' + s.encode("unicode_escape").decode("ascii").replace('"', '\\"') + '"'


def _data(v: Any) -> str:
    """Plain data of an attribute."""
    if isinstance(v, str):
        return _quoted(v)
    if isinstance(v, tuple):
        return "(" + ", ".join(map(_data, v)) + ("," if len(v) == 1 else "") + ")"
    if isinstance(v, DType):
        return f"dtype {v}"
    return repr(plain(v))


class _Text:
    """One printing: the names given so far, what to mark, the lines."""

    def __init__(self, canonical: bool, mark: Any, elide: bool = False, names: Names | None = None) -> None:
        self.canonical, self.mark, self.elide = canonical, mark, elide or mark is not None
        self.kept = names is not None
        self.names: Names = {} if names is None else names
        self.used: set[str] = {*KEYWORDS, *self.names.values()}
        self.count = {"v": 0, "b": 0}
        self.lines: list[str] = []

    def finish(self, write: Callable[[_Text], None]) -> str:
        write(self)
        if self.mark is None:
            return "\n".join(self.lines)
        out: list[str] = []
        for line in self.lines:
            out.append(line.replace(_OPEN, "").replace(_CLOSE, ""))
            if _OPEN in line:
                out.append(_underline(line))
        return "\n".join(out)

    # -- names
    def name(self, n: ir.Var | ir.Buffer) -> str:
        got = self.names.get(n)
        if got is None:
            got = self.names[n] = self._fresh(n)
            self.used.add(got)
        return got

    def _fresh(self, n: ir.Var | ir.Buffer) -> str:
        if self.canonical:
            letter = "v" if isinstance(n, ir.Var) else "b"
            self.count[letter] += 1
            return f"{letter}{self.count[letter] - 1}"
        hint = re.sub(r"[^A-Za-z0-9_.]", "_", n.name)
        if not IDENT.match(hint):
            hint = "v" + hint.replace(".", "_")
        name, k = hint, 0
        while name in self.used:
            k = self.count[hint] = self.count.get(hint, 0) + 1
            name = f"{hint}_{k}"
        return name

    def marked(self, text: str, *nodes: Any) -> str:
        if self.mark is None or not any(n is self.mark for n in nodes):
            return text
        return _OPEN + text + _CLOSE

    # -- expressions
    def expr(self, e: ir.Expr, level: int = 0) -> str:
        """The text of `e`, in parentheses if it binds less tightly than `level`."""
        cls = type(e)
        if cls in INFIX:
            text, mine = self._infix(e), INFIX[cls][1]
        elif cls is ir.Not:
            text, mine = f"not {self.expr(e.a, NOT)}", NOT  # type: ignore[attr-defined]
        else:
            text, mine = _ATOMS[cls](self, e), ATOM
        if mine < level:
            text = f"({text})"
        return text if cls is ir.Var else self.marked(text, e)  # a variable is marked where it is defined

    def _infix(self, e: Any) -> str:
        """A left-leaning chain of operators is walked by a loop: sums of thousands of terms occur."""
        spine = [e]
        while type(spine[-1].a) in INFIX:
            spine.append(spine[-1].a)
        text = self.expr(spine[-1].a, _left_level(spine[-1]))
        for k in range(len(spine) - 1, -1, -1):
            n = spine[k]
            op, mine = INFIX[type(n)]
            text = f"{text} {op} {self.expr(n.b, mine + 1)}"
            if k > 0:
                text = self.marked(f"({text})" if mine < _left_level(spine[k - 1]) else text, n)
        return text

    def exprs(self, es: Iterable[ir.Expr]) -> str:
        return ", ".join([self.expr(e) for e in es])

    # -- buffers and attributes
    def buffer(self, b: ir.Buffer, name: str | None = None) -> str:
        """A buffer's definition, without its name's uses: `A: f32[n, 4] local strides[8, 1] packing 2 data (…)`."""
        text = f"{name or self.name(b)}: {b.dtype}[{self.exprs(b.shape)}]"
        if b.scope != "global":
            text += f" {b.scope}"
        if b.strides is not None:
            text += f" strides[{self.exprs(b.strides)}]"
        if b.packing != 1:
            text += f" packing {b.packing}"
        if b.data is not None:
            if self.canonical or self.elide and len(b.data) > _ELIDE:
                text += f" data <{len(b.data)} values, {digest(b.data)}>"
            else:
                text += f" data {_data(b.data)}"
        return text

    def attrs(self, attrs: tuple[tuple[str, Any], ...]) -> str:
        if not attrs:
            return ""
        return " {" + ", ".join([f"{word(k)}={_data(v)}" for k, v in attrs]) + "}"

    # -- statements
    def line(self, indent: str, text: str, *nodes: Any) -> None:
        self.lines.append(indent + self.marked(text, *nodes))

    def suite(self, s: ir.Stmt, indent: str) -> None:
        """The statements of a body, one or more lines each."""
        if not isinstance(s, ir.Seq):
            self.stmt(s, indent, True)
        elif not s.stmts:
            self.line(indent, "pass", s)
        elif len(s.stmts) == 1:
            self.stmt(s, indent, True)
        else:
            for k, t in enumerate(s.stmts):
                self.stmt(t, indent, k == len(s.stmts) - 1)

    def stmt(self, s: ir.Stmt, indent: str, last: bool) -> None:
        """One statement; `last` in its suite, so that the body of a `let` or `alloc` may follow without indentation."""
        _STMTS[type(s)](self, s, indent, last)

    def _scoped(self, text: str, s: Any, definition: Any, indent: str, last: bool) -> None:
        if last:
            self.line(indent, text, s, definition)
            self.suite(s.body, indent)
        else:
            self.line(indent, text + ":", s, definition)
            self.suite(s.body, indent + "    ")

    def _let(self, s: ir.Let, indent: str, last: bool) -> None:
        value = self.expr(s.value)
        type_ = "" if s.var.dtype is s.value.dtype else f": {s.var.dtype}"
        self._scoped(f"let {self.name(s.var)}{type_} = {value}", s, s.var, indent, last)

    def _allocate(self, s: ir.Allocate, indent: str, last: bool) -> None:
        at = "" if s.offset is None else f" at {self.expr(s.offset)}"
        self._scoped(f"alloc {self.buffer(s.buffer)}{at}", s, s.buffer, indent, last)

    def _for(self, s: ir.For, indent: str, last: bool) -> None:
        start = self.expr(s.start)
        plus = "" if isinstance(s.start, ir.Const) and s.start.value == 0 else "+"
        extent = self.expr(s.extent)
        type_ = "" if s.var.dtype is i64 else f": {s.var.dtype}"
        kind = "" if s.kind == "serial" else f" {s.kind}"
        text = f"for {self.name(s.var)}{type_} in {start}..{plus}{extent}{kind}{self.attrs(s.attrs)}:"
        self.line(indent, text, s, s.var)
        self.suite(s.body, indent + "    ")

    def _if(self, s: ir.If, indent: str, last: bool, keyword: str = "if") -> None:
        self.line(indent, f"{keyword} {self.expr(s.cond)}:", s)
        self.suite(s.then, indent + "    ")
        if isinstance(s.otherwise, ir.If):
            self._if(s.otherwise, indent, last, "elif")
        elif s.otherwise is not None:
            self.line(indent, "else:")
            self.suite(s.otherwise, indent + "    ")

    def _while(self, s: ir.While, indent: str, last: bool) -> None:
        self.line(indent, f"while {self.expr(s.cond)}:", s)
        self.suite(s.body, indent + "    ")

    def _block(self, s: ir.Block, indent: str, last: bool) -> None:
        iters = []
        for k, it in enumerate(s.iters):
            value = self.expr(s.bindings[k]) if k < len(s.bindings) else "?"
            type_ = "" if it.var.dtype is i64 else f"{it.var.dtype} "
            text = f"{self.name(it.var)}: {type_}{it.kind} {self.expr(it.extent)} = {value}"
            iters.append(self.marked(text, it, it.var))
        pred = s.predicate
        always = isinstance(pred, ir.Const) and pred.value is True
        cond = "" if always else f" if {self.expr(pred)}"
        text = f"block {word(s.name)}({', '.join(iters)}){cond}{self.attrs(s.attrs)}:"
        self.line(indent, text, s, *([self.mark] if isinstance(self.mark, str) and self.mark == s.name else []))
        indent += "    "
        if s.init is None:
            self.suite(s.body, indent)
            return
        self.line(indent, "init:")
        self.suite(s.init, indent + "    ")
        self.line(indent, "body:")
        self.suite(s.body, indent + "    ")

    def _seq(self, s: ir.Seq, indent: str, last: bool) -> None:
        """A sequence within a sequence, or of one statement: rare, but printing must be exact."""
        self.line(indent, "seq:", s)
        for k, t in enumerate(s.stmts):
            self.stmt(t, indent + "    ", k == len(s.stmts) - 1)
        if not s.stmts:
            self.line(indent + "    ", "pass")

    def _store(self, s: ir.Store, indent: str, last: bool) -> None:
        self.line(indent, f"{self.name(s.buffer)}[{self.exprs(s.indices)}] = {self.expr(s.value)}", s)

    def _evaluate(self, s: ir.Evaluate, indent: str, last: bool) -> None:
        self.line(indent, self.expr(s.value), s)

    def _launch(self, s: ir.Launch, indent: str, last: bool) -> None:
        tasks = "" if s.tasks is None else f" tasks {self.expr(s.tasks)}"
        grid = f" grid ({self.exprs(s.grid)})" if s.grid else ""
        self.line(indent, f"launch {word(s.callee)}({self.exprs(s.args)}){tasks}{grid}", s)

    def _tensor_call(self, s: ir.TensorCall, indent: str, last: bool) -> None:
        self.line(indent, f"tensor {word(s.name)}({self.exprs(s.tiles)}):", s)
        self.suite(s.body, indent + "    ")

    def _extern_call(self, s: ir.ExternCall, indent: str, last: bool) -> None:
        args = ", ".join([f"&{self.expr(a)}" if isinstance(a, ir.Load) else self.expr(a) for a in s.args])
        self.line(indent, f"extern {word(s.symbol)}({args}){' status' if s.status else ''}:", s)
        self.suite(s.body, indent + "    ")

    def _assert(self, s: ir.Assert, indent: str, last: bool) -> None:
        values = f", ({self.exprs(s.values)})" if s.values else ""
        self.line(indent, f"assert {self.expr(s.cond)}, {s.code}, {_quoted(s.message)}{values}", s)

    # -- programs
    def program(self, p: ir.Program) -> None:
        params = [self.marked(self.buffer(q) if isinstance(q, ir.Buffer) else self.scalar(q), q) for q in p.params]
        self.line("", f"program {word(p.name)}({', '.join(params)}){self.attrs(p.attrs)}:", p)
        self.suite(p.body, "    ")

    def scalar(self, v: ir.Var) -> str:
        """A scalar parameter's definition."""
        s = v.span
        known = ""
        if s is not None:
            multiple = "" if s.multiple == 1 else f" times {s.multiple}"
            hint = "" if s.hint is None else f" like {s.hint}"
            known = f" size {s.least}..{'' if s.most is None else s.most}{multiple}{hint}"
        return f"{self.name(v)}: {v.dtype}{known}"

    def module(self, programs: tuple[ir.Program, ...]) -> None:
        """Tables (buffers with data that no program defines) come first; then names are per program."""
        for t in free_tables(programs):
            self.line("", f"table {self.buffer(t)}", t)
        names, used, count = self.names, self.used, self.count
        for k, p in enumerate(programs):
            if self.lines and (k or names):
                self.lines.append("")
            if not self.kept:
                self.names, self.used, self.count = dict(names), set(used), dict(count)
            self.program(p)


def free_tables(programs: Iterable[ir.Program]) -> list[ir.Buffer]:
    """Buffers with data that are used but not defined in any program, in order of first use."""
    found: dict[ir.Buffer, None] = {}
    bound: set[Node] = set()
    for p in programs:
        bound.update(p.params)
        for n in walk(p):
            if isinstance(n, ir.Allocate):
                bound.add(n.buffer)
            elif isinstance(n, ir.Buffer) and n.data is not None:
                found[n] = None
    return [b for b in found if b not in bound]


def _left_level(parent: Any) -> int:
    """How tightly a left operand must bind; comparisons do not chain."""
    mine = INFIX[type(parent)][1]
    return mine + 1 if isinstance(parent, ir.Compare) else mine


def _underline(line: str) -> str:
    out, depth = "", 0
    for c in line:
        if c == _OPEN:
            depth += 1
        elif c == _CLOSE:
            depth -= 1
        else:
            out += "^" if depth else " "
    return out.rstrip()


def _call(t: _Text, e: ir.Call) -> str:
    bare = IDENT.match(e.name) and e.name not in KEYWORDS
    name = e.name if bare else _quoted(e.name)
    if not e.args or e.args[0].dtype is not e.type or e.name in BUILTINS or _is_dtype(e.name) or not bare:
        name += f":{e.type}"
    return f"{name}({t.exprs(e.args)})"


_DTYPE = re.compile(r"(f64|f32|f16|bf16|f8\w+|f4\w+|[iu](64|32|16|8|4|2)|bool|handle)(x\d+)?\Z")


def _is_dtype(name: str) -> bool:
    return _DTYPE.match(name) is not None


_ATOMS: dict[type, Callable[[_Text, Any], str]] = {
    ir.Const: lambda t, e: constant(e.value, e.type),
    ir.Var: lambda t, e: t.name(e),
    ir.Load: lambda t, e: f"{t.name(e.buffer)}[{t.exprs(e.indices)}]",
    ir.Address: lambda t, e: f"&{t.name(e.buffer)}[{t.exprs(e.indices)}]",
    ir.Min: lambda t, e: f"min({t.expr(e.a)}, {t.expr(e.b)})",
    ir.Max: lambda t, e: f"max({t.expr(e.a)}, {t.expr(e.b)})",
    ir.Select: lambda t, e: f"select({t.expr(e.cond)}, {t.expr(e.a)}, {t.expr(e.b)})",
    ir.Guard: lambda t, e: f"guard({t.expr(e.cond)}, {t.expr(e.a)}, {t.expr(e.b)})",
    ir.Cast: lambda t, e: f"{e.type}({t.expr(e.a)})",
    ir.Ramp: lambda t, e: f"ramp({t.expr(e.base)}, {t.expr(e.stride)}, {e.lanes})",
    ir.Broadcast: lambda t, e: f"broadcast({t.expr(e.a)}, {e.lanes})",
    ir.Call: _call,
}
_STMTS: dict[type, Callable[[_Text, Any, str, bool], None]] = {
    ir.Store: _Text._store, ir.Evaluate: _Text._evaluate, ir.Seq: _Text._seq, ir.For: _Text._for, ir.If: _Text._if,
    ir.While: _Text._while, ir.Let: _Text._let, ir.Allocate: _Text._allocate, ir.Block: _Text._block,
    ir.Launch: _Text._launch, ir.Assert: _Text._assert, ir.TensorCall: _Text._tensor_call,
    ir.ExternCall: _Text._extern_call}


def _shown(write: Callable[[_Text, Any], Any]) -> Callable[[Any], str]:
    """`repr` of a node: the full text, but long tables of data as digests."""
    def show(n: Any) -> str:
        t = _Text(False, None, elide=True)
        got = write(t, n)
        return got if isinstance(got, str) else "\n".join(t.lines)
    return show


PRINTERS[ir.Expr] = _shown(lambda t, n: t.expr(n))
PRINTERS[ir.Stmt] = _shown(lambda t, n: t.suite(n, ""))
PRINTERS[ir.Program] = _shown(lambda t, n: t.module((n,)))
PRINTERS[ir.Module] = _shown(lambda t, n: t.module(n.programs))
PRINTERS[ir.Buffer] = _shown(lambda t, n: t.buffer(n))
