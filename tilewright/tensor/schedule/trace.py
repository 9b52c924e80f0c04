"""The record of a schedule: every primitive applied, its arguments and decisions; printable and replayable.

    h0 = block("C")
    h1, h2, h3 = loops(h0)
    h4 = sample_tile(h1, [4, 8, 16], 8)  # decided 16
    h5, h6 = split(h1, [None, h4])

A trace is a space with a default: instructions with a `decision` (sample_*) can be given another decision before replay, and
arguments that are what was decided follow it.
Handles are numbered in the order in which instructions return them, so a trace holds no part of any one program but its
symbolic sizes.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tilewright.core.errors import UserError
from tilewright.core.registry import Registry
from tilewright.loop.ir import Expr, Var
from tilewright.loop.printer import Names, print_expr
from tilewright.loop.substitute import substitute
from tilewright.tensor.schedule.index_map import IndexMap
from tilewright.tensor.schedule.state import BlockRef


@dataclass(frozen=True)
class Ref:
    """The k-th handle that the trace has returned."""
    index: int

    def __repr__(self) -> str:
        return f"h{self.index}"


class Decided(int):
    """A number that a sample_* primitive decided: given to a primitive as it is, a trace records that it came from there.
    What is computed from it is a plain number."""
    ref: Ref


@dataclass(frozen=True)
class Sampled:
    """What a sample_* primitive returns where what it decided (recorded) is not what its caller gets (handles, one or a
    list of them)."""
    decision: Any
    results: tuple[Any, ...]
    single: bool = False


class _Undecided:
    def __repr__(self) -> str:
        return "UNDECIDED"


UNDECIDED = _Undecided()
"""The `decision` of an instruction that decides nothing (None may be a decision)."""


@dataclass(frozen=True)
class Instruction:
    """One applied primitive: `args`/`kwargs` hold plain data and Refs; `results` are the Refs that it returned."""
    name: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    results: tuple[Ref, ...]
    decision: Any = UNDECIDED

    def __str__(self) -> str:
        parts = [show(a) for a in self.args] + [f"{k}={show(v)}" for k, v in self.kwargs]
        left = ", ".join(map(repr, self.results)) + " = " if self.results else ""
        right = "" if self.decision is UNDECIDED else f"  # decided {self.decision!r}"
        return f"{left}{self.name}({', '.join(parts)}){right}"


def show(v: Any, names: Names | None = None) -> str:
    """An argument or a handle as text; `names`: those of variables."""
    if isinstance(v, tuple | list):
        return "[" + ", ".join([show(x, names) for x in v]) + "]"
    if isinstance(v, Expr):
        return print_expr(v, names=names)
    if isinstance(v, BlockRef):
        return repr(v.name)
    if isinstance(v, IndexMap):
        return repr(v)
    if isinstance(v, Trace):
        return "{" + "; ".join(map(str, v.instructions)) + "}"
    return getattr(v, "__name__", None) or repr(v)


@dataclass
class Trace:
    """Instructions in order; `sizes` are the scalar parameters of the program that it was recorded on."""
    instructions: list[Instruction] = field(default_factory=list)
    sizes: tuple[Var, ...] = ()

    def __str__(self) -> str:
        return "\n".join(map(str, self.instructions))

    def with_decision(self, index: int, decision: Any) -> Trace:
        """A copy in which instruction `index` decides otherwise. Raises UserError if it decides nothing."""
        self.check_decides(index)
        out = list(self.instructions)
        out[index] = replace(out[index], decision=decision)
        return Trace(out, self.sizes)

    def decisions(self) -> dict[int, Any]:
        """Decided instructions by position."""
        return {k: i.decision for k, i in enumerate(self.instructions) if i.decision is not UNDECIDED}

    def check_decides(self, index: int) -> None:
        if not 0 <= index < len(self.instructions) or self.instructions[index].decision is UNDECIDED:
            known = ", ".join(map(str, self.decisions())) or "none"
            raise UserError("trace-decision", f"instruction {index} of the trace decides nothing (those that do: {known})")


PRIMITIVES: Registry[Callable[..., Any]] = Registry("schedule primitive")
"""Every primitive by name: `f(sch, *args, **kwargs) -> handle(s) or None`; entered by @primitive in its own file."""


def primitive(f: Callable[..., Any]) -> Callable[..., Any]:
    """Enter a primitive under its function's name."""
    PRIMITIVES.register(f.__name__, f)
    return f


def to_refs(value: Any, index: Mapping[Any, Ref], sizes: Sequence[Var]) -> Any:
    """Replace handles and decided numbers by Refs, in nested tuples and lists. A block that no instruction returned is
    recorded by its name. Raises KeyError for a loop that none returned."""
    if isinstance(value, Decided):
        return value.ref
    if isinstance(value, BlockRef):
        return index.get(value, value)
    if isinstance(value, Var):
        return value if value in sizes else index[value]
    if isinstance(value, tuple | list):
        return tuple([to_refs(v, index, sizes) for v in value])
    return value


def from_refs(value: Any, handles: Sequence[Any], sizes: Mapping[Var, Var]) -> Any:
    """Replace Refs by the handles of the schedule being replayed, and symbolic sizes by those of its program."""
    if isinstance(value, Ref):
        return handles[value.index]
    if isinstance(value, tuple | list):
        return tuple([from_refs(v, handles, sizes) for v in value])
    if isinstance(value, Expr):
        return substitute(value, sizes)
    if isinstance(value, IndexMap):
        return value.renamed(sizes)
    return value


def plain(value: Any) -> Any:
    """The value with decided numbers as plain ones."""
    if isinstance(value, Decided):
        return int(value)
    if isinstance(value, tuple | list):
        return type(value)([plain(v) for v in value])
    return value
