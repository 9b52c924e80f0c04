"""What the primitives that move or make blocks share: the loops that run a part of a block's domain, and the proofs that a
block finds its inputs finished at its place.

A *part* gives, for each iteration variable of a block, (start, extent) of the values to run.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.loop.affine import affine_of
from tilewright.loop.ir import (
    ONE,
    TRUE,
    ZERO,
    Allocate,
    Block,
    Buffer,
    Expr,
    FloorDiv,
    FloorMod,
    For,
    IterVar,
    Le,
    Let,
    Lt,
    Program,
    Seq,
    Stmt,
    Var,
    as_int,
    seq,
)
from tilewright.loop.substitute import substitute
from tilewright.tensor.regions import (
    Access,
    Box,
    accesses,
    block_boxes,
    conjunction,
    conjuncts,
    consumers,
    contains,
    cuts_only_overshoot,
    disjoint,
    effective,
    inputs,
    loops_between,
    outputs,
    own_conditions,
    statements,
    writers,
)
from tilewright.tensor.schedule.state import blocks, loops_around, path_to
from tilewright.tensor.span import Algebra, vars_of

Part = list[tuple[Expr, Expr]]


def whole(block: Block) -> Part:
    """The part that is the whole domain."""
    return [(ZERO, i.extent) for i in block.iters]


def build_nest(block: Block, part: Part, outer: Sequence[For]) -> tuple[Stmt, list[Var]]:
    """Perfectly nested serial loops, one per iteration variable in their order (those of one step included), that run a
    part of `block`; the part is cut to the domain by the predicate where it may go beyond. Returns the new loops, too."""
    algebra = Algebra(outer)
    loops: list[tuple[Var, Expr]] = []
    bindings: list[Expr] = []
    cuts: list[Expr] = []
    for i, (start, extent) in zip(block.iters, part, strict=True):
        start, extent = _clipped(algebra.simplify(start), algebra.simplify(extent), i)
        v = Var(i.var.name)
        binding = v + start if as_int(start) == 0 else start + v
        loops.append((v, extent))
        bindings.append(binding)
        if not algebra.at_most(ZERO, start):
            cuts.append(Le(ZERO, binding))
        if not algebra.at_most(start + extent, i.extent):
            cuts.append(Lt(binding, i.extent))
    predicate = conjunction([*own_conditions(block), *cuts])
    nest: Stmt = block.replace(bindings=tuple(bindings), predicate=predicate)
    for v, extent in reversed(loops):
        nest = For(v, ZERO, extent, nest)
    return nest, [v for v, _ in loops]


def _clipped(start: Expr, extent: Expr, i: IterVar) -> tuple[Expr, Expr]:
    """A constant range without what lies outside of the domain."""
    s, e, n = as_int(start), as_int(extent), as_int(i.extent)
    if s is None or e is None or n is None:
        return start, extent
    low, high = max(s, 0), min(s + e, n)
    return (ZERO + low, ZERO + (high - low)) if low < high else (start, extent)


def part_below(block: Block, inner: Sequence[For], algebra: Algebra) -> Part:
    """The part of its domain that a block runs while the loops `inner` do (reductions and unknown spans: whole)."""
    running = {f.var: f for f in effective(block, inner, algebra)}
    part: Part = []
    for i, e in zip(block.iters, block.bindings, strict=True):
        s = algebra.span(e, running)
        part.append((ZERO, i.extent) if s is None or i.kind == "reduce"
                    else fitted((s.lo, algebra.simplify(s.width + ONE)), i, algebra))
    return part


def fitted(range_: tuple[Expr, Expr], i: IterVar, algebra: Algebra) -> tuple[Expr, Expr]:
    """A range of an iteration variable: whole where it starts at 0 and does not end before the domain does, or where
    its extent would depend on a loop."""
    start, extent = algebra.simplify(range_[0]), algebra.simplify(range_[1])
    if any(v in algebra.ranges for v in vars_of(extent)):
        return ZERO, i.extent
    if as_int(start) == 0 and algebra.at_most(i.extent, extent):
        return ZERO, i.extent
    return start, extent


def invert(access: Access, block: Block, box: Box, algebra: Algebra) -> Part:
    """The part of the block's domain whose instances may touch `box` through `access`: a superset, the whole domain of a
    variable about which the index says nothing. Reductions are whole."""
    part = whole(block)
    if access.indices is None:
        return part
    domain = Algebra([For(i.var, ZERO, i.extent, Seq(())) for i in block.iters])
    found = _Constraints(domain, algebra, {i.var for i in block.iters})
    for index, start, extent in zip(access.indices, box.start, box.extent, strict=True):
        found.constrain(index, start, extent)
    found.join_divisions()
    for k, i in enumerate(block.iters):
        if i.kind == "spatial" and i.var in found.ranges:
            part[k] = fitted(found.ranges[i.var], i, algebra)
    return part


class _Constraints:
    """Ranges of iteration variables that follow from ranges of index expressions."""

    def __init__(self, domain: Algebra, outer: Algebra, own: set[Var]) -> None:
        self.domain, self.outer, self.own = domain, outer, own
        self.ranges: dict[Var, tuple[Expr, Expr]] = {}
        self.quotients: dict[tuple[Expr, int], tuple[Expr, Expr]] = {}
        self.remainders: dict[tuple[Expr, int], tuple[Expr, Expr]] = {}

    def constrain(self, index: Expr, start: Expr, extent: Expr) -> None:
        """`index` lies in start .. start + extent - 1."""
        index = self.domain.simplify(index)
        form = affine_of(index, self.domain.known.forms)
        terms = [(m[0], c) for m, c in form.terms.items() if m and len(m) == 1]
        if len(terms) != sum(1 for m in form.terms if m) or not terms:
            return
        start = start - form.const
        if len(terms) == 1:
            self._one(*terms[0], start, extent)
            return
        terms.sort(key=lambda t: -abs(t[1]))
        (a, k), rest = terms[0], terms[1:]
        lo = sum_ = ZERO
        for b, c in rest:
            sum_ = sum_ + b * c
        least, most = self.domain.known.interval(self.domain.simplify(sum_))
        n = as_int(self.outer.simplify(extent))
        if k <= 0 or least is None or most is None or n is None:
            return
        lo = start - least
        if most - least >= k:  # the digits overlap: a window
            steps = (n - 1 + most - least) // k + 1
            self._one(a, 1, (start - most + (k - 1)) // k, ZERO + steps)
            return
        first, last = self.outer.modulo(self.outer.simplify(lo), k)
        steps = (last + n - 1) // k + 1
        self._one(a, 1, lo // k, ZERO + steps)
        if steps == 1:
            self.constrain(sum_, lo % k + least, ZERO + n)

    def _one(self, a: Expr, c: int, start: Expr, extent: Expr) -> None:
        """`a * c` lies in the range."""
        if c < 0:
            start, c = ZERO - (start + extent - 1), -c
        if c > 1:
            n = as_int(self.outer.simplify(extent))
            if n is None:
                return
            start, extent = (start + (c - 1)) // c, ZERO + ((n - 1) // c + 1)
        k = as_int(a.b) if isinstance(a, FloorDiv | FloorMod) else None
        if isinstance(a, Var) and a in self.own:
            old = self.ranges.get(a)
            if old is None or (as_int(self.outer.simplify(extent)) or 1 << 60) < (
                    as_int(self.outer.simplify(old[1])) or 1 << 60):
                self.ranges[a] = start, extent
        elif isinstance(a, FloorDiv) and k is not None:
            self.quotients[a.a, k] = start, extent
        elif isinstance(a, FloorMod) and k is not None:
            self.remainders[a.a, k] = start, extent

    def join_divisions(self) -> None:
        """x // k and x % k give x; (x // j) % k and x // (j * k) give x // j first."""
        for (x, k), range_ in list(self.remainders.items()):
            if isinstance(x, FloorDiv) and (j := as_int(x.b)) is not None and (x.a, j * k) in self.quotients:
                self.quotients[x.a, j] = self._joined(self.quotients[x.a, j * k], range_, k)
        best: dict[Expr, tuple[int, tuple[Expr, Expr]]] = {}
        for (x, k), (q, n) in self.quotients.items():
            range_ = self._joined((q, n), self.remainders.get((x, k)), k)
            size = as_int(self.outer.simplify(range_[1])) or 1 << 60
            if x not in best or size < best[x][0]:
                best[x] = size, range_
        self.quotients, self.remainders = {}, {}
        for x, (_, range_) in best.items():
            self.constrain(x, *range_)
        if self.quotients:
            self.join_divisions()

    def _joined(self, quotient: tuple[Expr, Expr], remainder: tuple[Expr, Expr] | None, k: int) -> tuple[Expr, Expr]:
        q, n = quotient
        if remainder is not None and as_int(self.outer.simplify(n)) == 1:
            m, w = remainder
            size = as_int(self.outer.simplify(w))
            if size is not None and size <= k:
                return q * k + m, w
        return q * k, n * k


