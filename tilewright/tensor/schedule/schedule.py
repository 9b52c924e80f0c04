"""A program and the primitives applied to it so far: each call checks legality, rewrites the program and is recorded.

    sch = Schedule(program)
    i, j, k = sch.loops(sch.block("C"))
    io, ii = sch.split(i, [None, 8])

Primitives live in `tensor/schedule/primitives/`, one idea per file; the methods here only name them with their types.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tilewright.core.errors import TilewrightError, UserError
from tilewright.loop.ir import Buffer, Expr, For, IntoExpr, Program, Var
from tilewright.loop.match_tensor import match_tensor
from tilewright.loop.tensor_intrinsics import KEY, TensorIntrinsic, tensor_intrinsic_named
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.counterexamples import counterexample
from tilewright.tensor.schedule.index_map import IndexFunction, IndexMap
from tilewright.tensor.schedule.opaque import refuse_changed, refuse_inside
from tilewright.tensor.schedule.order import MOVING, broken_promise, out_of_turn
from tilewright.tensor.schedule.primitives import primitive_named
from tilewright.tensor.schedule.state import BlockRef, ScheduleError, refuse
from tilewright.tensor.schedule.trace import (
    UNDECIDED,
    Decided,
    Instruction,
    Ref,
    Sampled,
    Trace,
    from_refs,
    plain,
    to_refs,
)

LAST = "alternative"
"""The primitive after which there is none but itself."""


@dataclass(frozen=True)
class Layout:
    """How a weight was laid out: the buffer as the caller has it, where its elements go, what is between them."""
    original: Buffer
    index_map: IndexMap
    pad_value: float | None


class Schedule:
    """A program being scheduled. `program` is the current one, `unscheduled` the one that it was at first; `trace` replays
    on an equal one; `prepacks` holds, by parameter, the programs that lay out weights anew (see `transform_layout`).
    `fallback` says why a rule gave up and left the program as it was ("" where none did)."""

    def __init__(self, program: Program, decisions: dict[int, Any] | None = None) -> None:
        self.program = self.unscheduled = program
        self.trace = Trace(sizes=tuple([p for p in program.params if isinstance(p, Var)]))
        self.prepacks: dict[str, Program] = {}
        self.layouts: dict[str, Layout] = {}
        self.fallback = ""
        self.rules: tuple[str, ...] = ()
        self._refs: dict[Any, Ref] = {}
        self._count = 0
        self._decisions = decisions or {}
        self._depth = 0

    # ---- recording ---------------------------------------------------------------------------------------------------
    def apply(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Run a primitive and record it. Primitives may call each other: only the outermost call is recorded. One that
        raises leaves program and trace as they were."""
        run = primitive_named(name)
        if self._depth:
            return run(self, *args, **kwargs)
        given = self._recorded(name, args), tuple([(k, self._recorded(name, v)) for k, v in kwargs.items()])
        saved = self.program, self.prepacks, self.layouts
        self._depth = 1
        try:
            self._refuse_after_alternative(name)
            refuse_inside(name, self.program, (*args, *kwargs.values()))
            result = run(self, *plain(args), **{k: plain(v) for k, v in kwargs.items()})
            moved = plain(args) if name == "reorder" else ()
            broken = broken_promise(saved[0], self.program, moved) if name in MOVING else None
            if broken is not None:
                refuse(name, f"{broken[1]}, but the loop is {broken[0].kind}", self.program, broken[0].var)
            turned = out_of_turn(saved[0], self.program) if name in MOVING else None
            if turned is not None:
                refuse(name, f"block {turned.name} uses a buffer whose places are used in turn", saved[0],
                       BlockRef(turned.name), "double_buffer and software_pipeline come after what moves blocks")
            self._keep_intrinsics(name, saved[0])
            refuse_changed(name, saved[0], self.program)
        except BaseException as error:
            self.program, self.prepacks, self.layouts = saved
            if isinstance(error, ScheduleError) and error.is_refusal and state.explaining.get():
                raise self._with_example(error, run, args, kwargs) from error.__cause__
            raise
        finally:
            self._depth = 0
        if name.startswith("sample_"):
            return self._decide(name, given, result)
        handles = () if result is None else tuple(result) if isinstance(result, tuple | list) else (result,)
        self.trace.instructions.append(Instruction(name, *given, tuple([self._remember(h) for h in handles])))
        return result

    def _refuse_after_alternative(self, name: str) -> None:
        """What two schedules have made of the program stays as it is."""
        if name not in (LAST, "block", "loops") and any(i.name == LAST for i in self.trace.instructions):
            raise ScheduleError(name, f"{LAST} has joined two schedules of this program, and comes last", self.program,
                                hint=f"apply {name} before, or in the trace that {LAST} is given")

    def _with_example(self, error: ScheduleError, run: Any, args: Any, kwargs: Any) -> ScheduleError:
        """A refusal with a step that goes wrong: the edit is made after all, looked at, and taken back."""
        saved = self.program, self.prepacks, self.layouts
        if error.example is not None:
            found = error.example()
        else:
            forced = state.unproved.set(True)
            try:
                run(self, *plain(args), **{k: plain(v) for k, v in kwargs.items()})
                found = counterexample(saved[0], self.program)
            except TilewrightError:  # there is no such edit
                found = ""
            finally:
                state.unproved.reset(forced)
                self.program, self.prepacks, self.layouts = saved
        if not found:
            return error
        why = error.message.removeprefix(f"{error.primitive}: ")
        return ScheduleError(error.primitive, f"{why}: {found}", error.program, error.mark, error.hint)

    def _keep_intrinsics(self, name: str, before: Program) -> None:
        """What stands for an instruction must still be it."""
        old = {id(b) for b in state.blocks(before)}
        for b in state.blocks(self.program):
            intrinsic = dict(b.attrs).get(KEY)
            if intrinsic is not None and id(b) not in old:
                why = match_tensor(b.body, tensor_intrinsic_named(intrinsic))
                if isinstance(why, str):
                    raise ScheduleError(name, f"block {b.name} would not be {intrinsic} any more: {why}", before,
                                        BlockRef(b.name))

    def _recorded(self, name: str, value: Any) -> Any:
        try:
            return to_refs(value, self._refs, self.trace.sizes)
        except KeyError as e:
            raise ScheduleError(name, f"loop {e.args[0].name} is no handle that this schedule has returned", self.program,
                                hint="ask loops(block) for the loops around a block") from None

    def _decide(self, name: str, given: tuple[Any, Any], value: Any) -> Any:
        """Record a decision; numbers keep the instruction that they came from."""
        if type(value) is int:
            value = Sampled(value, (value,), single=True)
        elif not isinstance(value, Sampled):  # plain data
            self.trace.instructions.append(Instruction(name, *given, (), value))
            return value
        out, refs = [], []
        for v in value.results:
            if type(v) is int:
                v = Decided(v)
                v.ref = Ref(self._count)
                self._count += 1
                refs.append(v.ref)
            else:
                refs.append(self._remember(v))
            out.append(v)
        self.trace.instructions.append(Instruction(name, *given, tuple(refs), value.decision))
        return out[0] if value.single else out

    def _remember(self, handle: Any) -> Ref:
        ref = Ref(self._count)
        self._count += 1
        self._refs.setdefault(handle, ref)
        return ref

    def decided(self) -> Any:
        """The decision given from outside for the instruction being applied, or UNDECIDED (for sample_* primitives)."""
        return self._decisions.get(len(self.trace.instructions), UNDECIDED)

    # ---- looking -------------------------------------------------------------------------------------------------------
    def block(self, name: str) -> BlockRef:
        """The handle of a block."""
        return self.apply("block", name)  # type: ignore[no-any-return]

    def loops(self, block: BlockRef) -> list[Var]:
        """The loops around a block, outermost first."""
        return list(self.apply("loops", block))

    def loop(self, var: Var) -> For:
        """The loop statement that a handle stands for (a look at the program: not recorded)."""
        return state.find_loop(self.program, var)

    # ---- loops ---------------------------------------------------------------------------------------------------------
    def split(self, loop: Var, factors: Sequence[IntoExpr | None]) -> list[Var]:
        return self.apply("split", loop, list(factors))  # type: ignore[no-any-return]

    def fuse(self, *loops: Var) -> Var:
        return self.apply("fuse", *loops)  # type: ignore[no-any-return]

    def reorder(self, *loops: Var) -> None:
        self.apply("reorder", *loops)

    def tile(self, i: Var, j: Var, size_i: IntoExpr, size_j: IntoExpr) -> list[Var]:
        return self.apply("tile", i, j, size_i, size_j)  # type: ignore[no-any-return]

    def reschedule(self, loops: Sequence[Var], index_map: IndexFunction) -> list[Var]:
        try:
            index_map = IndexMap.of(index_map, len(loops))  # as data: a trace can show it
        except UserError as e:
            raise ScheduleError("reschedule", e.message, self.program) from e
        return self.apply("reschedule", list(loops), index_map)  # type: ignore[no-any-return]

    def loop_partition(self, loop: Var, points: Sequence[IntoExpr]) -> list[Var]:
        return self.apply("loop_partition", loop, list(points))  # type: ignore[no-any-return]

    def distribute(self, loop: Var) -> list[Var]:
        return self.apply("distribute", loop)  # type: ignore[no-any-return]

    def add_unit_loop(self, block: BlockRef) -> Var:
        return self.apply("add_unit_loop", block)  # type: ignore[no-any-return]

    def alternative(self, condition: Expr, trace: Trace) -> None:
        self.apply("alternative", condition, trace)

    def unroll(self, loop: Var) -> None:
        self.apply("unroll", loop)

    def vectorize(self, loop: Var) -> None:
        self.apply("vectorize", loop)

    def parallel(self, loop: Var) -> None:
        self.apply("parallel", loop)

    def bind(self, loop: Var, axis: str) -> None:
        self.apply("bind", loop, axis)

    def unsafe_parallel(self, loop: Var) -> None:
        self.apply("unsafe_parallel", loop)

    def unsafe_bind(self, loop: Var, axis: str) -> None:
        self.apply("unsafe_bind", loop, axis)

    def annotate(self, place: Var | BlockRef, key: str, value: Any) -> None:
        self.apply("annotate", place, key, value)

    # ---- blocks --------------------------------------------------------------------------------------------------------
    def compute_at(self, block: BlockRef, loop: Var) -> None:
        self.apply("compute_at", block, loop)

    def reverse_compute_at(self, block: BlockRef, loop: Var) -> None:
        self.apply("reverse_compute_at", block, loop)

    def compute_inline(self, block: BlockRef) -> None:
        self.apply("compute_inline", block)

    def reverse_compute_inline(self, block: BlockRef) -> None:
        self.apply("reverse_compute_inline", block)

    def decompose_reduction(self, block: BlockRef, loop: Var) -> BlockRef:
        return self.apply("decompose_reduction", block, loop)  # type: ignore[no-any-return]

    def decompose_padding(self, block: BlockRef) -> tuple[BlockRef, ...]:
        return tuple(self.apply("decompose_padding", block))

    def pad_einsum(self, block: BlockRef, multiples: Sequence[int], wrap: bool = False) -> list[BlockRef]:
        more = (wrap,) if wrap else ()
        return self.apply("pad_einsum", block, list(multiples), *more)  # type: ignore[no-any-return]

    def reindex(self, block: BlockRef, buffer: str, axes: Sequence[int]) -> BlockRef:
        return self.apply("reindex", block, buffer, list(axes))  # type: ignore[no-any-return]

    def rfactor(self, block: BlockRef, loop: Var, axis: int = 0) -> BlockRef:
        return self.apply("rfactor", block, loop, axis)  # type: ignore[no-any-return]

    def blockize(self, loop: Var) -> BlockRef:
        return self.apply("blockize", loop)  # type: ignore[no-any-return]

    def tensorize(self, place: Var | BlockRef, intrinsic: TensorIntrinsic | str, allow: str = "") -> BlockRef:
        return self.apply("tensorize", place, intrinsic, *([allow] if allow else []))  # type: ignore[no-any-return]

    def online_softmax(self, block: BlockRef, rows: int, columns: int) -> tuple[Var, Var]:
        return tuple(self.apply("online_softmax", block, rows, columns))

    def split_axis(self, block: BlockRef, axis: int, factor: int) -> None:
        self.apply("split_axis", block, axis, factor)

    # ---- buffers -------------------------------------------------------------------------------------------------------
    def cache_read(self, block: BlockRef, buffer: int | str, scope: str = "local",
                   others: Sequence[BlockRef] = ()) -> BlockRef:
        more = (list(others),) if others else ()
        return self.apply("cache_read", block, buffer, scope, *more)  # type: ignore[no-any-return]

    def cache_write(self, block: BlockRef, index: int = 0, scope: str = "local") -> BlockRef:
        return self.apply("cache_write", block, index, scope)  # type: ignore[no-any-return]

    def set_scope(self, block: BlockRef, index: int, scope: str) -> None:
        self.apply("set_scope", block, index, scope)

    def storage_align(self, block: BlockRef, index: int, axis: int, factor: int, offset: int) -> None:
        self.apply("storage_align", block, index, axis, factor, offset)

    def transform_layout(self, block: BlockRef, buffer: str, index_map: IndexFunction, pad_value: float | None = None,
                         allow_interface: bool = False) -> None:
        found = state.find_buffer(self.program, block, buffer)
        if found is not None:
            try:
                index_map = IndexMap.of(index_map, found.rank)  # as data: a trace can show it
            except UserError as e:
                raise ScheduleError("transform_layout", f"{e.message}, which {buffer} has", self.program, block) from e
        self.apply("transform_layout", block, buffer, index_map, pad_value=pad_value, allow_interface=allow_interface)

    def cooperative_fetch(self, block: BlockRef, threads: Sequence[tuple[str, int]], vector: int = 1) -> list[Var]:
        return self.apply("cooperative_fetch", block, [tuple(t) for t in threads], vector)  # type: ignore[no-any-return]

    def double_buffer(self, block: BlockRef, loop: Var | None = None, index: int = 0) -> None:
        self.apply("double_buffer", block, *([] if loop is None and not index else [loop, index]))

    def software_pipeline(self, loop: Var, stages: int = 2) -> None:
        self.apply("software_pipeline", loop, stages)

    def prefetch(self, block: BlockRef, buffer: str, loop: Var, along: Var, ahead: int = 1) -> BlockRef:
        return self.apply("prefetch", block, buffer, loop, along, ahead)  # type: ignore[no-any-return]

    def prefetch_next(self, block: BlockRef, buffer: str, loop: Var, along: Var) -> BlockRef:
        return self.apply("prefetch_next", block, buffer, loop, along)  # type: ignore[no-any-return]

    # ---- decisions -----------------------------------------------------------------------------------------------------
    def sample_tile(self, loop: Var, candidates: Sequence[int], default: int) -> int:
        return self.apply("sample_tile", loop, list(candidates), default)  # type: ignore[no-any-return]

    def sample_choice(self, candidates: Sequence[Any], default: Any) -> Any:
        return self.apply("sample_choice", list(candidates), default)

    def sample_perfect_tile(self, loop: Var, parts: int, max_innermost: int = 64,
                            default: Sequence[int] | None = None) -> list[int]:
        more = {} if default is None else {"default": list(default)}
        return self.apply("sample_perfect_tile", loop, parts, max_innermost, **more)  # type: ignore[no-any-return]

    def sample_compute_location(self, block: BlockRef, default: int = -1) -> Var:
        return self.apply("sample_compute_location", block, default)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Step:
    """One instruction of a trace as it was replayed: what it was given and returned (handles of this schedule), and the
    program after it."""
    instruction: Instruction
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    results: tuple[Any, ...]
    program: Program


