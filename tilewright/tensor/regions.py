"""What blocks read and write: the box of each buffer that a subtree touches, and who depends on whom.

In: a program with Blocks. Out: `Box`es with bounds in terms of the variables outside the subtree (a sound
over-approximation: indices that are not quasi-affine take the whole dimension), and answers about producers and consumers.

What is assumed of every program with blocks, and kept by every primitive: a block's instances are the points of its
iteration domain. Conditions over loop variables in its predicate only cut what the loops overshoot or what nobody needs;
conditions over its own iteration variables belong to its meaning and move with it.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tilewright.core.node import Node, walk
from tilewright.loop.ir import (
    ONE,
    TRUE,
    ZERO,
    Address,
    And,
    Block,
    Buffer,
    Call,
    Evaluate,
    Expr,
    FloorDiv,
    For,
    Le,
    Load,
    Lt,
    Program,
    Seq,
    Stmt,
    Store,
    Var,
    as_int,
)
from tilewright.loop.substitute import substitute
from tilewright.tensor.schedule.state import blocks, path_to
from tilewright.tensor.span import Algebra, Span, vars_of


@dataclass(frozen=True)
class Access:
    """One place in a block that reads or writes a buffer; `indices` in the block's iteration variables and those of the
    `loops` around the place within the block (of one that is a tile), None: anywhere."""
    buffer: Buffer
    indices: tuple[Expr, ...] | None
    loops: tuple[For, ...] = ()


@dataclass(frozen=True)
class Box:
    """start[i] .. start[i] + extent[i] - 1 in each dimension. `exact`: every element of it is touched (where it lies in
    the domain of the block), not only some."""
    buffer: Buffer
    start: tuple[Expr, ...]
    extent: tuple[Expr, ...]
    exact: bool


# ---- accesses --------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=1024)  # every primitive asks again about the blocks that the last ones left alone
def accesses(block: Block) -> tuple[tuple[Access, ...], tuple[Access, ...]]:
    """The reads and the writes of a block, in order, each place once. An Address counts as both, anywhere; that of a
    prefetch as none."""
    if isinstance(block.body, Evaluate) and isinstance(block.body.value, Call) and block.body.value.name == "prefetch":
        return (), ()
    reads: dict[tuple[Buffer, tuple[Expr, ...] | None], Access] = {}
    writes: dict[tuple[Buffer, tuple[Expr, ...] | None], Access] = {}
    hints: set[int] = set()
    stack: list[tuple[Node, tuple[For, ...]]] = [(part, ()) for part in (block.body, block.init) if part is not None]
    while stack:
        n, loops = stack.pop()
        if isinstance(n, Call) and n.name == "prefetch":
            hints.update(id(a) for a in n.args)
        elif isinstance(n, Load):
            reads.setdefault((n.buffer, n.indices), Access(n.buffer, n.indices, loops))
        elif isinstance(n, Store):
            writes.setdefault((n.buffer, n.indices), Access(n.buffer, n.indices, loops))
        elif isinstance(n, Address) and id(n) not in hints:
            for found in (reads, writes):
                found.setdefault((n.buffer, None), Access(n.buffer, None))
        elif isinstance(n, For):
            loops = (*loops, n)
        stack.extend([(c, loops) for c in reversed(list(n.children()))])
    return tuple(reads.values()), tuple(writes.values())


def loops_inside(block: Block) -> list[For]:
    """The loops within a block: of one that is a tile."""
    return [n for part in (block.init, block.body) if isinstance(part, For | Seq) for n in walk(part) if isinstance(n, For)]


def domain_loops(block: Block) -> list[For]:
    """A block's domain as loops over its iteration variables, and the loops within it."""
    return [*[For(i.var, ZERO, i.extent, Seq(())) for i in block.iters], *loops_inside(block)]


def buffers_in(found: Iterable[Access]) -> list[Buffer]:
    """The buffers of some accesses, each once, in order."""
    return list(dict.fromkeys(a.buffer for a in found))


def inputs(block: Block) -> list[Buffer]:
    """Buffers that a block reads and does not write itself."""
    reads, writes = accesses(block)
    own = buffers_in(writes)
    return [b for b in buffers_in(reads) if b not in own]


def outputs(block: Block) -> list[Buffer]:
    """Buffers that a block writes."""
    return buffers_in(accesses(block)[1])


# ---- who depends on whom -----------------------------------------------------------------------------------------------
def writers(program: Program, buffer: Buffer) -> list[Block]:
    """Blocks that write a buffer, in program order."""
    return [b for b in blocks(program) if buffer in outputs(b)]


def readers(program: Program, buffer: Buffer) -> list[Block]:
    """Blocks that read a buffer which they do not write, in program order."""
    return [b for b in blocks(program) if buffer in inputs(b)]


