"""The default schedule of any program on a device of blocks and threads.

In: an unscheduled Program and a target of kind "gpu". Out: a Schedule in which every nest is a kernel: products on tensor
cores or in tiles of shared memory and registers, attention block by block of keys, reductions with the threads of a block to
a row, windows over tiles with their borders, transposed reads through shared memory, everything else with a thread per
result. Like the rules for CPUs (dispatch.py) these know blocks and facts, no operator, model or shape.

Each block has a list of rules, the best first; one that refuses gives way to the next, and `Schedule.fallback` says why.
`Schedule.rules` says which rule took which block.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tilewright.core.errors import UserError
from tilewright.core.node import walk
from tilewright.loop.instructions.nvidia import MatrixProduct
from tilewright.loop.ir import Allocate, Block, Program, as_int
from tilewright.loop.lower.device_pipeline import lower_for_device
from tilewright.target.target import Target
from tilewright.tensor.classify import classify
from tilewright.tensor.combiner import reduction_of
from tilewright.tensor.regions import outputs, producers
from tilewright.tensor.rules.attention import Attention
from tilewright.tensor.rules.epilogue import is_view, merge_chain
from tilewright.tensor.rules.gpu_attention import attention_of, schedule_online, tiles_of
from tilewright.tensor.rules.gpu_contraction import RESULTS, STEPS, group_size, schedule_tiles
from tilewright.tensor.rules.gpu_ordered import schedule_chains, schedule_steps, schedule_updates
from tilewright.tensor.rules.gpu_results import schedule_results
from tilewright.tensor.rules.gpu_rows import cut_reduction, fits_rows, schedule_block_rows
from tilewright.tensor.rules.gpu_tensor_cores import product_of, schedule_tensor_cores
from tilewright.tensor.rules.gpu_transpose import schedule_transpose, transposed_read
from tilewright.tensor.rules.gpu_windows import DOWN, fits_windows, schedule_windows
from tilewright.tensor.rules.prologues import inline_prologues
from tilewright.tensor.rules.recurrence import time_loops
from tilewright.tensor.rules.rows import is_reduction
from tilewright.tensor.running import running_axis
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef, ScheduleError

TILED_FLOPS = 1 << 14
"""Products of fewer operations gain nothing from tiles."""
SHARING = frozenset({"tensor_cores", "tiles", "attention", "rows", "windows", "transpose", "steps"})
"""Rules that use shared memory."""
ALL = ""
"""In place of a block's name: rules for all blocks of a program."""


@dataclass(frozen=True)
class Rule:
    """A rule by name, and what it does to a block; the names of the blocks that have their schedule then."""
    name: str
    apply: Callable[[Schedule, BlockRef], set[str]]


class _Refused(Exception):
    """A rule met a block that it was not written for."""

    def __init__(self, block: str, rules: Sequence[Rule], level: int, why: ScheduleError) -> None:
        self.block, self.why = block, why
        self.gives_up = level + 1 >= len(rules) or rules[level + 1].name != rules[level].name


def schedule_for_gpu(program: Program, target: Target, numerics: str = "default") -> Schedule:
    """Schedule a program by rules; where one refuses a block, the next simpler one takes it. `numerics` "strict" leaves out
    those that round sums otherwise than the program does: attention in tiles of keys, tensor cores. "tf32" lets tensor cores
    round operands of f32 to TF32."""
    level: dict[str, int] = {}
    reasons: list[str] = []
    while True:
        sch = Schedule(program)
        try:
            ruled = _by_rules(sch, target, level, numerics)
            _check_limits(sch, target, ruled)
        except _Refused as refused:
            level[refused.block] = level.get(refused.block, 0) + 1
            if refused.gives_up:  # a smaller step is as good a rule
                reasons.append(f"{refused.block or 'all'}: {refused.why.primitive}: {refused.why.message}")
            continue
        sch.fallback = "; ".join(reasons)
        return sch


Ruled = list[tuple[str, Sequence[Rule], int]]
"""Blocks with their rules, and the place of the one that was applied."""