# ---- places ------------------------------------------------------------------------------------------------------------
def insert(program: Program, parent: Stmt | None, choose: Callable[[tuple[Stmt, ...]], int], new: Stmt) -> Program:
    """The program with `new` among the statements of the body of `parent` (None: of the program), before the statement
    whose position `choose` gives."""
    if parent is None:
        return program.replace(body=_inside(program.body, choose, new))
    assert isinstance(parent, For)
    path = path_to(program.body, parent)
    result: Stmt = parent.replace(body=_inside(parent.body, choose, new))
    for above, child in zip(reversed(path[:-1]), reversed(path[1:]), strict=True):
        result = above.map(lambda c, old=child, now=result: now if c is old else c)  # type: ignore[misc]
    return program.replace(body=result)


def _inside(body: Stmt, choose: Callable[[tuple[Stmt, ...]], int], new: Stmt) -> Stmt:
    if isinstance(body, Allocate | Let):
        return body.replace(body=_inside(body.body, choose, new))
    parts = statements(body) if not (isinstance(body, Seq) and not body.stmts) else ()
    k = choose(parts)
    return seq(*parts[:k], new, *parts[k:])


def shared_loops(program: Program, a: Stmt, b: Stmt) -> list[For]:
    """The loops around both statements, outermost first."""
    around = {id(f) for f in loops_around(program, b)}
    return [f for f in loops_around(program, a) if id(f) in around]


