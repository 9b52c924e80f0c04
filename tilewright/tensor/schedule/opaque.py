"""What schedules may do with a block that calls an external function: nothing that would have to look into it.

In: a primitive's name and arguments, and the programs before and after it. Out: a ScheduleError, or nothing. A call gets
addresses and expects its tensors whole and row by row, runs as often as it is written, and has no loops of its own.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tilewright.core.node import alpha_equal
from tilewright.loop.ir import Block, ExternCall, Load, Program
from tilewright.loop.substitute import substitute
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.state import BlockRef, ScheduleError

MAY = frozenset({"block", "loops", "annotate", "add_unit_loop", "cache_read", "set_scope"})
"""The primitives that may be given such a block: they leave the call as it is, but for the names of its buffers."""
ALIGN = "storage_align"


def symbol_of(b: Block) -> str:
    """The external function that a block calls; "" for any other block."""
    return b.body.symbol if isinstance(b.body, ExternCall) else ""


def refuse_inside(primitive: str, program: Program, args: Iterable[Any]) -> None:
    """Raise ScheduleError for a primitive that is given such a block and would have to know what it does."""
    if primitive in MAY:
        return
    for ref in _refs(args):
        found = [b for b in state.blocks(program) if b.name == ref.name and symbol_of(b)]
        if found:
            raise ScheduleError(primitive, f"block {ref.name} calls the external function {symbol_of(found[0])}, into which "
                                "nothing can look: it stays whole, and where it is written", program, ref,
                                "schedule the stages around it, or write it in the compute or the kernel language")


def _refs(args: Iterable[Any]) -> Iterator[BlockRef]:
    for a in args:
        if isinstance(a, BlockRef):
            yield a
        elif isinstance(a, tuple | list):
            yield from _refs(a)


def refuse_changed(primitive: str, before: Program, after: Program) -> None:
    """Raise ScheduleError if a call would get something else than the tensors that it wants."""
    old = {b.name: b for b in state.blocks(before) if symbol_of(b)}
    new = {b.name: b for b in state.blocks(after)}
    for name, b in old.items():
        why = "it would be gone" if name not in new else _difference(b, new[name], after)
        if why:
            raise ScheduleError(primitive, f"block {name} calls the external function {symbol_of(b)}: {why}", before,
                                BlockRef(name), "cache_read copies what it reads, or others of it: change the copy")


def _difference(old: Block, new: Block, program: Program) -> str:
    a, b = old.body, new.body
    assert isinstance(a, ExternCall)
    if a is b:
        places: list[Load] = [x for x in a.args if isinstance(x, Load)]
    elif not isinstance(b, ExternCall) or any(isinstance(x, Load) and not isinstance(y, Load)
                                              for x, y in zip(a.args, b.args, strict=True)):
        return "it is passed the address of a tensor, not a value that is computed in its place"
    else:
        places = [y for y in b.args if isinstance(y, Load)]
        renamed = {x.buffer: y.buffer for x, y in zip(a.args, b.args, strict=True)
                   if isinstance(x, Load) and isinstance(y, Load)}
        for x, y in renamed.items():
            if x.shape != y.shape or y.strides is not None:
                return f"it wants {x!r} as it is, row by row, not {y!r}"
            if y.scope not in ("global", "local"):
                return f"it cannot address {y.scope} memory, where {y.name} would be"
        if not alpha_equal(substitute(a, renamed), b):
            return "it wants the elements of its tensors where they are"
    aligned = [row[0] for row in program.attr(ALIGN, ())]
    padded = next((p.buffer.name for p in places if p.buffer.name in aligned), "")
    return f"the rows of {padded} follow each other without gaps for it" if padded else ""
