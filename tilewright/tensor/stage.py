"""A stage of the stage style: what shall happen to the loops of one block, before there is a program.

In: calls like `split` and `compute_at`, on axes. Out: the axes that they make, and steps to be applied in the replay
(`tensor/stage_replay.py`) when `tensor/stages.py` makes a schedule. A wrong axis is refused at once.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

from tilewright.core.errors import UserError
from tilewright.loop.ir import IntoExpr, Var
from tilewright.tensor.compute import ReduceAxis, Tensor
from tilewright.tensor.compute import Stage as Compute
from tilewright.tensor.extern import Extern
from tilewright.tensor.schedule.primitives.bind import AXES

Step = Callable[[Any], None]
"""What a stage asks of the replay, which it is given."""


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
            raise wrong(f"the threads {extent!r} do not begin at 0")
        extent = extent[1]
    if tag not in AXES:
        raise wrong(f"there is no thread axis {tag!r}", f"one of {', '.join(AXES)}")
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
    steps: list[Step] = field(default_factory=list)
    kinds: list[Step] = field(default_factory=list)
    bound: dict[Axis, ThreadAxis] = field(default_factory=dict)
    last: list[Step] = field(default_factory=list)
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
            raise wrong(f"{self.name}: split takes either factor or nparts")
        a = self.leaf(axis)
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
        old = [self.leaf(a) for a in axes]
        places = [self.leaves.index(a) for a in old]
        if not old or places != list(range(places[0], places[0] + len(places))):
            raise wrong(f"{self.name}: the axes {', '.join(a.name for a in old)} do not follow each other, outermost first",
                         f"their order is {', '.join(a.name for a in self.leaves)}")
        kinds = {a.kind for a in old}
        new = Axis(".".join(a.name for a in old) + ".fused", "reduce" if "reduce" in kinds else "spatial")
        self._replace(old, (new,))
        self.steps.append(lambda r: r.put((new,), [r.sch.fuse(*[r.loop[a] for a in old])]))
        return new

    def reorder(self, *axes: AnyAxis) -> None:
        """The axes in this order, in the places that they have now."""
        order = [self.leaf(a) for a in axes]
        if len(set(order)) != len(order):
            raise wrong(f"{self.name}: reorder names an axis twice")
        places = sorted(self.leaves.index(a) for a in order)
        for k, a in zip(places, order, strict=True):
            self.leaves[k] = a
        self.touched |= set(order)
        self.steps.append(lambda r: r.sch.reorder(*[r.loop[a] for a in order]))

    # ---- kinds -------------------------------------------------------------------------------------------------------
    def bind(self, axis: AnyAxis, threads: ThreadAxis | str) -> None:
        """Steps of the loop become blocks of the grid, threads of a block, or virtual threads. A reduction that `rfactor`
        left for a thread axis is made by its first thread, from the partial sums of all."""
        a = self.leaf(axis)
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
        a = self.leaf(axis)
        self.last.append(lambda r: r.prefetch(self, tensor, a, offset))

    def tensorize(self, axis: AnyAxis, intrinsic: Any) -> None:
        """All that the loop does, by an instruction that is proved to do the same."""
        a = self.leaf(axis)
        self.last.append(lambda r: r.sch.apply("tensorize", r.loop[a], intrinsic))

    # ---- the stage ---------------------------------------------------------------------------------------------------
    def compute_at(self, parent: Stage, axis: AnyAxis) -> None:
        """In each step of the parent's loop compute just what is read there."""
        if parent is self:
            raise wrong(f"{self.name} cannot be computed in a loop of its own")
        self.home = parent, parent.leaf(axis)

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
            raise wrong(f"{self.name} has no dimension {axis_name(axis)}")
        d = self.op.axis.index(a)
        self.last.append(lambda r: r.sch.storage_align(r.block[self], 0, d, factor, offset))

    def double_buffer(self) -> None:
        """Two copies of what it stores, so that the next step is written while this one is read."""
        self.last.append(lambda r: r.sch.apply("double_buffer", r.block[self]))

    # ---- bookkeeping ---------------------------------------------------------------------------------------------------
    def _kind(self, primitive: str, axis: AnyAxis, *rest: Any) -> None:
        a = self.leaf(axis)
        self.kinds.append(lambda r: r.sch.apply(primitive, r.loop[a], *rest))

    def leaf(self, axis: AnyAxis) -> Axis:
        """An axis of the stage that is a loop now."""
        a = self.known.get(axis, axis) if not isinstance(axis, Axis) else axis
        if a in self.leaves:
            return a  # type: ignore[return-value]
        if isinstance(self.of, Extern):
            symbol = self.of.calling.function.symbol
            raise wrong(f"stage {self.name} is computed by the external function {symbol}: it has no loops",
                         "schedule the stages around it")
        why = "was split or fused already" if a in self.touched or a in self.op.axis or a in self.op.reduce_axis else \
            "is not one of its axes"
        raise wrong(f"stage {self.name}: {axis_name(axis)} {why}", f"its loops are {', '.join(x.name for x in self.leaves)}")

    def _replace(self, old: list[Axis], new: Sequence[Axis]) -> None:
        k = self.leaves.index(old[0])
        self.leaves[k:k + len(old)] = new
        self.touched |= {*old, *new}


def output_of(place: Place) -> int:
    """Which output of its stage a tensor is."""
    if isinstance(place, Tensor) and place.stage is not None:
        return place.stage.outputs.index(place)
    return 0


def axis_name(axis: Any) -> str:
    return axis.var.name if isinstance(axis, ReduceAxis) else getattr(axis, "name", repr(axis))


def wrong(message: str, hint: str = "") -> UserError:
    return UserError("stage-invalid", message, hint=hint)
