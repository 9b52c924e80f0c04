"""A program and the primitives applied to it so far: each call checks legality, rewrites the program and is recorded.

    sch = Schedule(program)
    i, j, k = sch.loops(sch.block("C"))
    io, ii = sch.split(i, 8)

Primitives live in `tensor/schedule/primitives/`, one idea per file; the methods here only name them with their types.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tilewright.loop.ir import For, IntoExpr, Program, Var
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.primitives import primitive_named
from tilewright.tensor.schedule.state import BlockRef
from tilewright.tensor.schedule.trace import Instruction, Ref, Trace, from_refs, to_refs


class Schedule:
    """A program being scheduled. `program` is the current one; `trace` replays on an equal program; `prepacks` holds, by
    parameter, the programs that lay out weights anew (see `transform_layout`)."""

    def __init__(self, program: Program, decisions: dict[int, Any] | None = None) -> None:
        self.program = program
        self.trace = Trace()
        self.prepacks: dict[str, Program] = {}
        self._refs: dict[Any, Ref] = {}
        self._count = 0
        self._decisions = decisions or {}
        self._depth = 0

    # ---- recording ---------------------------------------------------------------------------------------------------
    def apply(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Run a primitive and record it. Primitives may call each other: only the outermost call is recorded."""
        if self._depth:
            return primitive_named(name)(self, *args, **kwargs)
        saved = self.program
        self._depth += 1
        try:
            result = primitive_named(name)(self, *args, **kwargs)
        except Exception:
            self.program = saved  # a refused primitive leaves nothing half done
            raise
        finally:
            self._depth -= 1
        decision = None
        recorded: tuple[Any, ...]
        if name.startswith("sample_"):
            decision, recorded = result, ()
        else:
            recorded = () if result is None else tuple(result) if isinstance(result, tuple | list) else (result,)
        given = to_refs(args, self._refs), tuple((k, to_refs(v, self._refs)) for k, v in kwargs.items())
        self.trace.instructions.append(
            Instruction(name, *given, tuple(self._remember(h) for h in recorded), decision))
        return result

    def _remember(self, handle: Any) -> Ref:
        ref = Ref(self._count)
        self._count += 1
        self._refs.setdefault(handle, ref)
        return ref

    def decided(self) -> Any:
        """The decision given from outside for the instruction being applied, or None (used by sample_* primitives)."""
        return self._decisions.get(len(self.trace.instructions))

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

    def unroll(self, loop: Var) -> None:
        self.apply("unroll", loop)

    def vectorize(self, loop: Var) -> None:
        self.apply("vectorize", loop)

    def parallel(self, loop: Var) -> None:
        self.apply("parallel", loop)

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

    def rfactor(self, block: BlockRef, loop: Var, axis: int = 0) -> BlockRef:
        return self.apply("rfactor", block, loop, axis)  # type: ignore[no-any-return]

    # ---- buffers -------------------------------------------------------------------------------------------------------
    def cache_read(self, block: BlockRef, buffer: int | str, scope: str = "local") -> BlockRef:
        return self.apply("cache_read", block, buffer, scope)  # type: ignore[no-any-return]

    def cache_write(self, block: BlockRef, index: int = 0, scope: str = "local") -> BlockRef:
        return self.apply("cache_write", block, index, scope)  # type: ignore[no-any-return]

    def set_scope(self, block: BlockRef, index: int, scope: str) -> None:
        self.apply("set_scope", block, index, scope)

    def transform_layout(self, block: BlockRef, buffer: str, index_map: Callable[..., Sequence[Any]],
                         pad_value: float | None = None, allow_interface: bool = False) -> None:
        self.apply("transform_layout", block, buffer, index_map, pad_value=pad_value, allow_interface=allow_interface)

    # ---- decisions -----------------------------------------------------------------------------------------------------
    def sample_tile(self, loop: Var, candidates: Sequence[int], default: int) -> int:
        return int(self.apply("sample_tile", loop, list(candidates), default))

    def sample_choice(self, candidates: Sequence[Any], default: Any) -> Any:
        return self.apply("sample_choice", list(candidates), default)


def replay(trace: Trace, program: Program, decisions: dict[int, Any] | None = None) -> Schedule:
    """Apply a trace to a program; `decisions` by instruction position override those in the trace."""
    sch = Schedule(program, {**trace.decisions(), **(decisions or {})})
    handles: list[Any] = []
    for ins in trace.instructions:
        result = sch.apply(ins.name, *from_refs(ins.args, handles),
                           **{k: from_refs(v, handles) for k, v in ins.kwargs})
        if ins.results:
            handles.extend(result if isinstance(result, tuple | list) else (result,))
    return sch

