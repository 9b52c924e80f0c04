"""pad_einsum: the axes of a contraction are padded to multiples, so that tiles of a fixed size fit without a remainder.

    pad_einsum(C, [4, 1, 4])                        for i in 0..8: for k in 0..8:
                                                        block A_pad(vi = i, vk = k):
    for i in 0..5: for j in 0..4: for k in 0..6:            A_pad[vi, vk] = guard(vi < 5 and vk < 6, A[vi, vk], 0)
        block C(vi = i, vj = j, vk = k):        →       …                                             (B_pad likewise)
            C[vi, vj] += A[vi, vk] * B[vk, vj]      for i in 0..8: for j in 0..4: for k in 0..8:
                                                        block C(vi = i, vj = j, vk = k):
                                                            C_pad[vi, vj] += A_pad[vi, vk] * B_pad[vk, vj]
                                                    for i in 0..5: for j in 0..4:
                                                        block C_store(vi = i, vj = j): C[vi, vj] = C_pad[vi, vj]

Where a reduced axis is padded, what is added must change nothing: zeros in all factors of a sum's products, or the reducer's
identity where its term is one operand. What the other axes read beyond the end reaches no result; with `wrap` they read the
first elements again, A[vi % 5, vk], so that no condition stands in their way.
"""
from __future__ import annotations

from collections.abc import Sequence

from tilewright.core.node import walk
from tilewright.loop.ir import (
    TRUE,
    Add,
    Block,
    Buffer,
    Cast,
    Const,
    Expr,
    For,
    Guard,
    IterVar,
    Load,
    Lt,
    Mul,
    Program,
    Stmt,
    Store,
    Var,
    as_int,
    const,
    seq,
)
from tilewright.loop.substitute import substitute
from tilewright.tensor.combiner import reduction_of
from tilewright.tensor.regions import conjunction
from tilewright.tensor.schedule.nest import build_nest, whole
from tilewright.tensor.schedule.proofs import shared_writer
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import (
    BlockRef,
    ScheduleError,
    allocate,
    edit,
    find_block,
    fresh_name,
    loops_around,
    refuse,
)
from tilewright.tensor.schedule.trace import primitive
from tilewright.tensor.span import Algebra, vars_of

NAME = "pad_einsum"


