"""sample_tile, sample_choice: named decisions with a default, which a tuner may take otherwise.

    t = sch.sample_tile(i, [4, 8, 16], default=8)      a trace records what was decided; replay may decide again
    sch.split(i, [None, t])                            and splits by what it then decided
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilewright.loop.ir import Var
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import ScheduleError, find_loop
from tilewright.tensor.schedule.trace import UNDECIDED, primitive


@primitive
def sample_tile(sch: Schedule, loop: Var, candidates: Sequence[int], default: int) -> int:
    """A tile size for a loop: one of the candidates. Raises ScheduleError for a default or decision that is none."""
    find_loop(sch.program, loop)
    if not candidates or not all(type(c) is int and c > 0 for c in candidates):
        raise ScheduleError("sample_tile", f"{list(candidates)!r} is no list of positive sizes", sch.program, loop)
    return int(_decide(sch, "sample_tile", candidates, default))


@primitive
def sample_choice(sch: Schedule, candidates: Sequence[Any], default: Any) -> Any:
    """One of several alternatives (plain data)."""
    return _decide(sch, "sample_choice", candidates, default)


def _decide(sch: Schedule, name: str, candidates: Sequence[Any], default: Any) -> Any:
    given = sch.decided()
    choice = default if given is UNDECIDED else given
    if choice not in candidates:
        raise ScheduleError(name, f"{choice!r} is none of the candidates {list(candidates)!r}", sch.program)
    return choice
