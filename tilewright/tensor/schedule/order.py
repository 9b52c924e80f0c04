"""In which order the instances of blocks may run: what lets loops change places, or run their iterations at once.

In: a program, and loops of it. Out: None if another order surely computes the same, else the reason why it may not.
Two instances must keep their order only if both touch an element and one of them writes it. What is used of a block
(see also `tensor/regions.py`): its instances are points of its domain, each element is stored by the points of one spatial
position, and updates along its reduction variables commute.
"""
from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

from tilewright.loop.ir import Block, Buffer, Expr, For, Program, Stmt, Var, as_int
from tilewright.loop.lower.compact_storage import IN_TURN
from tilewright.loop.substitute import substitute
from tilewright.tensor.combiner import folds_lanes
from tilewright.tensor.regions import (
    Access,
    Box,
    accesses,
    block_boxes,
    conjuncts,
    domain_loops,
    effective,
    inputs,
    loops_between,
    outputs,
    union,
)
from tilewright.tensor.schedule.dependences import carried_dependence, comes_earlier
from tilewright.tensor.schedule.proofs import missing_input, reduces_over
from tilewright.tensor.schedule.state import blocks, blocks_under, find_loop, is_parameter, iterate, loops_around
from tilewright.tensor.span import Algebra, vars_of


# ---- loops that change places ----------------------------------------------------------------------------------------
def reorder_hazard(old: Program, new: Program, chain: Sequence[For], order: Sequence[For]) -> str | None:
    """Why nesting the loops of `chain` in `order` (as in the program `new`) may change results, or None."""
    if [f.var for f in chain if as_int(f.extent) != 1] == [f.var for f in order if as_int(f.extent) != 1]:
        return None
    below = blocks_under(chain[-1])
    for b in below:
        why = _instance_hazard(old, b, chain, order)
        if why is not None:
            return why
    if len(below) < 2:
        return None
    moved = find_loop(new, order[0].var)
    for buffer in dict.fromkeys(x for b in below for x in outputs(b)):
        users = [b for b in below if any(a.buffer is buffer for part in accesses(b) for a in part)]
        if len(users) < 2 or _apart(old, chain[0], [f.var for f in chain], users, buffer):
            continue
        why = _flow_hazard(new, moved, users, buffer)
        if why is not None:
            return why
    return None


def made_in_each_step(program: Program, loop: For, buffer: Buffer) -> bool:
    """Whether each step of a loop makes all that it reads of a buffer: then steps may run in any order."""
    users = [b for b in blocks_under(loop) if _touches(b, buffer)]
    return _flow_hazard(program, loop, users, buffer) is None


def _flow_hazard(program: Program, loop: For, users: Sequence[Block], buffer: Buffer) -> str | None:
    """Iterations share elements of `buffer`: that is fine if each makes all that it reads itself, however often others
    make the same."""
    under = {b.name: b for b in blocks_under(loop)}
    for name in [b.name for b in users]:
        c = under[name]
        if buffer in outputs(c):
            if buffer not in inputs(c) and any(a.buffer is buffer for a in accesses(c)[0]) and c.init is None:
                return f"block {c.name} updates {buffer.name} in several iterations"
            continue
        for q in users:
            if buffer in outputs(q):
                why = missing_input(program, c, under[q.name])
                if why is not None:
                    return why
    return None


# ---- loops that are taken apart ------------------------------------------------------------------------------------------
def distribution_hazard(old: Program, new: Program, loop: For, parts: Sequence[Stmt]) -> str | None:
    """Why running the statements of a loop one after another, each for all steps, may change results, or None. `parts`:
    the statements as they are in the program `new`."""
    if as_int(loop.extent) == 1:
        return None
    groups = [blocks_under(p) for p in parts]
    mine = [[_same_block(old, b) for b in group] for group in groups]
    for k, m in combinations(range(len(parts)), 2):
        for b, c in product(range(len(groups[k])), range(len(groups[m]))):
            first, later = mine[k][b], mine[m][c]
            for buffer in dict.fromkeys([*outputs(first), *outputs(later)]):
                if not (_touches(first, buffer) and _touches(later, buffer)):
                    continue
                if not comes_earlier(old, loop, first, later, buffer):
                    continue
                if buffer in outputs(later):
                    return (f"block {later.name} writes {buffer.name}, of which other steps of block {first.name} may touch "
                            "the same elements")
                why = missing_input(old, later, first) or missing_input(new, groups[m][c], groups[k][b])
                if why is not None:
                    return why
    return None


