"""reindex: a block reads an operand over its own variables, one dimension each; another block gathers it.

    for i, j, k:                                  for i, k:
      block C(vi = i, vj = j, vk = k):      →       block X_at(vi = i, vk = k): X_at[vi, vk] = X[vi*2 + vk]
        C[vi, vj] += X[vi*2 + vk] * W[vk, vj]     … block C: C[vi, vj] += X_at[vi, vk] * W[vk, vj]

A convolution is a product of matrices then. The gathered array is meant for compute_at: as a whole it may be large.
"""
from __future__ import annotations

from collections.abc import Sequence

from tilewright.core.node import transform, walk
from tilewright.loop.ir import TRUE, Block, For, Guard, IterVar, Let, Load, Select, Store, Var
from tilewright.loop.substitute import substitute
from tilewright.tensor.regions import inputs, outputs, writers
from tilewright.tensor.schedule.nest import build_nest, insert, whole
from tilewright.tensor.schedule.proofs import missing_input, shared_loops
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import (
    BlockRef,
    ScheduleError,
    allocate,
    blocks_under,
    edit,
    find_block,
    fresh_buffer_name,
    fresh_name,
    refuse,
)
from tilewright.tensor.schedule.trace import primitive

NAME = "reindex"


@primitive
def reindex(sch: Schedule, block: BlockRef, buffer: str, axes: Sequence[int]) -> BlockRef:
    """Let `block` read its input `buffer` as an array over the variables in whose terms it is indexed; `axes` are their
    numbers among the block's variables, in the order of the new array's dimensions. Returns the block that gathers it.

    Legal if the block reads the buffer at one place and without a condition, so that each of the variables' values has an
    element, and shares no loop with what writes it. Raises ScheduleError.
    """
    program = sch.program
    b = find_block(program, block)
    found = [n for n in walk(b.body) if isinstance(n, Load) and n.buffer.name == buffer]
    if len(set(found)) != 1 or found[0].buffer in outputs(b) or found[0].buffer not in inputs(b):
        raise ScheduleError(NAME, f"it does not read {buffer} at one place", program, block)
    load = found[0]
    if b.predicate != TRUE or any(load in walk(n) for n in walk(b.body) if isinstance(n, Guard | Select)):
        raise ScheduleError(NAME, f"it reads {buffer} under a condition", program, block)
    used = {n for i in load.indices for n in walk(i) if isinstance(n, Var)}
    if any(isinstance(n, For | Let) and n.var in used for n in walk(b.body)):
        raise ScheduleError(NAME, f"a tile of {buffer} is read in each of its instances: gather before blockize", program,
                            block)
    own = {k for k, it in enumerate(b.iters) if it.var in used}
    if sorted(axes) != sorted(own):
        raise ScheduleError(NAME, f"{buffer} is indexed in terms of the variables {sorted(own)}, not {list(axes)}", program,
                            block)
    if any(shared_loops(program, w, b) for w in writers(program, load.buffer)):
        raise ScheduleError(NAME, f"it shares a loop with what writes {buffer}", program, block)
    name = fresh_name(program, f"{buffer}_at")
    iters = [b.iters[k] for k in axes]
    fresh = {it.var: Var(it.var.name, it.var.type) for it in iters}
    v = tuple([fresh[it.var] for it in iters])
    made = load.buffer.replace(name=fresh_buffer_name(program, f"{buffer}_at"), shape=tuple([it.extent for it in iters]),
                               scope="global", strides=None, data=None)
    gather = Block(name, tuple([IterVar(fresh[it.var], it.extent) for it in iters]), v, TRUE,
                   Store(made, v, substitute(load, fresh)))
    at = Load(made, tuple([it.var for it in iters]))
    new = edit(program, b, b.replace(body=transform(b.body, lambda n: at if n == load else n)))
    nest, _ = build_nest(gather, whole(gather), [])
    new = insert(new, None, lambda stmts: next(k for k, s in enumerate(stmts)
                                               if any(x.name == b.name for x in blocks_under(s))), nest)
    new = allocate(new, made)
    why = missing_input(new, find_block(new, BlockRef(name)))
    if why is not None:
        refuse(NAME, why, program, block)
    sch.program = new
    return BlockRef(name)
