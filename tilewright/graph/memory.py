"""Memory planning: gives every stored value a place, reusing memory whose value is dead.

In: storages with sizes in bytes and the steps between which they live. Out: for sizes that are numbers an offset for each in
one arena, and the arena's size; for sizes that are expressions slots, which storages that never live together share, and
whose offsets are sums of sizes at run time.

Offsets: greedy by size, the largest first, each at the lowest offset where it meets no storage that lives at the same time
(the "greedy by size" of Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference, 2020). Slots: the
same order with usual sizes, each in the slot whose size it fits best (their "greedy by size for shared objects").
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tilewright.graph.infer import dim
from tilewright.loop.ir import Expr, estimate, maximum

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


@dataclass(eq=False)
class Flexible:
    """A storage whose size in bytes is an expression."""
    name: str
    size: Expr
    first: int
    last: int

    def meets(self, other: Flexible) -> bool:
        return self.first <= other.last and other.first <= self.last


@dataclass(eq=False)
class Slot:
    """Memory that storages share which never live together."""
    members: list[Flexible] = field(default_factory=list)
    usual: int = 0

    def size(self) -> Expr:
        """Bytes: the largest member, rounded up. Sizes that are known not to be larger than another are left out."""
        sizes = list(dict.fromkeys(m.size for m in self.members))
        out = sizes[0]
        for s in sizes[1:]:
            out = dim(maximum(out, s))
        return dim((out + (ALIGN - 1)) // ALIGN * ALIGN)


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


def assign_slots(storages: Sequence[Flexible]) -> list[Slot]:
    """Slots for storages, each in one, by their sizes at the usual values of the symbols."""
    slots: list[Slot] = []
    for s in sorted(storages, key=lambda s: (-estimate(s.size), s.first)):
        free = [slot for slot in slots if not any(m.meets(s) for m in slot.members)]
        # of the same size wherever there is one, so that the slot's size stays simple; else the smallest that is free
        home = min(free, key=lambda slot: (all(m.size != s.size for m in slot.members), slot.usual), default=None)
        if home is None:
            home = Slot(usual=estimate(s.size))
            slots.append(home)
        home.members.append(s)
    return slots