def _check_limits(sch: Schedule, target: Target, ruled: Ruled) -> None:
    """Lower the program: what a kernel takes of shared memory is known when storage has its final shape. Of the blocks that
    have a simpler rule the one at the best so far takes it."""
    try:
        lower_for_device(sch.program, target)
    except UserError as over:
        left = [r for r in ruled if r[1][r[2]].name in SHARING]
        shared = any(isinstance(n, Allocate) and n.buffer.scope == "shared" for n in walk(sch.program.body))
        if not left or not shared or not over.code.startswith("kernel-"):
            raise
        why = ScheduleError("lower", over.message, sch.program)
        raise _Refused(*min(left, key=lambda r: r[2]), why) from over


def _by_rules(sch: Schedule, target: Target, level: dict[str, int], numerics: str) -> Ruled:
    """Apply the rules: first those for whole programs, then block by block, reductions first."""
    ruled: Ruled = []
    done: set[str] = set()

    def take(name: str, rules: Sequence[Rule]) -> None:
        at = level.get(name, 0)
        before = {b.name for b in state.blocks(sch.program)}
        try:
            taken = rules[at].apply(sch, BlockRef(name))
        except ScheduleError as why:
            raise _Refused(name, rules, at, why) from why
        done.update(taken | {b.name for b in state.blocks(sch.program)} - before | {name})
        ruled.append((name, rules, at))
        sch.rules = (*sch.rules, f"{rules[at].name} {name or 'all'}")

    for loop in time_loops(sch):
        take(loop.var.name, [Rule("steps", lambda s, ref, var=loop.var: schedule_steps(s, var, target)),  # type: ignore[misc]
                             Rule("serial", lambda s, ref, var=loop.var: {  # type: ignore[misc]
                                 b.name for b in state.blocks_under(s.loop(var))})])
    chains = [b.name for b in state.blocks(sch.program) if b.name not in done and running_axis(b) is not None]
    ordered = any(_is_ordered(b) for b in state.blocks(sch.program))  # what they update is no prologue
    apart = [] if done or ordered else _operands_apart(sch.program)
    if not done and not ordered:
        inline_prologues(sch, keep=[*chains, *apart])
    found = attention_of(sch, apart) if numerics != "strict" and not done and not ordered else None
    tiles = tiles_of(found, target) if found is not None else []
    if found is not None and level.get(ALL, 0) < len(tiles):
        take(ALL, [*[Rule("attention", functools.partial(_attention, found, tile, target)) for tile in tiles],
                   Rule("blocks", lambda s, ref: set())])
        return ruled
    names = [b.name for b in state.blocks(sch.program)]
    blocks = state.blocks(sch.program)
    free = not (done or chains or ordered)
    if free and len(blocks) > 1 and level.get(ALL, 0) == 0 and fits_rows(sch, blocks):
        whole = Rule("rows", lambda s, ref: schedule_block_rows(s, state.blocks(s.program), target))
        take(ALL, [whole, Rule("blocks", lambda s, ref: set())])
        return ruled
    for name in sorted(names, key=lambda n: not is_reduction(state.find_block(sch.program, BlockRef(n)))):
        if name in done or name not in {b.name for b in state.blocks(sch.program)}:
            continue
        block = state.find_block(sch.program, BlockRef(name))
        if _is_whole_nest(sch, block):
            take(name, rules_for(sch, block, target, numerics))
    return ruled


def _operands_apart(program: Program) -> list[str]:
    """Views that stay, since without them both operands of a product would be the same buffer: a tile of each is wanted."""
    bare = Schedule(program)
    inline_prologues(bare)
    out = []
    for b in state.blocks(bare.program):
        info = classify(b)
        if info.kind == "contraction" and info.a is not None and info.b is not None and info.a.buffer is info.b.buffer:
            written = state.find_block(program, BlockRef(b.name))
            first = classify(written).a
            out += [p.name for p in producers(program, written)
                    if first is not None and first.buffer in outputs(p) and is_view(classify(p))]
    return out


def _attention(found: Attention, tile: tuple[int, int], target: Target, sch: Schedule, ref: BlockRef) -> set[str]:
    return schedule_online(sch, found, tile, target)


