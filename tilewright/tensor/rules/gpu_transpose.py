"""Schedule rule for devices: elementwise blocks that read along another axis than they write, through shared memory.

In: a Schedule and its block. Out: one kernel. A block of threads reads a square tile as it lies in memory, neighbours
neighbouring elements, and writes it as the output lies; the tile's rows are one element longer than the tile, so that a
column is in as many banks as a row.

    blocks | load the tile: threads y, x along the input's last axis | threads y, x along the output's last axis

Tiles of 32 × 32 by 8 rows of threads: G. Ruetsch and P. Micikevicius, "Optimizing Matrix Transpose in CUDA" (2009).
"""
from __future__ import annotations

from tilewright.loop.ir import Block, Var
from tilewright.target.target import Target
from tilewright.tensor.classify import Access, classify
from tilewright.tensor.regions import outputs
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef

TILE, ROWS = 32, 8
"""The tile's side, and the rows of threads that move it."""
SHORT = 8
"""Shorter axes are read and written well enough by a thread per result."""


def transposed_read(block: Block) -> tuple[Access, Var, Var] | None:
    """A read whose contiguous axis is not the output's, with that axis and the output's; None if there is none."""
    info = classify(block)
    if info.out is None or info.kind not in ("elementwise", "injective") or len(outputs(block)) != 1:
        return None
    column = _last(info.out, info.extents)
    for x in info.reads:
        row = _last(x, info.extents)
        if row is None or column is None or row is column or not all(len(used) <= 1 for used in x.vars):
            continue
        plain = all(i in (row, column) for i, used in zip(x.indices, x.vars, strict=True) if used & {row, column})
        if plain and column in x.all_vars and min(info.extents[row] or 0, info.extents[column] or 0) >= SHORT:
            return x, row, column
    return None


def _last(x: Access, extents: dict[Var, int | None]) -> Var | None:
    """The variable of the last index that moves."""
    for index, used in zip(reversed(x.indices), reversed(x.vars), strict=True):
        if any(extents[v] != 1 for v in used):
            return index if isinstance(index, Var) else None
    return None


def schedule_transpose(sch: Schedule, ref: BlockRef, target: Target) -> set[str]:
    """Schedule such a block; the names of the blocks that have their schedule now."""
    block = state.find_block(sch.program, ref)
    found = transposed_read(block)
    assert found is not None
    read, row, column = found
    loops = dict(zip([it.var for it in block.iters], sch.loops(ref), strict=True))
    copy = sch.cache_read(ref, read.buffer.name, "shared")
    side = TILE
    rows = min(ROWS, target.max_threads // side)
    ro, ri = sch.split(loops[row], [None, side])
    co, ci = sch.split(loops[column], [None, side])
    rest = [v for k, v in loops.items() if k not in (row, column)]
    sch.reorder(*rest, ro, co, ri, ci)
    sch.compute_at(copy, co)
    moved = [it.var for it in state.find_block(sch.program, copy).iters]
    here = dict(zip(moved, sch.loops(copy)[len(rest) + 2:], strict=True))
    dims = {i: k for k, i in enumerate(read.indices)}
    own = list(here)
    along, down = here[own[dims[row]]], here[own[dims[column]]]
    sch.storage_align(copy, 0, dims[column], 2, 1)
    for outer, inner in ((ri, ci), (down, along)):
        step, y = sch.split(outer, [None, rows])
        sch.reorder(y, inner, step)
        sch.unroll(step)
        sch.bind(y, "threadIdx.y")
        sch.bind(inner, "threadIdx.x")
    many = [v for v in [*rest, ro, co] if sch.loop(v).extent.value != 1] or [co]  # type: ignore[attr-defined]
    head = many[:-2]
    if head:
        sch.bind(sch.fuse(*head) if len(head) > 1 else head[0], "blockIdx.z")
    for v, axis in zip(many[-2:], ("blockIdx.y", "blockIdx.x")[-len(many[-2:]):], strict=True):
        sch.bind(v, axis)
    return {ref.name, copy.name}
