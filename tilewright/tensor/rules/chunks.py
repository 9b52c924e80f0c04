"""Long reductions of contractions in chunks, so that the first operand stays in the second-level cache.

In: a contraction whose first operand is streamed anew, from beyond that cache, for every panel of weights. Out: how long a
chunk of its reduction is; the block of partial sums, one result per chunk; and the block that adds these, scheduled.

    parallel (chunk, N panel, …) | M tiles | reduction within the chunk | tile → partial[chunk, …]
    parallel (…) | vectors | chunks, unrolled → epilogue

The chunks depend on sizes and caches alone, so that results do not differ by the number of threads.
"""
from __future__ import annotations

import math

from tilewright.loop.ir import Var, as_int
from tilewright.target.target import Target
from tilewright.tensor.classify import Access, BlockInfo
from tilewright.tensor.rules.epilogue import attach_epilogue, attach_rolled, finish_store, is_heavy
from tilewright.tensor.rules.threads import parallelize_outer
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef

WORTH = 4
"""So many times the traffic of partial sums must chunks save, since that is not prefetched as panels of weights are."""


def chunk_length(info: BlockInfo, steps: int, multiple: int, panels: int, width: int, target: Target) -> int:
    """Steps of the outermost reduction axis, of `steps`, in a chunk; 0 if chunks do not pay.

    A chunk divides `steps` and is a multiple of `multiple`; it lets half of the second-level cache hold its part of the
    first operand and a quarter its part of a panel, of `width` elements. `panels` is how often the first operand is read."""
    assert info.a is not None and info.b is not None and info.out is not None
    a, out = _bytes(info.a), _bytes(info.out)
    if a is None or out is None or a <= target.l2 // 2:
        return 0
    panel = info.extent(info.k) * width * info.b.buffer.dtype.nbytes
    for chunk in range(steps // 2, 0, -1):
        fits = a * chunk <= target.l2 // 2 * steps and panel * chunk <= target.l2 // 4 * steps
        if steps % chunk == 0 and chunk % multiple == 0 and fits:
            return chunk if WORTH * 2 * (steps // chunk) * out <= panels * a else 0
    return 0


def _bytes(access: Access) -> int | None:
    sizes = [as_int(d) for d in access.buffer.shape]
    return None if None in sizes else access.buffer.dtype.nbytes * math.prod(n or 0 for n in sizes)


def cut_reduction(sch: Schedule, ref: BlockRef, loop: Var, chunk: int) -> tuple[BlockRef, Var, Var]:
    """Split a reduction loop of an unscheduled block into chunks with a partial result each. Returns the block of partial
    results, the loop over chunks, now outermost, and the loop within a chunk."""
    chunks, inner = sch.split(loop, [None, chunk])
    sch.reorder(chunks, *[v for v in sch.loops(ref) if v is not chunks])
    return sch.rfactor(ref, chunks, 0), chunks, inner


def add_chunks(sch: Schedule, ref: BlockRef, epilogue: BlockRef | None, vector: int, lanes: int, target: Target) -> None:
    """Schedule the sum of the partial results in vectors along the block's axis number `vector`, its output's innermost,
    and the epilogue with it."""
    heavy = epilogue is not None and is_heavy(state.find_block(sch.program, epilogue))
    if epilogue is not None and not heavy:
        sch.set_scope(ref, 0, "local")
        store = epilogue
    else:
        store = sch.cache_write(ref, 0, "local")
    *spatial, chunks = sch.loops(ref)
    home, lane = sch.split(spatial.pop(vector), [None, lanes])
    outer = [*spatial, home]
    sch.reorder(*outer, chunks, lane)
    attach_epilogue(sch, store, home)
    init = sch.decompose_reduction(ref, chunks)
    sch.vectorize(sch.loops(init)[-1])
    sch.unroll(chunks)
    sch.vectorize(lane)
    finish_store(sch, store, home, lanes)
    if epilogue is not None and heavy:
        sch.set_scope(store, 0, "local")
        attach_rolled(sch, epilogue, home, lanes)
    parallelize_outer(sch, outer, target)
