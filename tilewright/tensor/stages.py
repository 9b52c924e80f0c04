"""The stage style of scheduling: what shall happen to each tensor's stage is collected, then replayed as primitives.

    s = create_schedule(C.op)
    io, ii = s[C].split(C.op.axis[0], 16)
    copy = s.cache_read(A, "shared", [C])
    s[copy].compute_at(s[C], io)
    sch = s.schedule([A, B, C])              a Schedule: program and trace, as if written with `Schedule(program)`

Stages may be written about in any order. The canonical order of the replay: copies (`cache_read`, `cache_write`), scopes
and `rfactor` as they were called; inlining; then each stage, consumers first: it moves to where it is computed, its loops
are cut and ordered and get their kinds, and a reduction gets its first values ahead of its outermost loop (at once in
stages where others are computed, in the rest when all are in place). Every step is a primitive, which proves it or
refuses it.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

from tilewright.core.errors import UserError
from tilewright.loop.ir import Block, IntoExpr, Program, Var, as_int
from tilewright.tensor.compute import ReduceAxis, Tensor, create_program, stages_before
from tilewright.tensor.compute import Stage as Compute
from tilewright.tensor.extern import Extern
from tilewright.tensor.regions import outputs as written
from tilewright.tensor.regions import statements
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.primitives.bind import AXES
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef, ScheduleError
from tilewright.tensor.span import vars_of

TREE = 16
"""Partial results of threads that one thread adds up."""


@dataclass(frozen=True)
class ThreadAxis:
    """Threads that a loop is bound to: the axis, and how many there are (None: as many as the loop has steps)."""
    tag: str
    extent: int | None = None


def thread_axis(extent: int | tuple[int, int] | str | None, tag: str | None = None) -> ThreadAxis:
    """`thread_axis("threadIdx.x")`, or with the number of threads: `thread_axis(64, "threadIdx.x")`, `thread_axis((0, 64),
    "threadIdx.x")`. Axes: blockIdx.x/y/z, threadIdx.x/y/z, vthread. Raises UserError "stage-invalid"."""
    if tag is None:
        extent, tag = None, str(extent)
    if isinstance(extent, tuple):
        if len(extent) != 2 or extent[0] != 0:
            raise _wrong(f"the threads {extent!r} do not begin at 0")
        extent = extent[1]
    if tag not in AXES:
        raise _wrong(f"there is no thread axis {tag!r}", f"one of {', '.join(AXES)}")
    assert not isinstance(extent, str)
    return ThreadAxis(tag, extent)


@dataclass(eq=False)
class Axis:
    """A loop of a stage, before there is a program: where its stage is computed decides how far it goes."""
    name: str
    kind: str
    """"spatial" or "reduce"."""

    def __repr__(self) -> str:
        return f"<axis {self.name}>"


@dataclass(frozen=True)
class StageOp:
    """The axes that a stage begins with."""
    axis: tuple[Axis, ...]
    reduce_axis: tuple[Axis, ...] = ()


Place = Union[Tensor, Compute, "Stage"]
AnyAxis = Axis | Var | ReduceAxis


@dataclass(eq=False)
class Stage:
    """What shall happen to the loops of one block. The methods return the new axes; a wrong axis raises UserError
    "stage-invalid" at once, what is not legal is refused (ScheduleError) when the schedule is made."""
    name: str
    op: StageOp
    known: dict[Any, Axis] = field(default_factory=dict)
    """The axes of the compute language that the stage's own stand for."""
    leaves: list[Axis] = field(default_factory=list)
    steps: list[Callable[[Replay], None]] = field(default_factory=list)
    kinds: list[Callable[[Replay], None]] = field(default_factory=list)
    bound: dict[Axis, ThreadAxis] = field(default_factory=dict)
    last: list[Callable[[Replay], None]] = field(default_factory=list)
    touched: set[Axis] = field(default_factory=set)
    home: tuple[Stage, Axis] | None = None
    inlined: bool = False
    scope: str = ""
    """Of what it stores, where that is known."""
    moved: bool = False
    of: Compute | None = None
    """What it computes, unless it is a copy or a part of another."""
    partial: tuple[Stage, Axis] | None = None
    """The stage of partial results that `rfactor` took from this one, and its axis of them."""

    def __repr__(self) -> str:
        return f"<stage {self.name}>"

    # ---- loops -------------------------------------------------------------------------------------------------------
    def split(self, axis: AnyAxis, factor: IntoExpr | None = None, nparts: IntoExpr | None = None) -> tuple[Axis, Axis]:
        """(outer, inner): the inner one has `factor` steps, or the outer one `nparts`."""
        if (factor is None) == (nparts is None):
            raise _wrong(f"{self.name}: split takes either factor or nparts")
        a = self._leaf(axis)
        new = Axis(f"{a.name}.outer", a.kind), Axis(f"{a.name}.inner", a.kind)
        self._replace([a], new)
        self.steps.append(lambda r: r.put(new, r.sch.split(r.loop[a], [nparts, factor])))
        return new

    def tile(self, i: AnyAxis, j: AnyAxis, size_i: IntoExpr, size_j: IntoExpr) -> tuple[Axis, Axis, Axis, Axis]:
        """(i outer, j outer, i inner, j inner), in this order."""
        i_outer, i_inner = self.split(i, size_i)
        j_outer, j_inner = self.split(j, size_j)
        self.reorder(i_outer, j_outer, i_inner, j_inner)
        return i_outer, j_outer, i_inner, j_inner

    def fuse(self, *axes: AnyAxis) -> Axis:
        """One loop for several that lie directly inside each other, outermost first."""
        old = [self._leaf(a) for a in axes]
        places = [self.leaves.index(a) for a in old]
        if not old or places != list(range(places[0], places[0] + len(places))):
            raise _wrong(f"{self.name}: the axes {', '.join(a.name for a in old)} do not follow each other, outermost first",
                         f"their order is {', '.join(a.name for a in self.leaves)}")
        kinds = {a.kind for a in old}
        new = Axis(".".join(a.name for a in old) + ".fused", "reduce" if "reduce" in kinds else "spatial")
        self._replace(old, (new,))
        self.steps.append(lambda r: r.put((new,), [r.sch.fuse(*[r.loop[a] for a in old])]))
        return new

    def reorder(self, *axes: AnyAxis) -> None:
        """The axes in this order, in the places that they have now."""
        order = [self._leaf(a) for a in axes]
        if len(set(order)) != len(order):
            raise _wrong(f"{self.name}: reorder names an axis twice")
        places = sorted(self.leaves.index(a) for a in order)
        for k, a in zip(places, order, strict=True):
            self.leaves[k] = a
        self.touched |= set(order)
        self.steps.append(lambda r: r.sch.reorder(*[r.loop[a] for a in order]))

    # ---- kinds -------------------------------------------------------------------------------------------------------
    def bind(self, axis: AnyAxis, threads: ThreadAxis | str) -> None:
        """Steps of the loop become blocks of the grid, threads of a block, or virtual threads. A reduction that `rfactor`
        left for a thread axis is made by its first thread, from the partial sums of all."""
        a = self._leaf(axis)
        self.bound[a] = thread_axis(threads) if isinstance(threads, str) else threads
        self.kinds.append(lambda r: r.bind(self, a))

    def vectorize(self, axis: AnyAxis) -> None:
        self._kind("vectorize", axis)

    def unroll(self, axis: AnyAxis) -> None:
        self._kind("unroll", axis)

    def parallel(self, axis: AnyAxis) -> None:
        self._kind("parallel", axis)

    def pragma(self, axis: AnyAxis, key: str, value: Any = True) -> None:
        """An annotation of a loop, plain data."""
        self._kind("annotate", axis, key, value)

    def prefetch(self, tensor: Place, axis: AnyAxis, offset: int = 1) -> None:
        """Ask for what the step `offset` ahead of the loop will read of a tensor."""
        a = self._leaf(axis)
        self.last.append(lambda r: r.prefetch(self, tensor, a, offset))

    def tensorize(self, axis: AnyAxis, intrinsic: Any) -> None:
        """All that the loop does, by an instruction that is proved to do the same."""
        a = self._leaf(axis)
        self.last.append(lambda r: r.sch.apply("tensorize", r.loop[a], intrinsic))

    # ---- the stage ---------------------------------------------------------------------------------------------------
    def compute_at(self, parent: Stage, axis: AnyAxis) -> None:
        """In each step of the parent's loop compute just what is read there."""
        if parent is self:
            raise _wrong(f"{self.name} cannot be computed in a loop of its own")
        self.home = parent, parent._leaf(axis)

    def compute_root(self) -> None:
        """By itself, ahead of all that reads it."""
        self.home = None

    def compute_inline(self) -> None:
        """Within the expressions that read it; the tensor is no longer stored."""
        self.inlined = True

    def set_scope(self, scope: str) -> None:
        """Store it in memory `scope`: "local" (a thread's own), "shared" (a block's), "global"."""
        self.scope, self.moved = scope, True

    def storage_align(self, axis: AnyAxis, factor: int, offset: int) -> None:
        """Let rows along a dimension lie s elements apart with s mod factor == offset."""
        a = self.known.get(axis, axis)
        if a not in self.op.axis:
            raise _wrong(f"{self.name} has no dimension {_name(axis)}")
        d = self.op.axis.index(a)
        self.last.append(lambda r: r.sch.storage_align(r.block[self], 0, d, factor, offset))

    def double_buffer(self) -> None:
        """Two copies of what it stores, so that the next step is written while this one is read."""
        self.last.append(lambda r: r.sch.apply("double_buffer", r.block[self]))

    # ---- bookkeeping ---------------------------------------------------------------------------------------------------
    def _kind(self, primitive: str, axis: AnyAxis, *rest: Any) -> None:
        a = self._leaf(axis)
        self.kinds.append(lambda r: r.sch.apply(primitive, r.loop[a], *rest))

    def _leaf(self, axis: AnyAxis) -> Axis:
        """An axis of the stage that is a loop now."""
        a = self.known.get(axis, axis) if not isinstance(axis, Axis) else axis
        if a in self.leaves:
            return a  # type: ignore[return-value]
        if isinstance(self.of, Extern):
            symbol = self.of.calling.function.symbol
            raise _wrong(f"stage {self.name} is computed by the external function {symbol}: it has no loops",
                         "schedule the stages around it")
        why = "was split or fused already" if a in self.touched or a in self.op.axis or a in self.op.reduce_axis else \
            "is not one of its axes"
        raise _wrong(f"stage {self.name}: {_name(axis)} {why}", f"its loops are {', '.join(x.name for x in self.leaves)}")

    def _replace(self, old: list[Axis], new: Sequence[Axis]) -> None:
        k = self.leaves.index(old[0])
        self.leaves[k:k + len(old)] = new
        self.touched |= {*old, *new}