def replay(trace: Trace, program: Program, decisions: Mapping[int, Any] | None = None) -> Schedule:
    """Apply a trace to a program equal to the one it was recorded on; `decisions` by instruction position override those in
    the trace. Raises ScheduleError where a primitive is not legal (any more), UserError for a decision about an
    instruction that decides nothing."""
    for k in decisions or ():
        trace.check_decides(k)
    sch = Schedule(program, {**trace.decisions(), **(decisions or {})})
    for _ in _steps(trace, sch):
        pass
    return sch


def steps(trace: Trace, program: Program) -> Iterator[Step]:
    """What each instruction of a trace does to a program, in order. Raises what `replay` raises."""
    return _steps(trace, Schedule(program, trace.decisions()))


def _steps(trace: Trace, sch: Schedule) -> Iterator[Step]:
    if len(trace.sizes) != len(sch.trace.sizes):
        raise UserError("trace-program", f"the trace was recorded on a program with {len(trace.sizes)} symbolic sizes; "
                        f"{sch.program.name} has {len(sch.trace.sizes)}")
    sizes = {old: new for old, new in zip(trace.sizes, sch.trace.sizes, strict=True) if old is not new}
    handles: list[Any] = []
    for ins in trace.instructions:
        args = from_refs(ins.args, handles, sizes)
        kwargs = tuple([(k, from_refs(v, handles, sizes)) for k, v in ins.kwargs])
        result = sch.apply(ins.name, *args, **dict(kwargs))
        results = () if not ins.results else tuple(result) if isinstance(result, tuple | list) else (result,)
        handles.extend(results)
        yield Step(ins, args, kwargs, results, sch.program)
