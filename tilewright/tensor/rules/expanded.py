"""The second operand of a contraction that a spatial block makes of weights: packed weights, expanded where they are used.

In: a Schedule and its contraction. Out: the block that expands, and how many steps of the reduction share what it reads per
block of them; the weights themselves laid out as the register tile streams them, like those that need no expansion
(`contraction.py`); the block inlined in the product, so that a weight goes from memory to registers as it is stored.
"""
from __future__ import annotations

from dataclasses import dataclass

from tilewright.core.node import walk
from tilewright.loop.ir import Expr, FloorDiv, Le, Store, Var, as_int, const
from tilewright.loop.simplify import simplify
from tilewright.tensor.classify import BlockInfo, classify
from tilewright.tensor.regions import consumers, producers
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.index_map import IndexFunction
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef


@dataclass(frozen=True)
class Expansion:
    """The block that makes the second operand; `weights`: what it reads, by name, each with the number of its dimension
    along the columns; `shared`: steps of the reduction that read the same elements of some of them (1: none do)."""
    ref: BlockRef
    weights: tuple[tuple[str, int, int], ...]
    shared: int


def find_expansion(sch: Schedule, info: BlockInfo) -> Expansion | None:
    """The block that makes a contraction's second operand [K, N] of weights alone, for it alone; None if there is none, or
    the operand is read otherwise than by one reduction and one column."""
    assert info.b is not None
    made = [p for p in producers(sch.program, info.block) if isinstance(p.body, Store) and p.body.buffer is info.b.buffer]
    if len(made) != 1 or len(info.n) != 1 or len(info.k) != 1 or len(consumers(sch.program, made[0])) != 1:
        return None
    block, column = made[0], info.n[0].var
    if tuple(info.b.indices) != (info.k[0].var, column) or len(info.b.indices) != 2:
        return None
    found = classify(block)
    known = sch.program.attr("weights", ())
    if found.out is None or any(it.kind != "spatial" for it in block.iters) or len(block.iters) != 2:
        return None
    n = found.out.indices[1]
    weights: dict[str, tuple[int, int]] = {}
    for read in found.reads:
        along = [d for d, index in enumerate(read.indices) if index == n]
        if read.buffer.name not in known or len(along) != 1 or any(
                isinstance(n, Var) and n in used for d, used in enumerate(read.vars) if d not in along):
            return None
        weights[read.buffer.name] = along[0], len(read.indices)
    if not weights:
        return None
    return Expansion(BlockRef(block.name), tuple((name, *at) for name, at in weights.items()), _shared(found, n))


def _shared(found: BlockInfo, n: Expr) -> int:
    """The longest run of rows that read the same element of a weight."""
    return max([1, *[as_int(e.b) or 1 for read in found.reads for index in read.indices if index != n
                     for e in walk(index) if isinstance(e, FloorDiv)]])


def divides(part: int, rows: Expr) -> bool:
    """Whether rows fall into several parts of more than one, all whole."""
    n = as_int(rows)
    return n is not None and 1 < part < n and n % part == 0


def lay_out(sch: Schedule, expansion: Expansion, width: int) -> None:
    """Lay what an expansion reads out in panels of `width` columns."""
    for name, along, rank in expansion.weights:
        sch.transform_layout(expansion.ref, name, _panels(along, rank, width), pad_value=0)


def _panels(along: int, rank: int, width: int) -> IndexFunction:
    """[…, n, …] → [n // width, …, n % width]"""
    def index_map(*i: Expr) -> list[Expr]:
        return [i[along] // width, *[i[d] for d in range(rank) if d != along], i[along] % width]
    return index_map


MANY_ROWS = 6
"""Rows from which a panel is expanded once: of a decoder in four bits, 4 rows took 9.9 ms inlined and 13.4 by panels, 7 rows
20.4 and 19.0, 15 rows 36 and 32."""

UNROLL_ROWS = 4
"""Rows of a panel expanded per turn: those of a byte, so that their places in it are constants."""


def many_rows(rows: Expr) -> Expr:
    """Whether a product of so many rows expands panels: TRUE, FALSE, or a condition on sizes."""
    return simplify(Le(const(MANY_ROWS, rows), rows))


def expand_panels(sch: Schedule, ref: BlockRef, expansion: Expansion, panels: Var, width: int, lanes: int) -> None:
    """Expand a panel of `width` columns in each step of `panels`, in vectors, packed as the tile streams it."""
    info = classify(state.find_block(sch.program, ref))
    assert info.b is not None
    sch.transform_layout(ref, info.b.buffer.name, lambda k, n: [n // width, k, n % width])
    sch.compute_at(expansion.ref, panels)
    sch.set_scope(expansion.ref, 0, "local")
    rows, columns = sch.loops(expansion.ref)[-2:]
    if divides(expansion.shared, sch.loop(rows).extent):
        rows = sch.split(rows, [None, expansion.shared])[1]
    unrolled = next((c for c in (UNROLL_ROWS, 2) if divides(c, sch.loop(rows).extent)), 1)
    if unrolled > 1:
        sch.unroll(sch.split(rows, [None, unrolled])[1])
    vectors, lane = sch.split(columns, [None, lanes])
    sch.unroll(vectors)
    sch.vectorize(lane)
