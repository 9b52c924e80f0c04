"""Schedule rule of a contraction between spatial blocks that stay beside it (Winograd's transforms): band after band.

In: a Schedule whose contraction reads what a spatial block makes, and whose result another one reads in several places. Out:
the schedule applied: what precedes, the contraction and what follows run over one band of its rows while all that passes
between them is in the second-level cache; bands in parallel.

    parallel (groups, chunks) | bands of a chunk | before; batch, N panel, rows of the band | reductions | tile; after

It pays if the second operand, which every band reads anew, stays in that cache as well: that of one group, where the
contraction is of groups that share nothing.
"""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tilewright.loop.ir import Block, IterVar, Store, as_int
from tilewright.target.target import Target
from tilewright.tensor.classify import Access, BlockInfo
from tilewright.tensor.regions import accesses, consumers, producers
from tilewright.tensor.rules.contraction import schedule_contraction
from tilewright.tensor.rules.elementwise import schedule_elementwise
from tilewright.tensor.rules.epilogue import is_padding
from tilewright.tensor.rules.threads import IMBALANCE
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef

HELD = 0.9
"""Share of the second-level cache that a band and the second operand may take."""


@dataclass(frozen=True)
class Banded:
    """The contraction, what makes its first operand, the chain of what follows, the contraction's axis of groups, and the
    sizes of a band that are worth trying, best first."""
    anchor: str
    before: str
    after: tuple[str, ...]
    groups: IterVar | None
    sizes: tuple[int, ...]


def find_bands(sch: Schedule, info: BlockInfo, target: Target) -> Banded | None:
    """How to run a contraction in bands, or None if it stands alone or its second operand is too large."""
    assert info.a is not None and info.b is not None and info.out is not None
    before = [p for p in producers(sch.program, info.block) if _writes(p) is info.a.buffer]
    after = _following(sch, info.block)
    if len(before) != 1 or not _is_spatial(before[0]) or len(after) < 2 or len(info.m) != 1:
        return None
    rows = as_int(info.m[0].extent)
    second, first, result = _bytes(info.b), _bytes(info.a), _bytes(info.out)
    if rows is None or second is None or first is None or result is None:
        return None
    groups = _groups(sch, info, after[0])
    count = 1 if groups is None else as_int(groups.extent) or 1
    per_row = -(-(first + result) // (rows * count))
    room = int(HELD * target.l2) - second // count
    sizes = tuple(_divisors(rows, count, max(0, room // per_row), target.cores))
    return Banded(info.block.name, before[0].name, after, groups, sizes) if sizes else None


def _groups(sch: Schedule, info: BlockInfo, reader: str) -> IterVar | None:
    """The axis of both operands along which what reads the result keeps to one place: its steps share nothing."""
    assert info.out is not None
    reads = [a.indices for a in accesses(state.find_block(sch.program, BlockRef(reader)))[0] if a.buffer is info.out.buffer]
    for axis in info.batch:
        at = [k for k, used in enumerate(info.out.vars) if axis.var in used]
        if len(at) == 1 and (as_int(axis.extent) or 1) > 1 and len({i and i[at[0]] for i in reads}) == 1:
            return axis
    return None


def _divisors(rows: int, groups: int, most: int, cores: int) -> Iterator[int]:
    """Sizes of bands that leave every core about the same number, the largest first."""
    for size in range(min(most, rows), 3, -1):
        bands = groups * (rows // size)
        if rows % size == 0 and -(-bands // cores) * cores <= IMBALANCE * bands:
            yield size


def _following(sch: Schedule, block: Block) -> tuple[str, ...]:
    """The spatial blocks that follow one another behind a block to the end; none if they fork."""
    at, found = block, []
    while readers := consumers(sch.program, at):
        if len(readers) > 1 or not _is_spatial(readers[0]):
            return ()
        at = readers[0]
        found.append(at.name)
    return tuple(found)


def _is_spatial(b: Block) -> bool:
    return b.init is None and isinstance(b.body, Store) and all(it.kind == "spatial" for it in b.iters)


def _writes(b: Block) -> object:
    return b.body.buffer if isinstance(b.body, Store) else None


def _bytes(access: Access) -> int | None:
    sizes = [as_int(d) for d in access.buffer.shape]
    return None if None in sizes else access.buffer.dtype.nbytes * math.prod(n or 0 for n in sizes)


def schedule_bands(sch: Schedule, found: Banded, size: int, target: Target) -> None:
    """Schedule a contraction and its neighbours in bands of `size` rows. Raises ScheduleError if what follows cannot be
    computed from whole bands alone."""
    *between, last = [sch.block(name) for name in found.after]
    fills: list[BlockRef] = []
    if is_padding(state.find_block(sch.program, last)):
        last, *fills = sch.decompose_padding(last)
    bands = schedule_contraction(sch, sch.block(found.anchor), None, target, band=size, groups=found.groups)
    assert bands is not None
    chunk = _per_chunk(as_int(sch.loop(bands).extent) or 1, target.cores if found.groups is None else 1)
    chunks, bands = sch.split(bands, [None, chunk])
    before = sch.block(found.before)
    sch.compute_at(before, bands)
    sch.set_scope(before, 0, "local")
    (stored,) = producers(sch.program, state.find_block(sch.program, (*between, last)[0]))
    sch.set_scope(BlockRef(stored.name), 0, "local")
    for ref in (*between, last):
        sch.reverse_compute_at(ref, bands)
    schedule_elementwise(sch, before, target, home=bands)
    schedule_elementwise(sch, last, target, home=bands)
    for f in fills:
        schedule_elementwise(sch, f, target)
    if found.groups is not None:
        chunks = sch.fuse(state.loops_around(sch.program, sch.loop(chunks))[0].var, chunks)
    sch.parallel(chunks)


def _per_chunk(bands: int, cores: int) -> int:
    """Bands that run one after another in the same memory, so that this stays in the cache: all of a core's share."""
    return max(n for n in range(1, -(-bands // cores) + 1) if bands % n == 0 and bands // n % cores == 0 or n == 1)

