"""Property test: random schedules give the interpreter's results bit for bit, and what is refused is wrong.

`make test` runs a share of the traces; TILEWRIGHT_RANDOM_TRACES=1000 (as `make long` does) runs that many.
TILEWRIGHT_RANDOM_SEED moves to other traces.
"""
from __future__ import annotations

import os

import pytest

from tests.tensor.schedule.random_traces import CALLS, CUTTING, LOOKS, Tally, check, first_wrong_step, run_trace
from tests.tensor.schedule.schedule_operators import OPERATORS, results
from tilewright.tensor.schedule.primitives import WHERE

TRACES = int(os.environ.get("TILEWRIGHT_RANDOM_TRACES", "170"))
OF_DEVICES = {"bind", "storage_align", "cooperative_fetch", "unsafe_bind", "unsafe_parallel", "online_softmax",
              "alternative"}
"""Primitives of programs for threads of a device, those that prove nothing, and one that comes last:
tests/tensor/schedule/test_bind.py, test_online_softmax.py, test_alternative.py."""
FIRST = int(os.environ.get("TILEWRIGHT_RANDOM_SEED", "0"))


def traces(seeds: range, cutting: bool) -> Tally:
    """Run a trace per seed; each must compute what its program does."""
    names = list(OPERATORS)
    programs = {n: make() for n, make in OPERATORS.items()}
    expected = {n: results(p) for n, p in programs.items()}
    tally = Tally()
    for seed in seeds:
        name = names[seed % len(names)]
        sch = run_trace(programs[name], seed, tally, expected[name], judge=0.5, cutting=cutting)
        why = check(programs[name], sch, expected[name])
        if why is not None:
            step = first_wrong_step(programs[name], sch, expected[name])
            pytest.fail(f"seed {seed}, {name}: {why}\n{step}\n{sch.trace}")
    return tally


def test_random_traces(capsys: pytest.CaptureFixture[str]) -> None:
    tally = traces(range(FIRST, FIRST + TRACES), cutting=False)
    with capsys.disabled():
        print(f"\n{TRACES} random traces from seed {FIRST}\n{tally}")
    assert set(CALLS) | set(CUTTING) == set(WHERE) - LOOKS - OF_DEVICES, "a primitive has no generator of random calls"
    assert not [n for n in CALLS if not tally.applied[n]], "a primitive was never applied"
    assert tally.rate() >= 0.9, "\n".join(f"seed {s}: {why}" for s, _, why, _, _ in tally.doubtful)


def test_random_traces_of_cut_and_skewed_nests(capsys: pytest.CaptureFixture[str]) -> None:
    """More refusals than above are of what would be right: conditions cut their boxes, several blocks write a buffer."""
    count = max(60, TRACES // 2)
    tally = traces(range(FIRST, FIRST + count), cutting=True)
    with capsys.disabled():
        print(f"\n{count} random traces of cut and skewed nests from seed {FIRST}\n{tally}")
    assert not [n for n in CUTTING if not tally.applied[n]], "a primitive was never applied"
    assert tally.rate() >= 0.7, "\n".join(f"seed {s}: {why}" for s, _, why, _, _ in tally.doubtful)