def _is_ordered(block: Block) -> bool:
    return bool(dict(block.attrs).get("ordered"))


def _is_whole_nest(sch: Schedule, block: Block) -> bool:
    """Whether a block still has its loops to itself, as written."""
    loops = state.loops_around(sch.program, block)
    return bool(loops) and len(state.blocks_under(loops[0])) == 1 and all(f.kind == "serial" for f in loops)


def rules_for(sch: Schedule, block: Block, target: Target, numerics: str = "default") -> list[Rule]:
    """The rules for a block, the best first."""
    serial = Rule("serial", lambda s, ref: {ref.name})
    if _is_ordered(block):
        return [Rule("updates", functools.partial(_with, schedule_updates, target)), serial]
    if running_axis(block) is not None:
        return [Rule("chains", functools.partial(_with, schedule_chains, target)), serial]
    info = classify(block)
    constant = all(as_int(it.extent) is not None for it in block.iters)
    out: list[Rule] = []
    if constant and len(outputs(block)) == 1:
        product = info.m and info.n and min(info.extent(info.m), info.extent(info.n)) > 1 or group_size(block) is not None
        if info.kind == "contraction" and product and info.flops >= TILED_FLOPS and not info.is_depthwise:
            multiplied = product_of(block, target, numerics) if group_size(block) is None else None
            if multiplied is not None:
                out.append(Rule("tensor_cores", functools.partial(_tensor_cores, target, multiplied)))
            sizes = [*[(step, RESULTS) for step in STEPS], (4, 16), (1, 16), (1, 4), (1, 1)]
            out += [Rule("tiles", functools.partial(_tiles, target, *size)) for size in sizes]
        elif fits_windows(info):
            out += [Rule("windows", functools.partial(_windows, target, most)) for most in DOWN]
        elif transposed_read(block) is not None:
            out.append(Rule("transpose", functools.partial(_with, schedule_transpose, target)))
    if constant and not out and is_reduction(block) and fits_rows(sch, [block]):
        out.append(Rule("rows", functools.partial(_with, _rows, target)))
    return [*out, Rule("results", lambda s, ref: schedule_results(s, ref, target, merge=True)),
            Rule("results", lambda s, ref: schedule_results(s, ref, target, merge=False)), serial]


def _with(rule: Callable[[Schedule, BlockRef, Target], set[str]], target: Target, sch: Schedule, ref: BlockRef) -> set[str]:
    return rule(sch, sch.block(ref.name), target)


def _tiles(target: Target, step: int, most: int, sch: Schedule, ref: BlockRef) -> set[str]:
    return schedule_tiles(sch, sch.block(ref.name), target, step, most)


def _windows(target: Target, most: int, sch: Schedule, ref: BlockRef) -> set[str]:
    return schedule_windows(sch, sch.block(ref.name), target, most)


def _tensor_cores(target: Target, product: MatrixProduct, sch: Schedule, ref: BlockRef) -> set[str]:
    return schedule_tensor_cores(sch, sch.block(ref.name), target, product)


def _rows(sch: Schedule, ref: BlockRef, target: Target) -> set[str]:
    """One reduction with what follows it; a long one with few results in parts first, a kernel of their own."""
    done: set[str] = set()
    part = cut_reduction(sch, ref, target)
    if part is not None:
        done = schedule_block_rows(sch, [state.find_block(sch.program, part)], target)
    block = state.find_block(sch.program, ref)
    if not fits_rows(sch, [block]):
        return done | schedule_results(sch, ref, target, merge=True)
    blocks = [block]
    if len(outputs(block)) == 1 and reduction_of(block) is not None:
        chain, fills = merge_chain(sch, ref)
        if fills:
            raise ScheduleError("merge", "borders are filled behind the reduction", sch.program, ref)
        if chain is not None:
            blocks = [state.find_block(sch.program, b) for b in (ref, chain)]
            if not fits_rows(sch, blocks):
                raise ScheduleError("merge", "what follows the reduction has other rows", sch.program, ref)
    return done | schedule_block_rows(sch, blocks, target)