def _touches(b: Block, buffer: Buffer) -> bool:
    return any(a.buffer is buffer for part in accesses(b) for a in part)


def _same_block(program: Program, b: Block) -> Block:
    return next(c for c in blocks(program) if c.name == b.name)


def _instance_hazard(program: Program, b: Block, chain: Sequence[For], order: Sequence[For]) -> str | None:
    """Why the instances of one block may have to keep their order."""
    around = loops_around(program, b)
    algebra = Algebra(around)
    running = effective(b, around[next(k for k, f in enumerate(around) if f.var is chain[0].var):], algebra)
    keep = _must_keep(b, running, algebra)
    if [f.var for f in chain if f.var in keep] == [f.var for f in order if f.var in keep]:
        return None
    elsewhere = _reads_elsewhere(b)
    if elsewhere is not None:
        return f"block {b.name} reads elements of {elsewhere.name} that other instances of it write"
    if b.init is None:
        return None
    if not algebra.determine(list(b.bindings), {f.var: f for f in running}):
        return f"block {b.name} may run an instance more than once: its sums would be started in between"
    if not _starts_first(b, running, algebra):
        return f"the first step of the reduction of block {b.name} may no longer come first"
    return None


def _must_keep(b: Block, running: Sequence[For], algebra: Algebra) -> set[Var]:
    """The loops in which two instances that touch one element may differ: if these keep their order, so do the instances."""
    reads, writes = accesses(b)
    own = {a.buffer for a in writes}
    if b.init is None and not any(a.buffer in own for a in reads):
        return set()
    bound = {it.var: e for it, e in zip(b.iters, b.bindings, strict=True)}
    equal = _equal_iters(b, reads, writes, own)
    fixed: set[Var] = set()
    others = {v for it in b.iters if it.var not in equal for v in vars_of(bound[it.var])}
    moving = {f.var: f for f in running}
    for v in algebra.told_apart([bound[x] for x in equal], moving):
        if v not in others:
            fixed.add(v)
    return {v for v, f in moving.items() if v not in fixed and as_int(f.extent) != 1}


def _equal_iters(b: Block, reads: Sequence[Access], writes: Sequence[Access], own: set[Buffer]) -> list[Var]:
    """Spatial variables that have one value in all instances that touch an element: they are an index by themselves, the
    same one in every access of what the block writes."""
    spatial = [it.var for it in b.iters if it.kind == "spatial"]
    touching = [a for a in (*reads, *writes) if a.buffer in own]
    if any(a.indices is None for a in touching):
        return []
    out = []
    for v in spatial:
        if all(any(a.indices is not None and d < len(a.indices) and a.indices[d] is v for d in range(a.buffer.rank))
               for a in touching) and _same_place(v, touching):
            out.append(v)
    if out != spatial and all(a.indices == touching[0].indices for a in touching):
        domain = domain_loops(b)
        told = Algebra(domain).told_apart(list(touching[0].indices or ()), {f.var: f for f in domain})
        return [v for v in spatial if v in told]
    return out


def _same_place(v: Var, touching: Sequence[Access]) -> bool:
    places: dict[Buffer, set[int]] = {}
    for a in touching:
        assert a.indices is not None
        here = {d for d, e in enumerate(a.indices) if e is v}
        places[a.buffer] = places.get(a.buffer, here) & here
    return all(places.values())


def _reads_elsewhere(b: Block) -> Buffer | None:
    """A buffer of which the block reads other elements than the one that the same instance stores."""
    reads, writes = accesses(b)
    stored = {(a.buffer, a.indices) for a in writes}
    own = {a.buffer for a in writes}
    return next((a.buffer for a in reads if a.buffer in own and (a.buffer, a.indices) not in stored), None)


