"""What follows the anchor of a group: elementwise blocks, borders and permutations, merged into the anchor's store.

In: a Schedule whose blocks follow an anchor. Out: at most one consumer block, which the anchor's rule puts at its tile.
"""
from __future__ import annotations

from tilewright.core.node import walk
from tilewright.loop.ir import Block, Call, Const, Guard, Le, Load, Lt, Select, Store, Var, as_int
from tilewright.tensor.classify import BlockInfo, classify, vars_of
from tilewright.tensor.regions import conjuncts, consumers
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef


def attach_epilogue(sch: Schedule, epilogue: BlockRef, home: Var) -> None:
    """Compute the epilogue where the tile is complete."""
    sch.reverse_compute_at(epilogue, home)


def finish_store(sch: Schedule, epilogue: BlockRef, home: Var | None, lanes: int) -> None:
    """Vectorize the epilogue along its output's innermost dimension and unroll the rest of the tile."""
    loops = sch.loops(epilogue)
    if home is not None:
        loops = loops[loops.index(home) + 1:]
    if not loops:
        return
    last = next((v for v in reversed(loops) if as_int(sch.loop(v).extent) != 1), loops[-1])
    n = as_int(sch.loop(last).extent)
    if n is None:
        return
    outer = [v for v in loops if v is not last]
    if last is not loops[-1]:
        sch.reorder(*outer, last)
    if n > lanes or n & (n - 1):  # in the pieces in which the tile lies, else its elements are no registers
        mid, last = sch.split(last, [None, lanes])
        outer = [*outer, mid]
    for v in outer:
        sch.unroll(v)
    sch.vectorize(last)


HEAVY = frozenset({"exp", "erf", "gelu", "tanh", "log", "pow"})
"""Functions that become dozens of instructions: unrolled over a register tile they would push it out of the registers."""


def is_heavy(block: Block) -> bool:
    """Whether an epilogue should run over the finished tile in a loop, from memory, instead of in the tile's store."""
    return any(isinstance(n, Call) and n.name in HEAVY for n in walk(block.body))


def attach_rolled(sch: Schedule, epilogue: BlockRef, home: Var | None, lanes: int) -> None:
    """Compute an epilogue behind the tile's store, in loops around vectors."""
    if home is not None:
        sch.reverse_compute_at(epilogue, home)
    loops = sch.loops(epilogue)
    if home is not None:
        loops = loops[loops.index(home) + 1:]
    if not loops:
        return
    last = loops[-1]
    n = as_int(sch.loop(last).extent)
    if n is not None and n > lanes:
        _, last = sch.split(last, [None, lanes])
    sch.vectorize(last)


def merge_chain(sch: Schedule, anchor: BlockRef) -> tuple[BlockRef | None, list[BlockRef]]:
    """Merge the single-consumer chain behind `anchor` into one block.

    Returns that block (None if nothing follows) and the blocks that fill borders of its output."""
    chain: list[BlockRef] = []
    fills: list[BlockRef] = []
    at = anchor
    while True:
        after = consumers(sch.program, state.find_block(sch.program, at))
        if len(after) != 1 or classify(after[0]).kind not in ("elementwise", "injective"):
            break
        if not reads_at_one_place(after[0], state.find_block(sch.program, at)):
            break
        if writes_border(after[0]) and not is_padding(after[0]):
            break  # more elements than the anchor makes, in no box of their own
        at = sch.block(after[0].name)
        chain.append(at)
    if not chain:
        return None, fills
    if is_padding(state.find_block(sch.program, chain[-1])):
        interior, *fills = sch.decompose_padding(chain[-1])
        chain[-1] = interior
    for ref in chain[:-1]:
        sch.compute_inline(ref)
    return chain[-1], fills


def is_view(info: BlockInfo) -> bool:
    """A block that only moves elements: its value is one load."""
    body = info.block.body
    return isinstance(body, Store) and isinstance(body.value, Load)


def reads_at_one_place(reader: Block, producer: Block) -> bool:
    """Whether `reader` uses one element of what `producer` makes per instance: only then is it an epilogue."""
    made = {n.buffer for n in walk(producer.body) if isinstance(n, Store)}
    return len({n.indices for n in walk(reader.body) if isinstance(n, Load) and n.buffer in made}) == 1


def is_padding(block: Block) -> bool:
    """Whether a block copies its input into the middle of a larger output and fills the rest with a constant."""
    moving = {it.var for it in block.iters if as_int(it.extent) != 1}
    return writes_border(block) and isinstance(block.body, Store) and isinstance(block.body.value, Guard | Select) and all(
        len(vars_of(c) & moving) <= 1 for c in conjuncts(block.body.value.cond))


def writes_border(block: Block) -> bool:
    """Whether a block's value is a constant outside of a range of its indices (a box, or the end of a blocked axis)."""
    if not isinstance(block.body, Store) or block.init is not None:
        return False
    value = block.body.value
    if not isinstance(value, Guard | Select) or not isinstance(value.b, Const):
        return False
    return all(isinstance(c, Lt | Le) and not any(isinstance(n, Load) for n in walk(c)) for c in conjuncts(value.cond))
