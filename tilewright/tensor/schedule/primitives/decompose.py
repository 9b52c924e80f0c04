"""decompose_reduction and decompose_padding: a block that does two things becomes blocks that do one each.

decompose_reduction(C, k):                              decompose_padding(P):
    for i: for k:                 for i:                    for h in 0..10:
        block C(vi, vk):              block C_init(vi):         block P(h): P[h] = A[h - 1] if 1 <= h < 9 else 0
            init: C[vi] = 0               C[vi] = 0         →
            C[vi] += A[vi, vk]  →     for k:                for h in 0..8: block P(h): P[h + 1] = A[h]
                                          block C(vi, vk):  for h in 0..1: block P_fill(h): P[h] = 0
                                              C[vi] += …    for h in 0..1: block P_fill_1(h): P[h + 9] = 0
"""
from __future__ import annotations

from tilewright.loop.ir import (
    TRUE,
    ZERO,
    And,
    Block,
    Const,
    Expr,
    For,
    Guard,
    IterVar,
    Le,
    Lt,
    Program,
    Select,
    Seq,
    Stmt,
    Store,
    Var,
    as_int,
    seq,
)
from tilewright.loop.substitute import substitute
from tilewright.tensor.regions import conjunction, conjuncts, effective, loops_between
from tilewright.tensor.schedule.nest import Part, build_nest, part_below
from tilewright.tensor.schedule.proofs import missing_input, reduces_over
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import (
    BlockRef,
    ScheduleError,
    blocks_under,
    edit,
    find_block,
    find_loop,
    fresh_name,
    loops_around,
    path_to,
    refuse,
)
from tilewright.tensor.schedule.trace import primitive
from tilewright.tensor.span import Algebra, vars_of


@primitive
def decompose_reduction(sch: Schedule, block: BlockRef, loop: Var) -> BlockRef:
    """Make the initialisation of a reduction a block of its own, before `loop`; the block keeps the updates only.

    The loops from `loop` down that spatial variables need are made again around the new block (of the same kinds),
    which is returned.
    Legal if all reduction loops of the block are at or below `loop` and, in one run of `loop`, each instance of the
    block runs once (an element that is updated again would not start afresh). Raises ScheduleError.
    """
    program = sch.program
    b, target = find_block(program, block), find_loop(program, loop)
    if b.init is None or not any(i.kind == "reduce" for i in b.iters):
        raise ScheduleError("decompose_reduction", "the block has no initialisation of a reduction", program, block)
    if b not in blocks_under(target):
        raise ScheduleError("decompose_reduction", f"loop {loop.name} is not around block {b.name}", program, loop)
    outer, inner = loops_around(program, target), loops_between(target, b)
    carried = reduces_over(b, outer)
    if carried is not None:
        refuse("decompose_reduction", f"the block reduces over loop {carried.var.name}, which is outside of loop "
               f"{loop.name}: it would be initialised again in each of its steps", program, carried.var)
    algebra = Algebra([*outer, *inner])
    running = {f.var: f for f in effective(b, inner, algebra)}
    if not algebra.determine(b.bindings, running):
        refuse("decompose_reduction", f"an element may be computed in several steps of loop {loop.name} or below, and "
               "would then not start afresh", program, loop)
    late = _cut_first(b, inner, algebra)
    if late is not None:
        refuse("decompose_reduction", f"the first step of the loops that the block reduces over may be cut off ({late}): "
               "nothing would be initialised", program, block)
    init = _init_nest(program, b, inner, algebra)
    update = target.replace(body=edit_stmt(target.body, b, b.replace(init=None)))
    sch.program = edit(program, target, seq(init, update))
    return BlockRef(blocks_under(init)[0].name)


def _cut_first(b: Block, inner: list[For], algebra: Algebra) -> Expr | None:
    """A condition of the predicate that may hold in some step of the loops that are only reduced over, but not in their
    first, or None: the initialisation asks it there."""
    used = {v for i, e in zip(b.iters, b.bindings, strict=True) if i.kind == "spatial" for v in vars_of(e)}
    first = {f.var: f.start for f in inner if f.var not in used}
    for c in conjuncts(b.predicate):
        at_first = substitute(c, first)
        if not vars_of(c) & set(first) or algebra.proves(at_first):
            continue
        if not isinstance(c, Lt | Le) or not isinstance(at_first, Lt | Le) or not algebra.at_most(
                c.b - c.a, at_first.b - at_first.a):
            return c
    return None


