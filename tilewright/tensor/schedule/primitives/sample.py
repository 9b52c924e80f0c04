"""sample_tile, sample_perfect_tile, sample_choice, sample_compute_location: named decisions with a default, which a tuner
may take otherwise.

    t = sch.sample_tile(i, [4, 8, 16], default=8)      a trace records what was decided; replay may decide again
    sch.split(i, [None, t])                            and splits by what it then decided
    loop = sch.sample_compute_location(b)              a loop around the consumers of b, or none of them: `compute_at`
    sch.compute_at(b, loop)                            then leaves b where it is
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tilewright.loop.ir import Var, as_int
from tilewright.tensor.regions import consumers
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef, ScheduleError, find_block, find_loop, loops_around, nowhere
from tilewright.tensor.schedule.trace import UNDECIDED, Sampled, primitive


@primitive
def sample_tile(sch: Schedule, loop: Var, candidates: Sequence[int], default: int) -> int:
    """A tile size for a loop: one of the candidates. Raises ScheduleError for a default or decision that is none."""
    find_loop(sch.program, loop)
    if not candidates or not all(type(c) is int and c > 0 for c in candidates):
        raise ScheduleError("sample_tile", f"{list(candidates)!r} is no list of positive sizes", sch.program, loop)
    return int(_decide(sch, "sample_tile", candidates, default))


@primitive
def sample_perfect_tile(sch: Schedule, loop: Var, parts: int, max_innermost: int = 64,
                        default: Sequence[int] | None = None) -> Sampled:
    """`parts` factors of a loop's extent, outermost first, whose product it is; the last is at most `max_innermost`. The
    default: the largest such last factor, and all the rest in the first. Raises ScheduleError for an extent that is no
    constant, and for a default or decision of other factors."""
    n = as_int(find_loop(sch.program, loop).extent)
    name = "sample_perfect_tile"
    if n is None or n < 1:
        raise ScheduleError(name, f"the extent of loop {loop.name} is no positive constant", sch.program, loop)
    if parts < 1 or max_innermost < 1:
        raise ScheduleError(name, f"{parts} factors, the last up to {max_innermost}: both must be positive", sch.program,
                            loop)
    if default is None:
        last = next(d for d in range(min(n, max_innermost), 0, -1) if n % d == 0) if parts > 1 else n
        default = [n // last, *[1] * (parts - 2), last][-parts:]
    given = sch.decided()
    factors = tuple(default if given is UNDECIDED else given)
    if len(factors) != parts or any(type(f) is not int or f < 1 for f in factors) or math.prod(factors) != n or (
            parts > 1 and factors[-1] > max_innermost):
        raise ScheduleError(name, f"{list(factors)} are not {parts} factors of {n}, the last up to {max_innermost}",
                            sch.program, loop)
    return Sampled(factors, factors)


@primitive
def sample_compute_location(sch: Schedule, block: BlockRef, default: int = -1) -> Sampled:
    """A loop for `compute_at`: the k-th one, outermost first, of those around the block's first consumer into which it may
    move; -1 for none. Raises ScheduleError for a decision that is not legal."""
    given = sch.decided()
    choice = default if given is UNDECIDED else given
    users = consumers(sch.program, find_block(sch.program, block))
    around = loops_around(sch.program, users[0]) if users else []
    if type(choice) is not int or not -1 <= choice < len(around):
        raise ScheduleError("sample_compute_location", f"{choice!r} is none of the {len(around)} loops around the consumer "
                            "of the block, and not -1", sch.program, block)
    if choice == -1:
        return Sampled(choice, (nowhere(),), single=True)
    trial = Schedule(sch.program)
    trial.loops(trial.block(users[0].name))
    trial.compute_at(block, around[choice].var)
    return Sampled(choice, (around[choice].var,), single=True)


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