# ---- proofs --------------------------------------------------------------------------------------------------------------
def reduces_over(block: Block, loops: Sequence[For]) -> For | None:
    """A loop of more than one step among `loops` over which the block reduces, or None."""
    used = {v for i, e in zip(block.iters, block.bindings, strict=True) if i.kind == "reduce" for v in vars_of(e)}
    return next((f for f in loops if f.var in used and as_int(f.extent) != 1), None)


def runs_whole_domain(program: Program, block: Block) -> bool:
    """Whether the loops around a block surely run its whole domain."""
    loops = loops_around(program, block)
    algebra = Algebra(loops)
    running = {f.var: f for f in effective(block, loops, algebra)}
    seen: set[Var] = set()
    for i, e in zip(block.iters, block.bindings, strict=True):
        s = algebra.span(e, running)
        if s is None or not s.exact or s.vars & seen or as_int(s.lo) != 0 or not algebra.at_most(i.extent, s.width + 1):
            if not _is_digit_of_whole(e, block, algebra):
                return False
        else:
            seen |= s.vars
    return cuts_only_overshoot(block, algebra, loops)


def _is_digit_of_whole(e: Expr, block: Block, algebra: Algebra) -> bool:
    """Whether `e` and the other bindings are the digits f // E, f % E of a fused number that runs over all of them."""
    e = algebra.simplify(e)
    if not isinstance(e, FloorDiv | FloorMod):
        return False
    root = e.a
    while isinstance(root, FloorDiv | FloorMod):
        root = root.a
    digits = []
    size: Expr = ONE
    for i, b in zip(block.iters, block.bindings, strict=True):
        if vars_of(b) & vars_of(root):
            digits.append(b)
            size = size * i.extent
    running = {f: f for f in vars_of(root)}
    whole_span = algebra.span(root, {v: For(v, ZERO, _extent(v, algebra), Seq(())) for v in running})
    if whole_span is None or not whole_span.exact or as_int(whole_span.lo) != 0:
        return False
    if not algebra.at_most(size, whole_span.width + 1):
        return False
    f = Var("f")
    one = For(f, ZERO, whole_span.width + 1, Seq(()))
    inner = Algebra([one])
    return inner.determine([_replace(algebra.simplify(d), root, f) for d in digits], {f: one})


