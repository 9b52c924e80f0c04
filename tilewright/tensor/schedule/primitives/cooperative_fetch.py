"""cooperative_fetch: all threads of a block load a tile together, neighbours neighbouring elements, several at a time.

    cooperative_fetch(A_shared, [("threadIdx.y", 4), ("threadIdx.x", 32)], 4)
        for i in 0..64: for k in 0..32:                 for ty in 0..4 threadIdx.y: for tx in 0..32 threadIdx.x:
          A_shared[i, k] = A[…]                   →       for s in 0..4: for v in 0..4 vectorized:
                                                            A_shared[i, k] = A[…]

i and k are the digits of the number ((s*4 + ty)*32 + tx)*4 + v.
"""
from __future__ import annotations

from collections.abc import Sequence

from tilewright.loop.ir import For, Var, as_int
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef, ScheduleError, blocks_under, find_block, loops_around
from tilewright.tensor.schedule.trace import primitive

NAME = "cooperative_fetch"


@primitive
def cooperative_fetch(sch: Schedule, block: BlockRef, threads: Sequence[tuple[str, int]], vector: int = 1) -> list[Var]:
    """Share out the loops that `block` has to itself: fused, split by `threads` (axes and how many, outermost first) and by
    `vector`, bound and vectorized. Returns the loops over the threads, over the steps of each, and (if `vector` is not 1)
    over a vector.

    Raises ScheduleError as fuse, split, reorder, bind and vectorize do, and where a row is no whole number of vectors.
    """
    b = find_block(sch.program, block)
    own: list[For] = []
    for f in reversed(loops_around(sch.program, b)):
        if len(blocks_under(f)) > 1 or f.kind != "serial":
            break
        own.insert(0, f)
    if not own or not threads or not isinstance(vector, int) or vector < 1:
        raise ScheduleError(NAME, f"block {b.name} shares its loops, or there are no threads to share them out to",
                            sch.program, block)
    row = as_int(own[-1].extent)
    if row is None or row % vector:
        raise ScheduleError(NAME, f"a row of {own[-1].extent} is no whole number of vectors of {vector}", sch.program,
                            own[-1].var)
    fused = sch.fuse(*[f.var for f in own])
    step, *lanes = sch.split(fused, [None, *[n for _, n in threads], *([vector] if vector > 1 else [])])
    inner = lanes[len(threads):]
    lanes = lanes[:len(threads)]
    sch.reorder(*lanes, step, *inner)
    for lane, (axis, _) in zip(lanes, threads, strict=True):
        sch.bind(lane, axis)
    for v in inner:
        sch.vectorize(v)
    return [*lanes, step, *inner]
