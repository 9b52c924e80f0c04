"""The replay of the stage style: the primitives that a stage schedule stands for, in the canonical order.

In: stages with what was asked of them (`tensor/stage.py`), and the program of their tensors. Out: a Schedule. Copies
(`cache_read`, `cache_write`), scopes and `rfactor` come as they were called; then inlining; then each stage, consumers
first: it moves to where it is computed, its loops are cut and ordered and get their kinds, and a reduction gets its first
values ahead of its outermost loop (at once in stages where others are computed, in the rest when all are in place).
Every step is a primitive, which proves it or refuses it.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tilewright.loop.ir import Block, Program, Var, as_int
from tilewright.tensor.compute import Stage as Compute
from tilewright.tensor.compute import Tensor
from tilewright.tensor.regions import outputs as written
from tilewright.tensor.regions import statements
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef, ScheduleError
from tilewright.tensor.span import vars_of
from tilewright.tensor.stage import Axis, Place, Stage, StageOp, Step, output_of, wrong

TREE = 16
"""Partial results of threads that one thread adds up."""


class Replay:
    """The primitives that a StageSchedule stands for, applied in the canonical order."""

    def __init__(self, stages: Sequence[Stage], computes: Mapping[Compute, Stage], edits: Sequence[Step],
                 program: Program) -> None:
        self.stages, self.computes, self.edits, self.sch = stages, computes, edits, Schedule(program)
        self.block: dict[Stage, BlockRef] = {}
        self.loop: dict[Axis, Var] = {}
        self.threads: list[tuple[Stage, Axis, str]] = []
        """Axes of partial results that threads make, because a stage combines them over threads."""

    def run(self) -> Schedule:
        for compute, stage in self.computes.items():
            self._enter(compute, stage)
        for edit in self.edits:
            edit(self)
        for stage in self.stages:
            if stage.moved:
                self.sch.set_scope(self.block[stage], 0, stage.scope)
        for stage in self.stages:
            if stage.inlined:
                self.sch.compute_inline(self.block[stage])
        placed = [x for x in reversed(self.stages) if not x.inlined and x in self.block]
        homes = {x.home[0] for x in placed if x.home is not None}
        for stage in placed:
            self._place(stage)
            if stage in homes:
                self._shape(stage)
        for stage in placed:  # only now: that a copy fills its box is plain to see before its loops are fused and cut
            if stage not in homes:
                self._shape(stage)
        for stage in placed:
            for step in stage.last:
                step(self)
        return self.sch

    def put(self, axes: Sequence[Axis], loops: Sequence[Var]) -> None:
        self.loop.update(zip(axes, loops, strict=True))

    def _enter(self, compute: Compute, stage: Stage) -> None:
        """Find the block of a stage."""
        made = [b for b in state.blocks(self.sch.program) if any(t.buffer in written(b) for t in compute.outputs)]
        axes = len(compute.axes) + len(compute.reduce_axis)
        if len(made) == 1 and len(state.loops_around(self.sch.program, made[0])) == axes:
            self.block[stage] = self.sch.block(made[0].name)
        elif stage.steps or stage.kinds or stage.home or stage.inlined:
            raise wrong(f"stage {stage.name} has {len(made)} blocks in loops of its own, which the stage style does not "
                         "take apart", "schedule it by Schedule(program)")

    # ---- copies ------------------------------------------------------------------------------------------------------
    def cache_read(self, copy: Stage, source: Place, scope: str, readers: Sequence[Stage]) -> None:
        name = self._buffer_of(source)
        first, *others = [self.block[x] for x in readers]
        self.block[copy] = self.sch.cache_read(first, name, scope, others)

    def cache_write(self, made: Stage, stage: Stage, index: int, scope: str) -> None:
        self.block[made] = self.block[stage]
        self.block[stage] = self.sch.cache_write(self.block[made], index, scope)

    def rfactor(self, made: Stage, stage: Stage, before: StageOp, steps: Sequence[Step], a: Axis,
                factor_axis: int) -> None:
        ref = self.block[stage]
        self.put([*before.axis, *before.reduce_axis], self.sch.loops(ref))
        for step in steps:
            step(self)
        self.block[made] = self.sch.rfactor(ref, self.loop[a], factor_axis)
        for x in reversed(before.axis):  # two nests; in the second, each spatial loop is around one of a single step
            self.sch.distribute(self.loop[x])
        n, loops = len(before.axis), self.sch.loops(ref)
        if n > 1:
            self.sch.reorder(*[v for pair in zip(loops[:n], loops[n:2 * n], strict=True) for v in pair])
        for outer, inner in zip(loops[:n], loops[n:2 * n], strict=True):
            self.sch.fuse(outer, inner)
        for x in (*before.axis, *before.reduce_axis, *made.op.reduce_axis):
            self.loop.pop(x, None)
        block, loops = state.find_block(self.sch.program, self.block[made]), self.sch.loops(self.block[made])
        order = [next((v for v in loops if v in vars_of(e)), None) for e in block.bindings]
        if len(loops) != len(order) or set(order) != set(loops):
            raise wrong(f"rfactor({stage.name}): another reduced axis was split", "split only the axis that rfactor takes")
        if order != loops:
            self.sch.reorder(*loops_of(order))

    def _buffer_of(self, source: Place) -> str:
        if isinstance(source, Tensor) and source.stage is None:
            return source.name
        stage = source if isinstance(source, Stage) else self.computes[source.op if isinstance(source, Tensor) else source]
        return written(state.find_block(self.sch.program, self.block[stage]))[output_of(source)].name

    # ---- one stage -----------------------------------------------------------------------------------------------------
    def _place(self, stage: Stage) -> None:
        """Move a stage to where it is computed; its axes are the loops that it has there."""
        ref = self.block[stage]
        target = None
        if stage.home is not None:
            target = self._home_loop(stage, *stage.home)
        if target is not None:
            self.sch.compute_at(ref, target)
        loops = self.sch.loops(ref)
        self.put(self._roots(stage), loops if target is None else loops[loops.index(target) + 1:])

    def _roots(self, stage: Stage) -> list[Axis]:
        """The axes that a stage begins with, in the order of its block's variables."""
        of_partial = next((s.partial for s in self.stages if s.partial is not None and s.partial[0] is stage), None)
        spatial = list(stage.op.axis)
        return [*(spatial if of_partial is None else [*spatial[1:], spatial[0]]), *stage.op.reduce_axis]

    def _shape(self, stage: Stage) -> None:
        for step in stage.steps:
            step(self)
        for other in self.stages:
            if other.home is not None and other.home[0] is stage and other.scope == "shared":
                self._lift(self.loop[other.home[1]])
        for step in stage.kinds:
            step(self)
        for made, lanes, tag in self.threads:
            if made is stage:
                self.sch.bind(self.loop[lanes], tag)
        self._start_sums(stage)

    def _lift(self, loop: Var) -> None:
        """Take the loops over threads that are around a loop inside it: what is shared by a block's threads is made by all
        of them together, so it is computed in a loop that all of them run."""
        threads = self._threads_around(loop)
        for v in reversed(threads):
            if len(statements(self.sch.loop(v).body)) > 1:
                self.sch.distribute(v)
        threads = self._threads_around(loop)
        if threads:
            chain = self._loops_from(threads[0], loop)
            self.sch.reorder(*[v for v in chain if not self._is_thread(v)], *[v for v in chain if self._is_thread(v)])

    def _threads_around(self, loop: Var) -> list[Var]:
        """The loops around a loop from the outermost over threads on."""
        around = [f.var for f in state.loops_around(self.sch.program, self.sch.loop(loop))]
        first = next((k for k, v in enumerate(around) if self._is_thread(v)), len(around))
        return around[first:]

    def _loops_from(self, top: Var, bottom: Var) -> list[Var]:
        around = [f.var for f in state.loops_around(self.sch.program, self.sch.loop(bottom))]
        return [*around[around.index(top):], bottom]

    def _is_thread(self, loop: Var) -> bool:
        return self.sch.loop(loop).kind.startswith(("threadIdx", "vthread"))

    def _home_loop(self, stage: Stage, parent: Stage, axis: Axis) -> Var | None:
        """The loop in which a stage is computed. Partial results of threads are computed ahead of the loop that combines
        them."""
        if parent.inlined or parent not in self.block or axis not in self.loop:
            what = "inlined" if parent.inlined else "not computed after it"
            raise wrong(f"stage {stage.name} is computed in a loop of {parent.name}, which is {what}")
        if parent.partial is not None and stage is parent.partial[0] and axis in parent.bound and axis.kind == "reduce":
            k = parent.leaves.index(axis)
            return self.loop[parent.leaves[k - 1]] if k else None
        return self.loop[axis]

    def bind(self, stage: Stage, a: Axis) -> None:
        threads, loop = stage.bound[a], self.loop[a]
        n = as_int(self.sch.loop(loop).extent)
        if threads.extent is not None and n is not None and n != threads.extent:
            raise wrong(f"axis {a.name} of {stage.name} has {n} steps, but {threads.tag} has {threads.extent} threads")
        if stage.partial is not None and a in stage.op.reduce_axis:
            self._combine(stage, loop, threads.tag)
        else:
            self.sch.bind(loop, threads.tag)

    def _combine(self, stage: Stage, loop: Var, tag: str) -> None:
        """A reduction over the partial sums of threads: some threads add up some each, until one adds up the rest."""
        ref = self.block[stage]
        while (as_int(self.sch.loop(loop).extent) or 0) > TREE:
            step, lane = self.sch.split(loop, [None, TREE])
            partial = self.sch.rfactor(ref, lane)
            self.sch.set_scope(partial, 0, "shared")
            self.sch.reorder(lane, step)
            self.sch.bind(lane, tag)
            loop = self.sch.loops(ref)[-1]
        self.loop[stage.op.reduce_axis[0]] = loop
        if stage.partial is not None:
            made, lanes = stage.partial
            if lanes not in made.bound:
                self.sch.set_scope(self.block[made], 0, "shared")
                self.threads.append((made, lanes, tag))

    def prefetch(self, stage: Stage, tensor: Place, a: Axis, offset: int) -> None:
        self.sch.prefetch(self.block[stage], self._buffer_of(tensor), self.loop[a], self.loop[a], offset)

    def _start_sums(self, stage: Stage) -> None:
        """The first values of a reduction ahead of its outermost loop, where some other loop is inside that."""
        ref = self.block[stage]
        block = state.find_block(self.sch.program, ref)
        if block.init is None:
            return
        first = next((f for f in state.loops_around(self.sch.program, block) if _reduces(block, f.var)), None)
        if first is not None and as_int(first.extent) != 1:
            if first.var not in self.loop.values():
                self.sch.loops(ref)
            try:
                self.sch.decompose_reduction(ref, first.var)
            except ScheduleError:
                return  # an element may be summed up in several steps: its sum starts within the loop, at the first term


def loops_of(found: Iterable[Var | None]) -> list[Var]:
    return [v for v in found if v is not None]


def _reduces(block: Block, loop: Var) -> bool:
    return any(i.kind == "reduce" and loop in vars_of(e) for i, e in zip(block.iters, block.bindings, strict=True))
