"""A concrete step at which a refused edit would go wrong, for its error: found by running the accesses of small programs.

In: the program before an edit and the one after it. Out: a sentence that names instances and an element, "" where none was
found: nothing is wrong, or not within the first LIMIT accesses, or what is accessed depends on data. Instances of blocks
are told apart by the values of their iteration variables, which moving a block does not change. Nobody looks at values:
only at who wrote an element last. Symbolic sizes get a small value.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tilewright.core.errors import InternalError
from tilewright.core.node import walk
from tilewright.loop import ir
from tilewright.loop.substitute import substitute
from tilewright.tensor.schedule.state import blocks

LIMIT = 40_000
"""Accesses that are looked at."""
SIZE = 5
"""What a symbolic size is taken for, if it may be that."""
Key = tuple[str, tuple[int, ...]]


class Unknown(Exception):
    """What is accessed depends on data."""


@dataclass(frozen=True)
class Access:
    """One access: to an element of a buffer, by an instance of a block."""
    writes: bool
    buffer: str
    element: tuple[int, ...]
    block: str
    variables: tuple[str, ...]
    point: tuple[int, ...]

    @property
    def where(self) -> Key:
        return self.buffer, self.element

    @property
    def who(self) -> Key:
        return self.block, self.point

    @property
    def name(self) -> str:
        return f"{self.buffer}[{', '.join(map(str, self.element))}]"

    @property
    def instance(self) -> str:
        """The instance as text: block C(i = 0, j = 1)."""
        values = ", ".join(f"{n} = {v}" for n, v in zip(self.variables, self.point, strict=True))
        return f"block {self.block}({values})" if values else f"block {self.block}"


def counterexample(before: ir.Program, after: ir.Program) -> str:
    """A step at which `after`, an edit of `before`, does something else."""
    try:
        sizes = _sizes(after)
        new, whole = _first(substitute(after, sizes))
        old, all_of_old = _first(substitute(before, sizes))
    except (Unknown, InternalError):
        return ""
    found = _too_early(after, old, new)
    if not found and whole and all_of_old:
        found = _other_source(old, new) or _lost(before, old, new)
    given = ", ".join(f"{v.name} = {n.value}" for v, n in sizes.items())
    return f"for {given}, {found}" if found and given else found


def other_writer(program: ir.Program, block: str) -> str:
    """A read of what `block` writes, of an element that another block wrote last, or nobody."""
    try:
        sizes = _sizes(program)
        found, whole = _first(substitute(program, sizes))
    except (Unknown, InternalError):
        return ""
    buffers = {a.buffer for a in found if a.writes and a.block == block}
    for a, w in _sources(found).values():
        if a.buffer in buffers and a.block != block and (w is None and whole or w is not None and w.block != block):
            return f"{a.instance} reads {a.name}, which {'nobody' if w is None else w.instance} wrote{' last' if w else ''}"
    return ""


# ---- what is wrong -----------------------------------------------------------------------------------------------------
def _too_early(program: ir.Program, old: Sequence[Access], new: Sequence[Access]) -> str:
    """A read of an element before it is written, or before all of its updates."""
    params = {p.name for p in program.params if isinstance(p, ir.Buffer)}
    written = {a.buffer for a in new if a.writes}
    updates = {b.name: _updates(b) for b in blocks(program)}
    sources = _sources(old)
    final = {a.where: a for a in new if a.writes}
    count: dict[Key, int] = {}
    last: dict[Key, Access] = {}
    for k, a in enumerate(new):
        if a.writes:
            count[a.where] = count.get(a.where, 0) + 1 if a.where in last and last[a.where].block == a.block else 1
            last[a.where] = a
            continue
        source = last.get(a.where)
        if source is None:
            known, made = (a.who, a.where) in sources, sources.get((a.who, a.where), (a, None))[1] is not None
            if a.buffer in params or known and not made:
                continue  # an input, or as undefined as it was
            if a.where in final and final[a.where].who != a.who:
                later = next(x for x in islice(new, k, None) if x.writes and x.where == a.where)
                return f"{a.instance} reads {a.name}, which {later.instance} writes only later"
            if a.buffer in written and made:
                return f"{a.instance} reads {a.name}, which nobody has written"
            continue
        total = updates.get(source.block)
        if source.block != a.block and total is not None and count[a.where] < total:
            return f"{a.instance} reads {a.name} after {count[a.where] - 1} of the {total - 1} steps that make it"
    return ""


def _updates(b: ir.Block) -> int | None:
    """How often an element is written by a block, where that is plain to see: a reduction without conditions."""
    if b.init is None or b.predicate != ir.TRUE:
        return None
    total = 1
    for i in b.iters:
        n = ir.as_int(i.extent)
        if i.kind == "reduce":
            if n is None:
                return None
            total *= n
    return total + 1  # its first value


def _other_source(old: Sequence[Access], new: Sequence[Access]) -> str:
    """A read that finds what another instance wrote."""
    sources = _sources(old)
    for key, (a, w) in _sources(new).items():
        v = sources[key][1] if key in sources else None
        if v is not None and w is not None and v.who not in (w.who, a.who):  # its own: a first value, which may move
            return f"{a.instance} reads {a.name} as {w.instance} left it, not as {v.instance} did"
    return ""


def _sources(found: Sequence[Access]) -> dict[tuple[Key, Key], tuple[Access, Access | None]]:
    """Per instance and element that it reads first: the read, and who wrote the element last."""
    out: dict[tuple[Key, Key], tuple[Access, Access | None]] = {}
    last: dict[Key, Access] = {}
    for a in found:
        if a.writes:
            last[a.where] = a
        else:
            out.setdefault((a.who, a.where), (a, last.get(a.where)))
    return out


def _lost(before: ir.Program, old: Sequence[Access], new: Sequence[Access]) -> str:
    """An element of an output that would not be written."""
    params = {p.name for p in before.params if isinstance(p, ir.Buffer)}
    written = {a.where for a in new if a.writes}
    lost = next((a for a in old if a.writes and a.buffer in params and a.where not in written), None)
    return "" if lost is None else f"{lost.name} would not be written"


# ---- running the accesses ----------------------------------------------------------------------------------------------
def _sizes(program: ir.Program) -> dict[ir.Var, ir.Const]:
    """A small value for every symbolic size. Raises Unknown for other scalars that indices may depend on."""
    out = {}
    for p in program.params:
        if isinstance(p, ir.Var) and p.dtype.is_int:
            span = p.span or ir.Span()
            n = next((n for n in (SIZE, *range(span.least, span.least + 64)) if n in span), None)
            if n is None:
                raise Unknown
            out[p] = ir.Const(n, p.dtype)
    return out


def _first(program: ir.Program) -> tuple[list[Access], bool]:
    """The first accesses of a run, and whether they are all."""
    found = list(islice(_run(program), LIMIT + 1))
    return found[:LIMIT], len(found) <= LIMIT


def _run(program: ir.Program) -> Iterator[Access]:
    text = _Text(program)
    scope: dict[str, Any] = {"Access": Access, "names": text.names}
    exec(compile("\n".join(["def run():", " yield from ()", *text.lines]), "accesses", "exec"), scope)
    try:
        yield from scope["run"]()
    except TypeError as e:  # a variable that stands for data
        raise Unknown from e


class _Text:
    """A program's accesses as a Python generator."""

    def __init__(self, program: ir.Program) -> None:
        self.lines: list[str] = []
        self.names: list[Any] = []
        self.variables: dict[ir.Var, str] = {}
        self.block: ir.Block | None = None
        self.stmt(program.body, 1)

    def line(self, depth: int, text: str) -> None:
        self.lines.append(" " * depth + text)

    def define(self, v: ir.Var) -> str:
        return self.variables.setdefault(v, f"v{len(self.variables)}")

    def stmt(self, s: ir.Stmt, depth: int) -> None:
        match s:
            case ir.Seq(stmts):
                for t in stmts:
                    self.stmt(t, depth)
            case ir.For():
                start = self.value(s.start)
                self.line(depth, f"for {self.define(s.var)} in range({start}, {start} + {self.value(s.extent)}):")
                self.body(s.body, depth)
            case ir.Block():
                self.run(s, depth)
            case ir.If(cond, then, otherwise):
                self.line(depth, f"if {self.value(cond)}:")
                self.body(then, depth)
                if otherwise is not None:
                    self.line(depth, "else:")
                    self.body(otherwise, depth)
            case ir.Let(var, value, body):
                self.reads(value, depth)
                data = any(isinstance(n, ir.Load | ir.Call) for n in walk(value)) or not var.dtype.is_int
                self.line(depth, f"{self.define(var)} = {'None' if data else self.value(value)}")
                self.stmt(body, depth)
            case ir.Allocate(_, body):
                self.stmt(body, depth)
            case ir.Store(buffer, indices, value):
                self.reads(value, depth)
                self.access(True, buffer, indices, depth)
            case ir.Evaluate(ir.Call("prefetch")):
                pass
            case ir.ExternCall(_, _, body) | ir.TensorCall(_, _, body):
                self.stmt(body, depth)
            case ir.Evaluate(value):
                self.reads(value, depth)
            case _:
                raise Unknown

    def body(self, s: ir.Stmt, depth: int) -> None:
        self.line(depth + 1, "pass")
        self.stmt(s, depth + 1)

    def run(self, b: ir.Block, depth: int) -> None:
        values = [self.value(e) for e in b.bindings]
        for i, v in zip(b.iters, values, strict=True):
            self.line(depth, f"{self.define(i.var)} = {v}")
        self.line(depth, f"if {self.value(b.predicate)}:")
        self.block = b
        if b.init is not None:
            first = " and ".join([f"{self.variables[i.var]} == 0" for i in b.iters if i.kind == "reduce"] or ["True"])
            self.line(depth + 1, f"if {first}:")
            self.body(b.init, depth + 1)
        self.body(b.body, depth)
        self.block = None

    def reads(self, e: ir.Expr, depth: int) -> None:
        """Every load that the expression surely runs; a guard's chosen side only."""
        if isinstance(e, ir.Guard):
            self.reads(e.cond, depth)
            self.line(depth, f"if {self.value(e.cond)}:")
            self.line(depth + 1, "pass")
            self.reads(e.a, depth + 1)
            self.line(depth, "else:")
            self.line(depth + 1, "pass")
            self.reads(e.b, depth + 1)
            return
        for c in e.children():
            if isinstance(c, ir.Expr):
                self.reads(c, depth)
        if isinstance(e, ir.Load) and e.buffer.data is None:
            self.access(False, e.buffer, e.indices, depth)

    def access(self, writes: bool, buffer: ir.Buffer, indices: Sequence[ir.Expr], depth: int) -> None:
        assert self.block is not None
        self.names.append((buffer.name, self.block.name, tuple([i.var.name for i in self.block.iters])))
        k = len(self.names) - 1

        def many(found: Sequence[str]) -> str:
            return f"({', '.join(found)}{',' if len(found) == 1 else ''})"
        element, point = many([self.value(i) for i in indices]), many([self.variables[i.var] for i in self.block.iters])
        self.line(depth, f"yield Access({writes}, names[{k}][0], {element}, *names[{k}][1:], {point})")

    def value(self, e: ir.Expr) -> str:
        """An integer or a truth as Python."""
        match e:
            case ir.Const(value):
                return repr(value)
            case ir.Var():
                if e not in self.variables:
                    raise Unknown
                return self.variables[e]
            case ir.Min(a, b) | ir.Max(a, b):
                return f"{type(e).__name__.lower()}({self.value(a)}, {self.value(b)})"
            case ir.Not(a):
                return f"(not {self.value(a)})"
            case ir.Cast(to, a) if to.is_int and a.dtype.is_int:
                return self.value(a)
            case ir.Select(cond, a, b) | ir.Guard(cond, a, b):
                return f"({self.value(a)} if {self.value(cond)} else {self.value(b)})"
            case ir.Binary(a, b) if type(e) in _OPERATORS:
                return f"({self.value(a)} {_OPERATORS[type(e)]} {self.value(b)})"
        raise Unknown


_OPERATORS: dict[type, str] = {
    ir.Add: "+", ir.Sub: "-", ir.Mul: "*", ir.FloorDiv: "//", ir.FloorMod: "%", ir.Lt: "<", ir.Le: "<=", ir.Eq: "==",
    ir.Ne: "!=", ir.And: "and", ir.Or: "or"}