def _extent(v: Var, algebra: Algebra) -> Expr:
    hi = algebra.ranges[v][1]
    return (ZERO + hi if isinstance(hi, int) else hi) + 1 if hi is not None else ZERO


def _replace(e: Expr, old: Expr, new: Expr) -> Expr:
    if e == old:
        return new
    return e.map(lambda c: _replace(c, old, new) if isinstance(c, Expr) else c)


def missing_input(program: Program, block: Block, only: Block | None = None) -> str | None:
    """Why `block` may not find its inputs finished at its place, or None if it surely does.

    Every writer of an input must come before it; under the loops that both share, the writer must have finished (none of
    its reductions runs over them) exactly a box that contains what the block reads there. `only`: look at this writer only.
    """
    order = {id(b): k for k, b in enumerate(blocks(program))}
    reads = accesses(block)[0]
    for buffer in inputs(block):
        for q in writers(program, buffer) if only is None else [only] if buffer in outputs(only) else []:
            if order[id(q)] > order[id(block)]:
                return f"block {q.name} writes {buffer.name} only after block {block.name} reads it"
            shared = shared_loops(program, q, block)
            if not shared:
                if not runs_whole_domain(program, q) and not _covers(program, q, block, buffer, reads, []):
                    return f"block {q.name} may not have computed all of {buffer.name} that block {block.name} reads"
                continue
            carried = reduces_over(q, shared)
            if carried is not None:
                return f"block {q.name} is still reducing {buffer.name} over loop {carried.var.name}"
            if not _covers(program, q, block, buffer, reads, shared):
                return (f"in one step of loop {shared[-1].var.name}, block {q.name} may not have computed all of "
                        f"{buffer.name} that block {block.name} reads")
    return None


def _covers(program: Program, q: Block, block: Block, buffer: Buffer, reads: list[Access], shared: list[For]) -> bool:
    root: Stmt = shared[-1].body if shared else program.body
    qi, bi = loops_between(root, q), loops_between(root, block)
    outside = {f.var for f in shared}
    bound = rebound(block)
    holds = [c for c in (substitute(c, bound) for c in conjuncts(block.predicate)) if vars_of(c) <= outside]
    algebra = Algebra([*shared, *qi]).assuming(holds)
    written = block_boxes([a for a in accesses(q)[1] if a.buffer is buffer], q, qi, algebra)[buffer]
    read = block_boxes([a for a in reads if a.buffer is buffer], block, bi, Algebra([*shared, *bi]))[buffer]
    return written.exact and contains(written, read, Algebra(shared).assuming(holds))


def starved_consumer(program: Program, block: Block) -> str | None:
    """Why a consumer of `block` may not find it finished, or None."""
    for c in consumers(program, block):
        why = missing_input(program, c, block)
        if why is not None:
            return why
    return None


