"""Static memory planning: gives every stored value a byte offset in one arena, reusing memory whose value is dead.

In: storages with sizes in bytes and the steps between which they live. Out: an offset for each and the arena's size.
Greedy by size: the largest first, each at the lowest offset where it meets no storage that lives at the same time
(the "greedy by size" of Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference, 2020).
"""
from __future__ import annotations

from dataclasses import dataclass

ALIGN = 64
"""Bytes: a cache line, and the widest vector."""


@dataclass(eq=False)
class Storage:
    """A stretch of the arena: `size` bytes, alive from step `first` to step `last` inclusive."""
    name: str
    size: int
    first: int
    last: int
    offset: int = -1

    def meets(self, other: Storage) -> bool:
        """Whether both are alive at some step."""
        return self.first <= other.last and other.first <= self.last


def round_up(n: int, to: int = ALIGN) -> int:
    return -(-n // to) * to


def assign_offsets(storages: list[Storage]) -> int:
    """Set every storage's offset; returns the arena's size in bytes (a multiple of ALIGN)."""
    placed: list[Storage] = []
    total = 0
    for s in sorted(storages, key=lambda s: (-s.size, s.first)):
        at = 0
        for other in sorted((p for p in placed if p.meets(s)), key=lambda p: p.offset):
            if at + round_up(s.size) <= other.offset:
                break
            at = max(at, other.offset + round_up(other.size))
        s.offset = at
        placed.append(s)
        total = max(total, at + round_up(s.size))
    return total