def producers(program: Program, block: Block) -> list[Block]:
    """Blocks that write what `block` reads, in program order, without itself."""
    read = inputs(block)
    return [b for b in blocks(program) if b is not block and any(x in read for x in outputs(b))]


def consumers(program: Program, block: Block) -> list[Block]:
    """Blocks that read what `block` writes, in program order, without itself."""
    written = outputs(block)
    return [b for b in blocks(program) if b is not block and any(a.buffer in written for a in accesses(b)[0])]


# ---- conditions --------------------------------------------------------------------------------------------------------
def conjuncts(cond: Expr) -> list[Expr]:
    """The parts of a conjunction, constants true left out."""
    if isinstance(cond, And):
        return conjuncts(cond.a) + conjuncts(cond.b)
    return [] if cond == TRUE else [cond]


def conjunction(parts: Iterable[Expr]) -> Expr:
    """The conjunction of conditions, each once."""
    out: Expr = TRUE
    for c in dict.fromkeys(parts):
        if c != TRUE:
            out = c if out is TRUE else And(out, c)
    return out


def own_conditions(block: Block) -> list[Expr]:
    """The conditions of the predicate that belong to the block's meaning: those over its iteration variables."""
    own = {i.var for i in block.iters}
    return [c for c in conjuncts(block.predicate) if any(n in own for n in walk(c) if isinstance(n, Var))]


def kept_domain(block: Block) -> list[tuple[Expr, Expr]]:
    """(start, extent) of each iteration variable, without the ends that the block's own conditions leave out."""
    low: dict[Var, Expr] = {i.var: ZERO for i in block.iters}
    high = {i.var: i.extent for i in block.iters}
    algebra = Algebra([])
    for c in conjuncts(block.predicate):
        if isinstance(c, Le) and c.b in low and not vars_of(c.a) and algebra.at_most(low[c.b], c.a):  # type: ignore[index]
            low[c.b] = c.a  # type: ignore[index]
        elif isinstance(c, Lt) and c.a in high and not vars_of(c.b) and algebra.at_most(c.b, high[c.a]):  # type: ignore[index]
            high[c.a] = c.b  # type: ignore[index]
    return [(low[i.var], algebra.simplify(high[i.var] - low[i.var])) for i in block.iters]


def cuts_only_overshoot(block: Block, algebra: Algebra, inner: Iterable[For]) -> bool:
    """Whether the predicate leaves every point of the spatial domain that the loops `inner` visit: it says that iteration
    variables lie in their domains, leaves out steps of a reduction other than the first, or is about inner loops that
    no binding mentions and holds in their first step."""
    parts = conjuncts(block.predicate)
    if not parts:
        return True
    bound = dict(zip([i.var for i in block.iters], block.bindings, strict=True))
    first = {i.var: ZERO for i in block.iters if i.kind == "reduce"}
    used = {v for e in block.bindings for v in vars_of(e)}
    idle = {f.var: f.start for f in inner if f.var not in used}
    domain = [(e, i.extent) for i, e in zip(block.iters, block.bindings, strict=True)]
    inside = algebra.within(effective(block, list(inner), algebra))
    for c in parts:
        here = substitute(c, bound)
        if not (inside.proves(here) or algebra.implies(domain, here) or _within_domain(here, block, algebra)
                or algebra.proves(substitute(substitute(c, first), bound)) or algebra.proves(substitute(here, idle))):
            return False
    return True


def _within_domain(c: Expr, block: Block, algebra: Algebra) -> bool:
    """`c` is `binding >= 0`, `binding < extent`, or the latter said of the number that was divided."""
    if not isinstance(c, Lt | Le):
        return False
    slack = c.b - c.a - (1 if isinstance(c, Lt) else 0)  # the condition: slack >= 0
    for i, e in zip(block.iters, block.bindings, strict=True):
        if algebra.equal(slack, e) or algebra.equal(slack, i.extent - 1 - e):
            return True
        e = algebra.simplify(e)
        if isinstance(e, FloorDiv) and algebra.equal(slack, i.extent * e.b - 1 - e.a):
            return True
    return False


# ---- boxes -------------------------------------------------------------------------------------------------------------
def loops_between(root: Stmt, block: Block) -> list[For]:
    """The loops from `root` (included if it is one) down to `block`, outermost first."""
    return [s for s in path_to(root, block) if isinstance(s, For)]


