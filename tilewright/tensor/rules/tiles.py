"""Register tiles: how many output elements a contraction keeps in registers, from the target's facts.

In: extents of the axes that can be tiled, lanes and registers. Out: a `Tile`. The model counts, per step of the reduction,
the fused multiply-adds and the loads (one per weight vector and one for its prefetch, one per broadcast), both issued two
per cycle, and charges what the tile wastes on remainders; a tile must fit the vector registers.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

from tilewright.target.target import Target


@dataclass(frozen=True)
class Tile:
    """`rows` x `columns` output positions times `vectors` vectors of the output's innermost axis."""
    rows: int
    columns: int
    vectors: int

    @property
    def accumulators(self) -> int:
        return self.rows * self.columns * self.vectors


LATENCY = 4
"""Cycles of a fused multiply-add: fewer accumulators than LATENCY * fma_units leave the units waiting."""


NEARLY = 1.03
"""Costs whose ratio is below this are about the same."""


def tail_pieces(extent: int, lanes: int) -> int:
    """How many more vectors than one the last, incomplete vector of an axis takes: it is done by halves (13 = 8 + 4 + 1)."""
    return max(0, (extent % lanes).bit_count() - 1)


def cost_per_element(tile: Tile, rows: int, columns: int, vectors: int, target: Target, tail: int = 0) -> float:
    """Cycles per output vector and reduction step, remainders included (lower is better); `tail`: see `tail_pieces`."""
    def parts(extent: int, size: int) -> list[tuple[int, int]]:
        full, rest = divmod(extent, size)
        return [(size, full)] * bool(full) + [(rest, 1)] * bool(rest)

    cycles = 0.0
    for r, nr in parts(rows, tile.rows):
        for c, nc in parts(columns, tile.columns):
            for v, nv in [*parts(vectors, tile.vectors), *([(tail, 1)] if tail else [])]:
                fmas, loads = r * c * v, r * c + 2 * v
                busy = max(fmas / target.fma_units, loads / 2, LATENCY * min(1.0, fmas))
                cycles += nr * nc * nv * (busy + 0.15)
    return cycles / (rows * columns * vectors)


def registers_left(v: int, target: Target, pieces: bool = False) -> int:
    """Registers for accumulators when a tile is `v` vectors wide. A step of the reduction needs its vectors of the second
    operand and one broadcast; without operands in memory also those of the next step, which are loaded meanwhile, and so
    with `pieces` of several widths, which need a broadcast each."""
    operands = v + 1
    return target.vector_registers - (operands if target.memory_operands and not pieces else 2 * operands)


def fits(tile: Tile, vectors: int, target: Target, tail: int = 0) -> bool:
    """Whether the registers hold a tile and its operands; the last of `vectors` along the innermost axis is in `tail` more
    pieces than one."""
    last = (vectors - 1) % tile.vectors + 1 + tail
    v = max(tile.vectors, last)
    return tile.rows * tile.columns * v <= registers_left(v, target, pieces=tail > 0)


L1_WAYS = 8
"""Lines that share a set of the first-level cache (8 on x86 for 32 KiB, more for larger ones)."""


def most_apart(stride: int, target: Target) -> int:
    """How many places `stride` bytes apart the first-level cache holds at once: few where the stride is a multiple of a
    large power of two, since their lines then share sets."""
    sets = max(1, target.l1d // (target.cache_line * L1_WAYS))
    if stride % target.cache_line:
        return sets * L1_WAYS
    return sets // math.gcd(stride // target.cache_line, sets) * L1_WAYS


def choose_tile(rows: int, columns: int, vectors: int, target: Target, *, max_rows: int = 2, tail: int = 0,
                widest: int = 0, whole: bool = False, max_columns: int = 512) -> Tile:
    """The cheapest register tile for `rows` x `columns` positions and `vectors` vectors of outputs.

    `max_rows` bounds the tile in the outer position axis (two rows of pixels suffice to fill the registers when a row is
    short), `max_columns` in the other (`most_apart`); `tail`: see `tail_pieces`. Ties go to the tile with more positions:
    each weight vector is then used more often.
    With `widest`, among tiles that cost about the same one of the most vectors up to that number is taken: the other
    operand, too large for the cache, is then read fewer times. `whole`: the tile's columns must divide `columns`.
    """
    best, best_key = Tile(1, 1, 1), (math.inf, 0.0)
    keys: dict[Tile, tuple[float, float]] = {}
    for v in range(1, min(vectors, 8) + 1):
        for r in range(1, min(rows, max_rows) + 1):
            for c in range(1, min(columns, max_columns, registers_left(v, target) // (r * v)) + 1):
                tile = Tile(r, c, v)
                if not fits(tile, vectors, target, tail) or whole and columns % c:
                    continue
                key = (round(cost_per_element(tile, rows, columns, vectors, target, tail), 4), -r * c / (r * c + v))
                keys[tile] = key
                if key < best_key:
                    best, best_key = tile, key
    near = [t for t, key in keys.items() if key[0] <= NEARLY * best_key[0] and t.vectors <= widest]
    return min(near, key=lambda t: (-t.vectors, keys[t])) if near else best