def _starts_first(b: Block, running: Sequence[For], algebra: Algebra) -> bool:
    """Whether, in any order of the loops, the first instance of an element is the one that starts its reduction: the
    reduction has loops of its own, is least in their first step, and that step is never cut."""
    spatial = {v for it, e in zip(b.iters, b.bindings, strict=True) if it.kind == "spatial" for v in vars_of(e)}
    reduced = [e for it, e in zip(b.iters, b.bindings, strict=True) if it.kind == "reduce"]
    first: dict[Var, Expr] = {f.var: f.start for f in running if any(f.var in vars_of(e) for e in reduced)}
    if any(v in spatial for v in first):
        return False
    if not all(algebra.at_most(substitute(e, first), e) for e in reduced):
        return False
    bound = dict(zip([it.var for it in b.iters], b.bindings, strict=True))
    for c in conjuncts(b.predicate):
        cond = substitute(c, bound)
        if any(v in first for v in vars_of(cond)) and not algebra.proves(substitute(cond, first)):
            return False
    return True


# ---- iterations that run at once -------------------------------------------------------------------------------------
PRIVATE: dict[str, tuple[str, ...]] = {
    "parallel": ("local", "shared", "warp"), "vectorized": ("global", "local", "shared", "warp"),
    "vthread": ("global", "local", "shared", "warp"),
    **{f"blockIdx.{x}": ("local", "shared", "warp") for x in "xyz"}, "threadIdx.x": ("local",),
    "threadIdx.y": ("local", "warp"), "threadIdx.z": ("local", "warp")}
"""Scopes of which each iteration gets a buffer of its own where that is what it needs: lowering allocates it in the loop.
Virtual threads share all, so what several of them make must be the same, made by one store each."""


UNSAFE = "unsafe"
"""The attribute of a loop for whose independent iterations the schedule answers."""


MOVING = frozenset({
    "reorder", "reschedule", "distribute", "compute_at", "reverse_compute_at", "compute_inline", "reverse_compute_inline",
    "cache_read", "cache_write", "set_scope", "decompose_reduction", "decompose_padding", "rfactor"})
"""Primitives that change what the iterations of a loop do; the others keep the instances of each."""


def broken_promise(old: Program, new: Program, reordered: Sequence[Var] = ()) -> tuple[For, str] | None:
    """A parallel, vectorized or bound loop that an edit has changed so that its iterations may depend on each other, and
    why. Loops around all that were `reordered` still do the same in each iteration."""
    whole = [{g.var for g in loops_around(new, find_loop(new, v))} for v in reordered]
    same = set.intersection(*whole) if whole else set()
    loops = [s for s in iterate(new.body) if isinstance(s, For) and s.kind in PRIVATE]
    if not loops:
        return None
    before = {id(s) for s in iterate(old.body)}
    for f in loops:
        if id(f) not in before and f.var not in same:
            why = carried(new, f, f.kind)
            if why is not None:
                return f, why
    return None


def out_of_turn(old: Program, new: Program) -> Block | None:
    """A block that uses a buffer whose places the steps of a loop use in turn (see double_buffer), and whose instances an
    edit may have changed or moved: such a buffer's elements are not those of one instance, which proofs take for granted."""
    names = set(old.attr(IN_TURN, ()))
    if not names:
        return None
    after = {b.name: b for b in blocks(new)}
    for b in blocks(old):
        if any(a.buffer.name in names for part in accesses(b) for a in part):
            now = after.get(b.name)
            if now is not b and now != b or [(f.var, f.extent) for f in loops_around(old, b)] != [
                    (f.var, f.extent) for f in loops_around(new, now)]:
                return b
    return None


def carried(program: Program, loop: For, kind: str) -> str | None:
    """Why iterations of a loop may depend on each other if they run as `kind` says, or None."""
    if as_int(loop.extent) == 1 or kind == "vectorized" and horizontal(loop) or dict(loop.attrs).get(UNSAFE):
        return None
    below = blocks_under(loop)
    for buffer in dict.fromkeys(x for b in below for x in outputs(b)):
        users = [b for b in below if any(a.buffer is buffer for part in accesses(b) for a in part)]
        if _apart(program, loop, [loop.var], users, buffer):
            continue
        for b in users:
            if buffer in outputs(b) and reduces_over(b, [loop]) is not None:
                return f"block {b.name} reduces over loop {loop.var.name}"
        own = private(program, users, buffer) and (kind != "vthread" or not any(_updates(b, buffer) for b in users))
        if buffer.scope not in PRIVATE[kind] or not own:
            steps = carried_dependence(program, loop, users, buffer)
            if steps is None:
                continue
            writer = next(b for b in users if buffer in outputs(b)).name
            return (f"iterations of loop {loop.var.name} may touch the same elements of {buffer.name} (block {writer})"
                    f"{': ' if steps else ''}{steps}")
    return None