def edit_stmt(root: Stmt, old: Block, new: Block) -> Stmt:
    """`root` with a block replaced."""
    if root is old:
        return new
    path = path_to(root, old)
    result: Stmt = new
    for above, child in zip(reversed(path[:-1]), reversed(path[1:]), strict=True):
        result = above.map(lambda c, was=child, now=result: now if c is was else c)  # type: ignore[misc]
    return result


def _init_nest(program: Program, b: Block, inner: list[For], algebra: Algebra) -> Stmt:
    assert b.init is not None
    spatial = [(i, e) for i, e in zip(b.iters, b.bindings, strict=True) if i.kind == "spatial"]
    used = {v for _, e in spatial for v in vars_of(e)}
    for f in reversed(inner):  # bounds may depend on loops outside
        if f.var in used:
            used |= vars_of(f.start) | vars_of(f.extent)
    kept = [f for f in inner if f.var in used]
    fresh: dict[Var, Expr] = {f.var: Var(f.var.name) for f in kept}
    first = {f.var: f.start for f in inner if f.var not in used}
    own = {i.var: Var(i.var.name) for i, _ in spatial}
    zero = {i.var: ZERO for i in b.iters if i.kind == "reduce"}
    kept_at = (algebra.ranges.keys() | own.keys()) - first.keys()
    guards = [c for c in conjuncts(b.predicate)  # not those of the sum alone: a sum of nothing is initialised, too
              if vars_of(c) & kept_at or not vars_of(c) & (first.keys() | zero.keys())]
    condition = [algebra.simplify(substitute(substitute(c, first), {**fresh, **zero, **own})) for c in guards]
    nest: Stmt = Block(fresh_name(program, f"{b.name}_init"),
                       tuple([IterVar(own[i.var], i.extent) for i, _ in spatial]),
                       tuple([substitute(e, fresh) for _, e in spatial]), conjunction(condition),
                       substitute(b.init, own), None, b.attrs)
    for f in reversed(kept):
        v = fresh[f.var]
        assert isinstance(v, Var)
        nest = For(v, substitute(f.start, fresh), substitute(f.extent, fresh), nest, f.kind)
    return nest


@primitive
def decompose_padding(sch: Schedule, block: BlockRef) -> tuple[BlockRef, ...]:
    """Split a block P[v…] = value if lo <= v < hi (in some dimensions) else constant into its interior and its border.

    Returns (interior, *fills): the interior, under the block's name, runs over the in-range box only and writes at an
    offset; a fill writes each border slab, at most two per dimension, and no two of them meet. Where the block runs in
    loops that it shares with others, so do they. Raises ScheduleError if the block has another form.
    """
    program = sch.program
    b = find_block(program, block)
    low, high, inside, outside = _padding(program, b, block)
    home, statement = _home(program, b)
    outer = [] if home is None else [*loops_around(program, home), home]
    inner = loops_between(statement, b)
    part = part_below(b, inner, Algebra([*outer, *inner]))
    boxes = [(b.name, inside, list(zip(low, high, strict=True)))]
    size = [i.extent for i in b.iters]
    for d, (lo, hi, n) in enumerate(zip(low, high, size, strict=True)):
        for start, end in ((ZERO, lo), (hi, n)):
            slab = [*zip(low[:d], high[:d], strict=True), (start, end), *[(ZERO, n) for n in size[d + 1:]]]
            if as_int(Algebra([]).simplify(end - start)) != 0:
                boxes.append((f"{b.name}_fill", outside, slab))
    made: list[Stmt] = []
    names: list[str] = []
    for name, value, box in boxes:
        taken = {*names}
        unique = name if name == b.name else fresh_name(program, name)
        k = 0
        while unique in taken:
            k += 1
            unique = fresh_name(program, f"{name}_{k}")
        names.append(unique)
        made.append(build_nest(*_shifted(b, unique, value, box, part), outer)[0])
    new = edit(program, statement, seq(*made))
    why = missing_input(new, find_block(new, block))
    if why is not None:
        refuse("decompose_padding", why, program, block)
    sch.program = new
    return tuple(BlockRef(n) for n in names)


