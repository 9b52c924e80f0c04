"""A program and the primitives applied to it so far: each call checks legality, rewrites the program and is recorded.

    sch = Schedule(program)
    i, j, k = sch.loops(sch.block("C"))
    io, ii = sch.split(i, 8)

Primitives live in `tensor/schedule/primitives/`, one idea per file; the methods here only name them with their types.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilewright.loop.ir import For, Program, Var
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.state import BlockRef
from tilewright.tensor.schedule.trace import PRIMITIVES, Instruction, Ref, Trace, from_refs, to_refs


class Schedule:
    """A program being scheduled. `program` is the current one; `trace` replays on an equal program."""

    def __init__(self, program: Program, decisions: dict[int, Any] | None = None) -> None:
        self.program = program
        self.trace = Trace()
        self._refs: dict[Any, Ref] = {}
        self._count = 0
        self._decisions = decisions or {}
        self._depth = 0

    # ---- recording ---------------------------------------------------------------------------------------------------
    def apply(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Run a primitive and record it. Primitives may call each other: only the outermost call is recorded."""
        if self._depth:
            return PRIMITIVES.get(name)(self, *args, **kwargs)
        saved = self.program
        self._depth += 1
        try:
            result = PRIMITIVES.get(name)(self, *args, **kwargs)
        except Exception:
            self.program = saved  # a refused primitive leaves nothing half done
            raise
        finally:
            self._depth -= 1
        decision = None
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


__all__: Sequence[str] = ["Schedule", "replay"]