def shared_writer(program: Program, block: Block, but: Callable[[Block], bool] = lambda _: False) -> str | None:
    """Why the order of `block` and another writer of its outputs may matter, or None if their boxes are disjoint. Writers
    for which `but` holds do not count."""
    for buffer in outputs(block):
        for q in writers(program, buffer):
            if q is block or but(q):
                continue
            mine, other = (box_of_domain(b, [a for a in accesses(b)[1] if a.buffer is buffer]) for b in (block, q))
            if not disjoint(mine, other, Algebra([])):
                return f"block {q.name} writes {buffer.name}, too"
    return None


def box_of_domain(block: Block, found: Sequence[Access]) -> Box:
    """The box of some accesses of one buffer over the whole domain of their block."""
    fresh = [For(Var(i.var.name), ZERO, i.extent, Seq(())) for i in block.iters]
    over_all = block.replace(bindings=tuple([f.var for f in fresh]), predicate=TRUE)
    return block_boxes(found, over_all, fresh, Algebra(fresh))[found[0].buffer]


def not_repeatable(block: Block) -> str | None:
    """Why running an instance of `block` twice may differ, or None."""
    if updates_only(block):
        return f"it updates {outputs(block)[0].name}, which another block initialises"
    return reads_elsewhere(block)


def updates_only(block: Block) -> bool:
    """Whether a block updates what another block initialises."""
    return block.init is None and bool(set(outputs(block)) & {a.buffer for a in accesses(block)[0]})


def moved_update(program: Program, block: Block) -> str | None:
    """Why a block that only updates may, at its place, update an element more than once or before it was initialised, or
    None."""
    if not updates_only(block):
        return None
    around = loops_around(program, block)
    algebra = Algebra(around)
    if not algebra.determine(block.bindings, {f.var: f for f in effective(block, around, algebra)}):
        return "an update may be run in several steps of the loops around it"
    for buffer in outputs(block):
        for q in writers(program, buffer):
            if q is block:
                continue
            why = restarted(program, q, block, buffer)
            if why is not None:
                return why
    return None


def restarted(program: Program, init: Block, update: Block, buffer: Buffer) -> str | None:
    """Why `init` may initialise an element after an update of it, or None: it must come first and, in each step of the loops
    that both share, initialise only what the update makes then and in no other step."""
    for b in blocks(program):
        if b is init:
            break
        if b is update:
            return f"block {init.name} would initialise {buffer.name} only after block {update.name} has updated it"
    shared = shared_loops(program, init, update)
    if not shared:
        return None
    carried = reduces_over(update, shared)
    if carried is not None:
        return f"block {init.name} would initialise {buffer.name} again in each step of loop {carried.var.name}"
    again = f"block {init.name} may initialise {buffer.name} in between"
    inner, first = loops_between(shared[-1].body, update), loops_between(shared[-1].body, init)
    around = [*shared, *inner]
    algebra = Algebra(around)
    spatial = [e for i, e in zip(update.iters, update.bindings, strict=True) if i.kind == "spatial"]
    used = {v for e in spatial for v in vars_of(e)}
    moving = {f.var: f for f in effective(update, around, algebra) if f.var in used or any(f.var is g.var for g in shared)}
    if not algebra.determine(spatial, moving):
        return again
    made = block_boxes([a for a in accesses(update)[1] if a.buffer is buffer], update, inner, algebra)[buffer]
    started = block_boxes([a for a in accesses(init)[1] if a.buffer is buffer], init, first, Algebra([*shared, *first]))
    return None if made.exact and contains(made, started[buffer], Algebra(shared)) else again


def reads_elsewhere(block: Block) -> str | None:
    """Why the order of a block's instances may matter, or None: it reads elements that other instances write. (Updates of
    one element by a reduction commute.)"""
    reads, writes = accesses(block)
    stored = {(a.buffer, a.indices) for a in writes}
    for a in reads:
        if any(a.buffer is w.buffer for w in writes) and (a.buffer, a.indices) not in stored:
            return f"it reads {a.buffer.name}, which it writes itself"
    return None


def rebound(block: Block) -> dict[Var, Expr]:
    """The bindings of a block as a substitution."""
    return dict(zip([i.var for i in block.iters], block.bindings, strict=True))