def _shifted(b: Block, name: str, value: Expr, box: list[tuple[Expr, Expr]], part: Part) -> tuple[Block, Part]:
    """The block that computes `value` on a box of the domain of `b`, and the part of it that lies in a part of `b`."""
    assert isinstance(b.body, Store)
    iters, shift, ranges = [], {}, []
    for i, (lo, hi), (start, extent) in zip(b.iters, box, part, strict=True):
        v = Var(i.var.name)
        n = Algebra([]).simplify(hi - lo)
        iters.append(IterVar(v, n))
        shift[i.var] = v + lo
        all_of_it = as_int(start) == 0 and extent == i.extent
        ranges.append((ZERO, n) if all_of_it else (start - lo, extent))
    domain = Algebra([For(i.var, ZERO, i.extent, Seq(())) for i in iters])
    body = Store(b.body.buffer, tuple([domain.simplify(substitute(e, shift)) for e in b.body.indices]),
                 domain.simplify(substitute(value, shift)))
    return Block(name, tuple(iters), tuple([i.var for i in iters]), TRUE, body, None, b.attrs), ranges


def _padding(program: Program, b: Block, block: BlockRef) -> tuple[list[Expr], list[Expr], Expr, Const]:
    """Ends of the in-range box, the value inside and the constant outside."""
    def wrong(what: str) -> ScheduleError:
        return ScheduleError("decompose_padding", what, program, block,
                             hint="the block must be P[v…] = value if (conditions lo <= v, v < hi) else constant")

    if not isinstance(b.body, Store) or b.init is not None or any(i.kind != "spatial" for i in b.iters):
        raise wrong("the block is not a single store without reduction")
    value = b.body.value
    if not isinstance(value, Guard | Select) or not isinstance(value.b, Const):
        raise wrong("its value is not a choice between a value and a constant")
    if conjuncts(b.predicate) and any(v in {i.var for i in b.iters} for c in conjuncts(b.predicate) for v in vars_of(c)):
        raise wrong("it has a condition of its own")
    low, high = [ZERO for _ in b.iters], [i.extent for i in b.iters]
    known: set[tuple[int, bool]] = set()
    position = {i.var: k for k, i in enumerate(b.iters)}
    domain = Algebra([For(i.var, ZERO, i.extent, Seq(())) for i in b.iters])
    for c in _flat(value.cond):
        if domain.proves(c):
            continue
        if not isinstance(c, Lt | Le):
            raise wrong(f"the condition {c} is no comparison")
        found = _single_bound(c, position, domain)
        if found is None:
            raise wrong(f"the condition {c} is not about one iteration variable")
        k, is_low, end = found
        ends = low if is_low else high
        if (k, is_low) in known:
            ours, theirs = as_int(ends[k]), as_int(end)
            if ours is None or theirs is None:
                raise wrong(f"two conditions about {b.iters[k].var.name} with symbolic ends")
            end = ZERO + (max(ours, theirs) if is_low else min(ours, theirs))
        ends[k] = end
        known.add((k, is_low))
    for k, i in enumerate(b.iters):
        if not (domain.at_most(ZERO, low[k]) and domain.at_most(high[k], i.extent) and domain.at_most(low[k], high[k])):
            raise wrong(f"the range of {i.var.name} may be empty or leave its domain")
    return low, high, value.a, value.b


def _flat(c: Expr) -> list[Expr]:
    return _flat(c.a) + _flat(c.b) if isinstance(c, And) else [] if c == TRUE else [c]


def _single_bound(c: Lt | Le, position: dict[Var, int], domain: Algebra) -> tuple[int, bool, Expr] | None:
    """(variable, whether it is bounded below, first value in range or first value beyond it) of `a < b`, `a <= b`."""
    slack = domain.simplify(c.b - c.a)  # the condition: slack >= (1 if Lt else 0)
    least = 1 if isinstance(c, Lt) else 0
    mentioned = [v for v in vars_of(slack) if v in position]
    if len(mentioned) != 1:
        return None
    v = mentioned[0]
    for is_low, rest in ((True, domain.simplify(slack - v)), (False, domain.simplify(slack + v))):
        if v not in vars_of(rest):
            # v + rest >= least, or rest - v >= least
            return position[v], is_low, domain.simplify(ZERO + least - rest if is_low else rest - least + 1)
    return None


def _home(program: Program, b: Block) -> tuple[For | None, Stmt]:
    """The innermost loop around `b` that other blocks share (None: no loop is shared), and the statement in it that holds
    `b` alone."""
    path = path_to(program.body, b)
    home: For | None = None
    statement: Stmt = b
    for s in reversed(path[:-1]):
        if not isinstance(s, For) or len(blocks_under(s)) > 1:
            break
        statement = s
    at = next(k for k, s in enumerate(path) if s is statement)
    for s in path[:at]:
        if isinstance(s, For):
            home = s
    return home, statement
