"""The record of a schedule: every primitive applied, its arguments and decisions; printable and replayable.

A trace is a space with a default: instructions with a `decision` (sample_*) can be given another decision before replay.
Handles are numbered in the order in which instructions return them, so a trace holds no part of any one program.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tilewright.core.registry import Registry
from tilewright.loop.ir import Var
from tilewright.tensor.schedule.state import BlockRef


@dataclass(frozen=True)
class Ref:
    """The k-th handle that the trace has returned."""
    index: int

    def __repr__(self) -> str:
        return f"h{self.index}"


@dataclass(frozen=True)
class Instruction:
    """One applied primitive: `args`/`kwargs` hold plain data and Refs; `results` are the Refs that it returned."""
    name: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    results: tuple[Ref, ...]
    decision: Any = None

    def __str__(self) -> str:
        parts = [_show(a) for a in self.args] + [f"{k}={_show(v)}" for k, v in self.kwargs]
        left = ", ".join(map(repr, self.results)) + " = " if self.results else ""
        right = f"  # decided {self.decision!r}" if self.decision is not None else ""
        return f"{left}{self.name}({', '.join(parts)}){right}"


def _show(v: Any) -> str:
    if isinstance(v, tuple | list):
        return "[" + ", ".join(_show(x) for x in v) + "]"
    return getattr(v, "__name__", None) or repr(v)


@dataclass
class Trace:
    """Instructions in order. `handles` of the schedule being recorded live beside it, not in it."""
    instructions: list[Instruction] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(map(str, self.instructions))

    def with_decision(self, index: int, decision: Any) -> Trace:
        """A copy in which instruction `index` decides otherwise."""
        out = list(self.instructions)
        out[index] = replace(out[index], decision=decision)
        return Trace(out)

    def decisions(self) -> dict[int, Any]:
        """Decided instructions by position."""
        return {k: i.decision for k, i in enumerate(self.instructions) if i.decision is not None}


PRIMITIVES: Registry[Callable[..., Any]] = Registry("schedule primitive")
"""Every primitive by name: `f(sch, *args, **kwargs) -> handle(s) or None`; entered by @primitive in its own file."""


def primitive(f: Callable[..., Any]) -> Callable[..., Any]:
    """Enter a primitive under its function's name."""
    PRIMITIVES.register(f.__name__, f)
    return f


def to_refs(value: Any, index: dict[Any, Ref]) -> Any:
    """Replace handles by Refs, in nested tuples, lists and dicts."""
    if isinstance(value, Var | BlockRef):
        return index[value]
    if isinstance(value, tuple | list):
        return tuple(to_refs(v, index) for v in value)
    return value


def from_refs(value: Any, handles: list[Any]) -> Any:
    """Replace Refs by the handles of the schedule being replayed."""
    if isinstance(value, Ref):
        return handles[value.index]
    if isinstance(value, tuple | list):
        return type(value)(from_refs(v, handles) for v in value)
    return value
