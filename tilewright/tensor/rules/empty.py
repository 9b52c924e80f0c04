"""Reductions over what may be empty: their initialisation goes before their loops.

In: a schedule, finished. Out: the same, in which every block whose reduced extent may be 0 starts in a block of its own, so
that a sum of nothing is 0 and not what the memory held.
"""
from __future__ import annotations

from tilewright.loop.bounds import prove
from tilewright.loop.ir import ONE, Le
from tilewright.loop.substitute import free_vars
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule


def start_before_loops(sch: Schedule) -> None:
    """Where all extents are known to be positive, the rule's choice stays."""
    for b in state.blocks(sch.program):
        reduced = [(it, e) for it, e in zip(b.iters, b.bindings, strict=True) if it.kind == "reduce"]
        if b.init is None or all(prove(Le(ONE, it.extent)) for it, _ in reduced):
            continue
        used = {v for _, e in reduced for v in free_vars(e)}
        ref = sch.block(b.name)
        first = next((v for v in sch.loops(ref) if v in used), None)
        if first is not None:
            sch.decompose_reduction(ref, first)