def _name(axis: Any) -> str:
    return axis.var.name if isinstance(axis, ReduceAxis) else getattr(axis, "name", repr(axis))


def _wrong(message: str, hint: str = "") -> UserError:
    return UserError("stage-invalid", message, hint=hint)


class StageSchedule:
    """A schedule in the stage style: `s[x]` is the stage of a tensor (or of its `op`, or a stage itself)."""

    def __init__(self, results: Sequence[Tensor]) -> None:
        self.results = tuple(results)
        self.stages: list[Stage] = []
        """Each after those that it reads."""
        self.computes: dict[Compute, Stage] = {}
        self.edits: list[Callable[[Replay], None]] = []
        for c in stages_before(self.results, ()):
            reduced = c.reduce_axis
            axes = [Axis(v.name, "spatial") for v in c.axes]
            over = [Axis(a.var.name, "reduce") for a in reduced]
            known = dict(zip([*c.axes, *reduced], [*axes, *over], strict=True))
            made = Stage(c.name, StageOp(tuple(axes), tuple(over)), known, [*axes, *over], of=c)
            self.computes[c] = made
            self.stages.append(made)

    def __getitem__(self, place: Place) -> Stage:
        compute = place.stage if isinstance(place, Tensor) else place
        found = compute if isinstance(compute, Stage) else None if compute is None else self.computes.get(compute)
        if found is None or found not in self.stages:
            raise _wrong(f"{getattr(place, 'name', place)} is no stage of this schedule",
                         f"its stages are {', '.join(x.name for x in self.stages)}")
        return found

    # ---- copies ------------------------------------------------------------------------------------------------------
    def cache_read(self, tensor: Place, scope: str, readers: Sequence[Place]) -> Stage:
        """A stage that copies a tensor into memory `scope`, from where the readers take it."""
        found = [self[x] for x in readers]
        if not found:
            raise _wrong(f"cache_read of {tensor.name}: name the stages that shall read the copy")
        rank = tensor.rank if isinstance(tensor, Tensor) else len(self[tensor].op.axis)
        axes = tuple([Axis(f"ax{k}", "spatial") for k in range(rank)])
        copy = Stage(f"{tensor.name}.{scope}", StageOp(axes), {}, list(axes), scope=scope)
        self.stages.insert(min(self.stages.index(x) for x in found), copy)
        self.edits.append(lambda r: r.cache_read(copy, tensor, scope, found))
        return copy

    def cache_write(self, tensor: Place, scope: str) -> Stage:
        """A stage that computes the tensor in memory `scope`; the tensor's own stage copies it from there."""
        s = self[tensor]
        self._require_untouched("cache_write", s, s.leaves)
        index = self._output(tensor)
        made = Stage(f"{s.name}.{scope}", s.op, s.known, s.leaves, scope=scope)
        axes = tuple([Axis(a.name, "spatial") for a in s.op.axis])
        at = {v: axes[s.op.axis.index(a)] for v, a in s.known.items() if a.kind == "spatial"}
        s.op, s.known, s.leaves = StageOp(axes), at, list(axes)
        self.stages.insert(self.stages.index(s), made)
        self.edits.append(lambda r: r.cache_write(made, s, index, scope))
        return made

    def rfactor(self, tensor: Place, axis: AnyAxis, factor_axis: int = 0) -> Stage:
        """A stage of partial results, one for each step of a reduction's axis, which the tensor's own stage then combines:
        `s[t].op.reduce_axis` is the one axis that is left. The new stage has that axis and the spatial ones in `op.axis`.

        The axis may come from a split or a fusion of reduced axes; all else of the stage is scheduled afterwards."""
        s = self[tensor]
        a = s._leaf(axis)
        self._require_untouched("rfactor", s, s.op.axis)
        if a.kind != "reduce" or s.kinds or s.partial is not None:
            raise _wrong(f"rfactor({s.name}): {a.name} is no axis that is reduced over, or the stage is scheduled already")
        lanes = Axis(a.name, "spatial")
        rest = tuple([x for x in s.leaves if x.kind == "reduce" and x is not a])
        spatial = tuple([Axis(x.name, "spatial") for x in s.op.axis])
        made = Stage(f"{s.name}.rf", StageOp((lanes, *spatial), rest), {}, [*spatial, lanes, *rest])
        steps, old, left = s.steps, s.op, Axis(f"{a.name}.partial", "reduce")
        s.steps, s.op, s.partial = [], StageOp(old.axis, (left,)), (made, lanes)
        s.known = {v: x for v, x in s.known.items() if x.kind == "spatial"}
        s.leaves = [*old.axis, left]
        self.stages.insert(self.stages.index(s), made)
        self.edits.append(lambda r: r.rfactor(made, s, old, steps, a, factor_axis))
        return made

    def _output(self, tensor: Place) -> int:
        if isinstance(tensor, Tensor) and tensor.stage is not None:
            return tensor.stage.outputs.index(tensor)
        return 0

    def _require_untouched(self, name: str, s: Stage, axes: Iterable[Axis]) -> None:
        touched = [a.name for a in axes if a in s.touched or a in s.bound]
        if touched:
            raise _wrong(f"{name}({s.name}): its axis {touched[0]} is scheduled already", f"call {name} first")

    # ---- out -----------------------------------------------------------------------------------------------------------
    def schedule(self, args: Sequence[Tensor | Var] | None = None, name: str | None = None) -> Schedule:
        """The program of the tensors, scheduled. `args`: inputs and outputs in the order of the program's parameters, by
        default all tensors that nothing computes, then the results. Raises ScheduleError for what is not legal."""
        inputs, outs = self._parameters(args)
        program = create_program(name or self.results[0].name, inputs, outs)
        return Replay(self, program).run()

    def _parameters(self, args: Sequence[Tensor | Var] | None) -> tuple[list[Tensor | Var], list[Tensor]]:
        if args is None:
            read = dict.fromkeys(t for c in self.computes for t in c.inputs if t.stage is None and t.buffer.data is None)
            return list(read), list(self.results)
        outs = [t for t in args if isinstance(t, Tensor) and t.stage in self.computes]
        missing = [t.name for t in self.results if t not in outs]
        if missing:
            raise _wrong(f"the result {missing[0]} is not among the arguments {', '.join(a.name for a in args)}")
        return [a for a in args if a not in outs], outs

    def __str__(self) -> str:
        return str(self.schedule().program)