@primitive
def pad_einsum(sch: Schedule, block: BlockRef, multiples: Sequence[int], wrap: bool = False) -> list[BlockRef]:
    """Pad the extent of each iteration variable of `block` to a multiple (1: as it is). Returns the blocks that pad the
    operands, in order of first use, then the one that copies the result out of its padded buffer. `wrap`: beyond the end of
    a spatial axis operands are read from their beginning again, instead of being zero.

    The block must be a reduction in a nest of its own, a serial loop from 0 for each variable; a padded variable must be an
    index by itself wherever it is used. Legal if what is added does not change a reduction. Raises ScheduleError.
    """
    program = sch.program
    b = find_block(program, block)
    loops = _own_loops(program, b, block)
    if len(multiples) != len(b.iters) or any(type(m) is not int or m < 1 for m in multiples):
        raise ScheduleError(NAME, f"give a positive multiple for each of the {len(b.iters)} variables, not "
                            f"{list(multiples)}", program, block)
    red = reduction_of(b)
    if red is None or len(red.buffers) != 1 or not isinstance(b.body, Store):
        raise ScheduleError(NAME, "the block is no reduction of one value with its initialisation", program, block)
    algebra = Algebra([])
    extent = {i.var: algebra.simplify((i.extent + (m - 1)) // m * m) for i, m in zip(b.iters, multiples, strict=True)}
    padded = {i.var for i in b.iters if not algebra.equal(extent[i.var], i.extent)}
    if not padded:
        raise ScheduleError(NAME, "all extents are such multiples already", program, block)
    target = red.buffers[0]
    _check_indices(program, b, padded, block)
    filler = _filler(program, b, red.values[0], red.start[0], padded, block)
    why = shared_writer(program, b)
    if why is not None:
        refuse(NAME, why, program, block)
    names: list[BlockRef] = []
    before: list[Stmt] = []
    renamed: dict[Buffer, Buffer] = {}
    new = program
    size = {i.var: i.extent for i in b.iters}
    again = {i.var for i in b.iters if wrap and i.kind == "spatial"}
    for load in [n for n in walk(b.body) if isinstance(n, Load) and n.buffer is not target]:
        if load.buffer in renamed or not padded & set(load.indices):
            continue
        copy, buffer = _copy(new, load, padded, extent, size, filler, again)
        renamed[load.buffer] = buffer
        names.append(BlockRef(copy.name))
        before.append(build_nest(copy, whole(copy), [])[0])
        new = allocate(new, buffer)
    out = _padded_buffer(target, b.body.indices, padded, extent)
    store = _store(new, b, target, out, b.body.indices)
    names.append(BlockRef(store.name))
    inner = b.replace(iters=tuple([i.replace(extent=extent[i.var]) for i in b.iters]),
                      body=substitute(b.body, {**renamed, target: out}),
                      init=None if b.init is None else substitute(b.init, {target: out}))
    nest: Stmt = inner
    sizes = {e: extent[i.var] for i, e in zip(b.iters, b.bindings, strict=True)}
    for f in reversed(loops):
        nest = f.replace(extent=sizes[f.var], body=nest)
    new = edit(new, loops[0], seq(*before, nest, build_nest(store, whole(store), [])[0]))
    sch.program = allocate(new, out)
    return names


def _own_loops(program: Program, b: Block, block: BlockRef) -> list[For]:
    """The loops around the block, which must be one for each variable and hold nothing else."""
    loops = loops_around(program, b)
    inner: Stmt = b
    for f in reversed(loops):
        if f.body is not inner:
            raise ScheduleError(NAME, f"loop {f.var.name} holds more than the block", program, f.var)
        inner = f
    if {f.var for f in loops} != set(b.bindings) or len(loops) != len(b.iters) or b.predicate != TRUE:
        raise ScheduleError(NAME, "the loops around the block are not one for each of its variables: pad before they are "
                            "split", program, block)
    for f in loops:
        i = next(i for i, e in zip(b.iters, b.bindings, strict=True) if e is f.var)
        if f.kind != "serial" or as_int(f.start) != 0 or not Algebra([]).equal(f.extent, i.extent):
            raise ScheduleError(NAME, f"loop {f.var.name} is not serial over all of {i.var.name}", program, f.var)
    return loops


def _check_indices(program: Program, b: Block, padded: set[Var], block: BlockRef) -> None:
    for n in walk(b.body):
        if isinstance(n, Load | Store):
            for e in n.indices:
                if not isinstance(e, Var) and vars_of(e) & padded:
                    raise ScheduleError(NAME, f"{n.buffer.name} is indexed with {e}: a padded variable must be an index by "
                                        "itself", program, block)
            used = [e for e in n.indices if e in padded]
            if len(set(used)) != len(used):
                raise ScheduleError(NAME, f"{n.buffer.name} is indexed twice with one variable", program, block)


def _filler(program: Program, b: Block, term: Expr, start: Expr, padded: set[Var], block: BlockRef) -> Expr | None:
    """What the operands hold beyond their ends (None: a zero of their type)."""
    if not any(i.kind == "reduce" and i.var in padded for i in b.iters):
        return None
    if isinstance(term, Load) and isinstance(start, Const):
        return start
    factors = [_widened(f) for f in _factors(term)]
    is_sum = isinstance(b.body, Store) and isinstance(b.body.value, Add)
    every = all(isinstance(f, Load) for f in factors)
    covered = {v for f in factors if isinstance(f, Load) for v in f.indices}
    missing = next((i for i in b.iters if i.kind == "reduce" and i.var in padded and i.var not in covered), None)
    if not (is_sum and every) or missing is not None:
        raise ScheduleError(NAME, f"the reduction is over {term}: only of products of operands, or of one operand, is known "
                            "what padding adds nothing to it", program, block)
    return None


def _factors(e: Expr) -> list[Expr]:
    return [*_factors(e.a), *_factors(e.b)] if isinstance(e, Mul) else [e]


def _widened(e: Expr) -> Expr:
    """What a number is converted from: a zero stays one."""
    return _widened(e.a) if isinstance(e, Cast) else e


def _padded_buffer(buffer: Buffer, indices: Sequence[Expr], padded: set[Var], extent: dict[Var, Expr]) -> Buffer:
    shape = [extent[e] if isinstance(e, Var) and e in padded else n for e, n in zip(indices, buffer.shape, strict=True)]
    return buffer.replace(name=f"{buffer.name}_pad", shape=tuple(shape), scope="global", strides=None, data=None)


def _copy(program: Program, load: Load, padded: set[Var], extent: dict[Var, Expr], size: dict[Var, Expr],
          filler: Expr | None, again: set[Var]) -> tuple[Block, Buffer]:
    """The block that writes a padded copy of an operand, and its buffer. Along the variables `again` it begins anew."""
    buffer = _padded_buffer(load.buffer, load.indices, padded, extent)
    v = tuple([Var(f"v{k}") for k in range(buffer.rank)])
    along = [(x, e) for x, e in zip(v, load.indices, strict=True) if isinstance(e, Var) and e in padded]
    inside = conjunction([Lt(x, size[e]) for x, e in along if e not in again])
    at = substitute(Load(load.buffer, v), {x: x % size[e] for x, e in along if e in again})
    outside = const(0, buffer.dtype) if filler is None else filler
    iters = tuple([IterVar(x, n) for x, n in zip(v, buffer.shape, strict=True)])
    body = Store(buffer, v, at if inside == TRUE else Guard(inside, at, outside))
    return Block(fresh_name(program, buffer.name), iters, v, TRUE, body), buffer


def _store(program: Program, b: Block, target: Buffer, out: Buffer, indices: Sequence[Expr]) -> Block:
    """The block that copies the result out of its padded buffer."""
    spatial = [i for i in b.iters if i.kind == "spatial"]
    own = {i.var: Var(i.var.name) for i in spatial}
    at = tuple([substitute(e, own) for e in indices])
    iters = tuple([IterVar(own[i.var], i.extent) for i in spatial])
    return Block(fresh_name(program, f"{b.name}_store"), iters, tuple([i.var for i in iters]), TRUE,
                 Store(target, at, Load(out, at)))