def _updates(b: Block, buffer: Buffer) -> bool:
    """Whether a block stores an element of a buffer more than once."""
    return buffer in outputs(b) and (b.init is not None or any(a.buffer is buffer for a in accesses(b)[0]))


def horizontal(loop: For) -> bool:
    """Whether all that a loop does is to add its values up in one place (or to find the largest or least): as lanes of a
    vector that is a reduction over the lanes, in the order of the reduce_* intrinsics."""
    b = loop.body
    if not isinstance(b, Block) or not folds_lanes(b):
        return False
    moving = {it.var: it.kind for it, e in zip(b.iters, b.bindings, strict=True) if loop.var in vars_of(e)}
    return all(kind == "reduce" for kind in moving.values()) and not vars_of(b.predicate) & {loop.var, *moving}


def private(program: Program, users: Sequence[Block], buffer: Buffer) -> bool:
    """Whether each iteration may have a copy of `buffer`: nobody but the blocks `users` in the loop uses it, and all that
    an iteration reads was made in it."""
    if is_parameter(program, buffer):
        return False
    inside = {b.name for b in users}
    for b in blocks(program):
        if b.name not in inside and any(a.buffer is buffer for part in accesses(b) for a in part):
            return False
    started = any(buffer in outputs(b) and (b.init is not None or not any(a.buffer is buffer for a in accesses(b)[0]))
                  for b in users)
    if not started:
        return False
    return not any(_reads_elsewhere(b) is buffer for b in users) and _read_before_made(program, users, buffer) is None


def _read_before_made(program: Program, users: Sequence[Block], buffer: Buffer) -> str | None:
    for c in users:
        for q in users:
            if q is not c and buffer in outputs(q) and buffer in inputs(c):
                why = missing_input(program, c, q)
                if why is not None:
                    return why
    return None


# ---- elements of different iterations ----------------------------------------------------------------------------------
def _apart(program: Program, top: For, loops: Sequence[Var], users: Sequence[Block], buffer: Buffer) -> bool:
    """Whether iterations that differ in one of `loops` (a chain that begins with `top`) touch different elements of a
    buffer: by the boxes that they touch or, where all accesses have one index, by its digits."""
    outer = loops_around(program, top)
    chain = [top, *[f for f in _loops_below(top) if f.var in loops and f is not top]]
    algebra = Algebra([*outer, *chain])
    idle = [{f.var for f in effective(b, chain, algebra) if as_int(f.extent) == 1} for b in users]
    wanted = {f.var for f in chain if not all(f.var in one_step for one_step in idle)}
    found = {b.name: [a for part in accesses(b) for a in part if a.buffer is buffer] for b in users}
    if any(a.indices is None for group in found.values() for a in group):
        return not wanted
    if len(users) == 1 and _same_index_apart(users[0], found[users[0].name], outer, loops_between(top, users[0]), wanted):
        return True
    box: Box | None = None
    for b in users:
        here = Algebra([*outer, *loops_between(top, b)])
        new = block_boxes(found[b.name], b, loops_between(chain[-1].body, b), here)[buffer]
        box = new if box is None else union(box, new, here)
    if box is None:
        return True
    widths = [as_int(algebra.simplify(e - 1)) for e in box.extent]
    starts = [s for s, w in zip(box.start, widths, strict=True) if w is not None]
    return wanted <= algebra.told_apart(starts, {f.var: f for f in chain}, [w for w in widths if w is not None])


def _same_index_apart(b: Block, found: Sequence[Access], outer: Sequence[For], inside: Sequence[For],
                      wanted: set[Var]) -> bool:
    """Whether a block has one index in all accesses `found`, and its digits tell the loops `wanted` apart."""
    if len({a.indices for a in found}) != 1:
        return False
    bound = dict(zip([it.var for it in b.iters], b.bindings, strict=True))
    index = [substitute(e, bound) for e in found[0].indices or ()]
    algebra = Algebra([*outer, *inside, *found[0].loops])
    used = {v for e in index for v in vars_of(e)}
    moving = [*effective(b, inside, algebra), *found[0].loops]
    return wanted <= algebra.told_apart(index, {f.var: f for f in moving if f.var in used})


def _loops_below(top: For) -> list[For]:
    """The loops of the single-child chain that begins with `top`."""
    out = [top]
    while isinstance(out[-1].body, For):
        out.append(out[-1].body)
    return out