def access_box(access: Access, block: Block, inner: Sequence[For], algebra: Algebra) -> Box:
    """The box of one access of a block while the loops `inner` around it run."""
    buffer = access.buffer
    if access.loops:
        algebra = algebra.within(access.loops)
    running = {f.var: f for f in (*effective(block, inner, algebra), *access.loops)}
    spans: list[Span | None] = [None] * buffer.rank
    if access.indices is not None:
        bound = dict(zip([i.var for i in block.iters], block.bindings, strict=True))
        spans = [algebra.span(substitute(i, bound), running) for i in access.indices]
    start, extent, exact, seen = [], [], True, frozenset[Var]()
    for s, size in zip(spans, buffer.shape, strict=True):
        if s is None or (as_int(size) is None and not s.exact and _is_beyond(s, size, algebra)):
            start.append(ZERO)
            extent.append(size)
            exact = False
            continue
        moving = s.vars if as_int(s.width) != 0 else frozenset[Var]()
        exact = exact and s.exact and not moving & seen
        seen |= moving
        start.append(s.lo)
        extent.append(algebra.simplify(s.width + ONE))
    if not exact and None not in spans:
        exact = _fills(access, extent, seen, running, block, algebra)
    return Box(buffer, tuple(start), tuple(extent), exact and cuts_only_overshoot(block, algebra, inner))


def _is_beyond(s: Span, size: Expr, algebra: Algebra) -> bool:
    """Whether a span, known by numbers only, takes in the whole of a symbolic size (what is accessed is in bounds)."""
    return as_int(s.lo) is not None and algebra.at_most(s.lo, ZERO) and algebra.at_most(size, s.lo + s.width + 1)


def effective(block: Block, inner: Sequence[For], algebra: Algebra) -> list[For]:
    """The loops around a block without steps in which its predicate surely does not hold."""
    bound = dict(zip([i.var for i in block.iters], block.bindings, strict=True))
    parts = conjuncts(block.predicate)
    return algebra.narrowed(inner, [substitute(c, bound) for c in parts]) if parts else list(inner)


def _fills(access: Access, extent: list[Expr], moving: frozenset[Var], running: dict[Var, For], block: Block,
           algebra: Algebra) -> bool:
    """Whether an access takes every element of its box because it takes as many different ones as there are."""
    assert access.indices is not None
    loops = {v: running[v] for v in moving}
    points: Expr = ONE
    elements: Expr = ONE
    for f in loops.values():
        points = points * f.extent
    for e in extent:
        elements = elements * e
    bound = dict(zip([i.var for i in block.iters], block.bindings, strict=True))
    as_many = algebra.equal(points, elements) and as_int(elements) != 0
    return as_many and algebra.determine([substitute(i, bound) for i in access.indices], loops)


def union(a: Box, b: Box, algebra: Algebra) -> Box:
    """The hull of two boxes of one buffer; a dimension in which their distance is not constant is taken whole."""
    if a == b:
        return a
    start, extent = [], []
    same = 0
    for s, e, t, f, size in zip(a.start, a.extent, b.start, b.extent, a.buffer.shape, strict=True):
        if algebra.equal(s, t) and algebra.equal(e, f):
            start.append(s)
            extent.append(e)
            same += 1
            continue
        if algebra.at_most(s, t):
            low: Expr | None = s
        else:
            low = t if algebra.at_most(t, s) else None
        if algebra.at_most(s + e, t + f):
            high: Expr | None = t + f
        else:
            high = s + e if algebra.at_most(t + f, s + e) else None
        size_ = None if low is None or high is None else algebra.simplify(high - low)
        if low is None or size_ is None or (as_int(size_) is None and as_int(size) is not None):
            low, size_ = ZERO, size
        start.append(low)
        extent.append(size_)
    return Box(a.buffer, tuple(start), tuple(extent), a.exact and b.exact and same == len(start))


def block_boxes(found: Iterable[Access], block: Block, inner: Sequence[For], algebra: Algebra) -> dict[Buffer, Box]:
    """Per buffer, the hull of some accesses of a block while the loops `inner` run."""
    out: dict[Buffer, Box] = {}
    for a in found:
        box = access_box(a, block, inner, algebra)
        out[a.buffer] = union(out[a.buffer], box, algebra) if a.buffer in out else box
    return out


def contains(big: Box, small: Box, algebra: Algebra, clip: bool = True) -> bool:
    """Whether `small` surely lies in `big`; with `clip`, as far as it lies in the buffer at all."""
    for s, e, t, f, size in zip(big.start, big.extent, small.start, small.extent, big.buffer.shape, strict=True):
        if not (algebra.at_most(s, t) or clip and algebra.at_most(s, ZERO)):
            return False
        if not (algebra.at_most(t + f, s + e) or clip and algebra.at_most(size, s + e)):
            return False
    return True


def disjoint(a: Box, b: Box, algebra: Algebra) -> bool:
    """Whether two boxes of one buffer surely have no element in common."""
    return any(algebra.at_most(s + e, t) or algebra.at_most(t + f, s)
               for s, e, t, f in zip(a.start, a.extent, b.start, b.extent, strict=True))


def statements(s: Stmt) -> tuple[Stmt, ...]:
    """The statements of a body, whether it is one or a sequence."""
    return s.stmts if isinstance(s, Seq) else (s,)
