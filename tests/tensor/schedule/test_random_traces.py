"""Property test: random schedules give the interpreter's results bit for bit, and what is refused is wrong.

`make test` runs a share of the traces; TILEWRIGHT_RANDOM_TRACES=1000 (as `make long` does) runs that many.
TILEWRIGHT_RANDOM_SEED moves to other traces.
"""
from __future__ import annotations

import os

import pytest

from tests.tensor.schedule.random_traces import CALLS, LOOKS, Tally, check, first_wrong_step, run_trace
from tests.tensor.schedule.schedule_operators import OPERATORS, results
from tilewright.tensor.schedule.primitives import WHERE

TRACES = int(os.environ.get("TILEWRIGHT_RANDOM_TRACES", "170"))
OF_DEVICES = {"bind", "storage_align", "cooperative_fetch", "unsafe_bind", "unsafe_parallel"}
"""Primitives of programs for threads of a device, and those that prove nothing: tests/tensor/schedule/test_bind.py."""
FIRST = int(os.environ.get("TILEWRIGHT_RANDOM_SEED", "0"))


def test_random_traces(capsys: pytest.CaptureFixture[str]) -> None:
    names = list(OPERATORS)
    programs = {n: make() for n, make in OPERATORS.items()}
    expected = {n: results(p) for n, p in programs.items()}
    tally = Tally()
    for seed in range(FIRST, FIRST + TRACES):
        name = names[seed % len(names)]
        sch = run_trace(programs[name], seed, tally, expected[name], judge=0.5)
        why = check(programs[name], sch, expected[name])
        if why is not None:
            step = first_wrong_step(programs[name], sch, expected[name])
            pytest.fail(f"seed {seed}, {name}: {why}\n{step}\n{sch.trace}")
    with capsys.disabled():
        print(f"\n{TRACES} random traces from seed {FIRST}\n{tally}")
    assert set(CALLS) == set(WHERE) - LOOKS - OF_DEVICES, "a primitive has no generator of random calls"
    assert not [n for n in CALLS if not tally.applied[n]], "a primitive was never applied"
    assert tally.rate() >= 0.9, "\n".join(f"seed {s}: {why}" for s, _, why, _, _ in tally.doubtful)
