"""The stage style of scheduling: what shall happen to each tensor's stage is collected, then replayed as primitives.

    s = create_schedule(C.op)
    io, ii = s[C].split(C.op.axis[0], 16)
    copy = s.cache_read(A, "shared", [C])
    s[copy].compute_at(s[C], io)
    sch = s.schedule([A, B, C])              a Schedule: program and trace, as if written with `Schedule(program)`

Stages may be written about in any order: `tensor/stage_replay.py` has the canonical order of the replay.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence

from tilewright.loop.ir import Var
from tilewright.tensor.compute import Stage as Compute
from tilewright.tensor.compute import Tensor, create_program, stages_before
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.stage import AnyAxis, Axis, Place, Stage, StageOp, Step, output_of, wrong
from tilewright.tensor.stage_replay import Replay


class StageSchedule:
    """A schedule in the stage style: `s[x]` is the stage of a tensor (or of its `op`, or a stage itself)."""

    def __init__(self, results: Sequence[Tensor]) -> None:
        self.results = tuple(results)
        self.stages: list[Stage] = []
        """Each after those that it reads."""
        self.computes: dict[Compute, Stage] = {}
        self.edits: list[Step] = []
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
            raise wrong(f"{getattr(place, 'name', place)} is no stage of this schedule",
                         f"its stages are {', '.join(x.name for x in self.stages)}")
        return found

    # ---- copies ------------------------------------------------------------------------------------------------------
    def cache_read(self, tensor: Place, scope: str, readers: Sequence[Place]) -> Stage:
        """A stage that copies a tensor into memory `scope`, from where the readers take it."""
        found = [self[x] for x in readers]
        if not found:
            raise wrong(f"cache_read of {tensor.name}: name the stages that shall read the copy")
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
        index = output_of(tensor)
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
        a = s.leaf(axis)
        self._require_untouched("rfactor", s, s.op.axis)
        if a.kind != "reduce" or s.kinds or s.partial is not None:
            raise wrong(f"rfactor({s.name}): {a.name} is no axis that is reduced over, or the stage is scheduled already")
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

    def _require_untouched(self, name: str, s: Stage, axes: Iterable[Axis]) -> None:
        touched = [a.name for a in axes if a in s.touched or a in s.bound]
        if touched:
            raise wrong(f"{name}({s.name}): its axis {touched[0]} is scheduled already", f"call {name} first")

    # ---- out -----------------------------------------------------------------------------------------------------------
    def schedule(self, args: Sequence[Tensor | Var] | None = None, name: str | None = None) -> Schedule:
        """The program of the tensors, scheduled. `args`: inputs and outputs in the order of the program's parameters, by
        default all tensors that nothing computes, then the results. Raises ScheduleError for what is not legal."""
        inputs, outs = self._parameters(args)
        program = create_program(name or self.results[0].name, inputs, outs)
        return Replay(self.stages, self.computes, self.edits, program).run()

    def _parameters(self, args: Sequence[Tensor | Var] | None) -> tuple[list[Tensor | Var], list[Tensor]]:
        if args is None:
            read = dict.fromkeys(t for c in self.computes for t in c.inputs if t.stage is None and t.buffer.data is None)
            return list(read), list(self.results)
        outs = [t for t in args if isinstance(t, Tensor) and t.stage in self.computes]
        missing = [t.name for t in self.results if t not in outs]
        if missing:
            raise wrong(f"the result {missing[0]} is not among the arguments {', '.join(a.name for a in args)}")
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
            raise wrong(f"{x!r} is no tensor that is computed", "give a tensor, or its op")
        if isinstance(x, Tensor) and x.stage is None:
            raise wrong(f"nothing computes {x.name}: there is nothing to schedule")
    return StageSchedule(found)