def create_schedule(results: Tensor | Compute | Sequence[Tensor | Compute]) -> StageSchedule:
    """A schedule of all stages that lead to some results (tensors, or their `op`)."""
    found: list[Tensor] = []
    for x in results if isinstance(results, list | tuple) else [results]:
        if isinstance(x, Tensor):
            found.append(x)
        elif isinstance(x, Compute):
            found += x.outputs
        else:
            raise _wrong(f"{x!r} is no tensor that is computed", "give a tensor, or its op")
        if isinstance(x, Tensor) and x.stage is None:
            raise _wrong(f"nothing computes {x.name}: there is nothing to schedule")
    return StageSchedule(found)


class Replay:
    """The primitives that a StageSchedule stands for, applied in the canonical order."""

    def __init__(self, stages: StageSchedule, program: Program) -> None:
        self.stages, self.sch = stages, Schedule(program)
        self.block: dict[Stage, BlockRef] = {}
        self.loop: dict[Axis, Var] = {}
        self.threads: list[tuple[Stage, Axis, str]] = []
        """Axes of partial results that threads make, because a stage combines them over threads."""

    def run(self) -> Schedule:
        for compute, stage in self.stages.computes.items():
            self._enter(compute, stage)
        for edit in self.stages.edits:
            edit(self)
        for stage in self.stages.stages:
            if stage.moved:
                self.sch.set_scope(self.block[stage], 0, stage.scope)
        for stage in self.stages.stages:
            if stage.inlined:
                self.sch.compute_inline(self.block[stage])
        placed = [x for x in reversed(self.stages.stages) if not x.inlined and x in self.block]
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
            raise _wrong(f"stage {stage.name} has {len(made)} blocks in loops of its own, which the stage style does not "
                         "take apart", "schedule it by Schedule(program)")

    # ---- copies ------------------------------------------------------------------------------------------------------
    def cache_read(self, copy: Stage, source: Place, scope: str, readers: Sequence[Stage]) -> None:
        name = self._buffer_of(source)
        first, *others = [self.block[x] for x in readers]
        self.block[copy] = self.sch.cache_read(first, name, scope, others)

    def cache_write(self, made: Stage, stage: Stage, index: int, scope: str) -> None:
        self.block[made] = self.block[stage]
        self.block[stage] = self.sch.cache_write(self.block[made], index, scope)

    def rfactor(self, made: Stage, stage: Stage, before: StageOp, steps: Sequence[Callable[[Replay], None]], a: Axis,
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
            raise _wrong(f"rfactor({stage.name}): another reduced axis was split", "split only the axis that rfactor takes")
        if order != loops:
            self.sch.reorder(*loops_of(order))

    def _buffer_of(self, source: Place) -> str:
        if isinstance(source, Tensor) and source.stage is None:
            return source.name
        index = self.stages._output(source)
        return written(state.find_block(self.sch.program, self.block[self.stages[source]]))[index].name

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
        of_partial = next((s.partial for s in self.stages.stages if s.partial is not None and s.partial[0] is stage), None)
        spatial = list(stage.op.axis)
        return [*(spatial if of_partial is None else [*spatial[1:], spatial[0]]), *stage.op.reduce_axis]

    def _shape(self, stage: Stage) -> None:
        for step in stage.steps:
            step(self)
        for other in self.stages.stages:
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
            raise _wrong(f"stage {stage.name} is computed in a loop of {parent.name}, which is {what}")
        if parent.partial is not None and stage is parent.partial[0] and axis in parent.bound and axis.kind == "reduce":
            k = parent.leaves.index(axis)
            return self.loop[parent.leaves[k - 1]] if k else None
        return self.loop[axis]

    def bind(self, stage: Stage, a: Axis) -> None:
        threads, loop = stage.bound[a], self.loop[a]
        n = as_int(self.sch.loop(loop).extent)
        if threads.extent is not None and n is not None and n != threads.extent:
            raise _wrong(f"axis {a.name} of {stage.name} has {n} steps, but {threads.tag} has {threads.extent} threads")
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
