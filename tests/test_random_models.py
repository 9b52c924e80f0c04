"""Random models end to end, beside the graph interpreter and ONNX Runtime: 200 always, ten thousand in the long run. A
failure names its seed; `python -m tests.random_models SEED` runs it again."""
from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.random_models import Case, campaign, operators, random_case

LONG = os.environ.get("TILEWRIGHT_LONG") == "1"
CASES, TOGETHER = (10_000, 100) if LONG else (200, 25)


@pytest.mark.parametrize("first", range(0, CASES, TOGETHER))
def test_random_models(first: int) -> None:
    result = campaign(range(first, first + TOGETHER))
    told = "\n".join([f"python -m tests.random_models {seed}\n{what}" for seed, what in result.failures.items()])
    print(result)
    assert not result.failures, told
    assert result.ran == TOGETHER and result.beside > 0.9 * TOGETHER, result.refused


def test_the_generator_reaches_what_it_should() -> None:
    """The first 200 hold most operators, control flow and symbols."""
    cases = [random_case(seed) for seed in range(200)]
    found = set().union(*[operators(c.model) for c in cases])
    print(f"{len(found)} operators of ONNX: {', '.join(sorted(found))}")
    assert len(found) >= 130
    assert {"Conv", "MatMul", "Softmax", "LayerNormalization", "If", "Loop", "Scan", "LSTM", "NonZero", "Resize"} <= found
    assert 40 < sum(len(c.feeds) > 1 for c in cases) < 80


def test_a_seed_is_a_model() -> None:
    assert random_case(7).model.SerializeToString() == random_case(7).model.SerializeToString()


def test_a_process_that_onnxruntime_ends_is_no_failure_of_ours() -> None:
    """ONNX Runtime 1.32 aborts on this case; a version that does not is compared with."""
    result = campaign([9189])
    assert (result.ran, result.failures, result.beside + result.refused.total()) == (1, {}, 1)


@pytest.mark.parametrize("phase", ("interpreter", "ONNX Runtime"))
def test_a_process_that_we_end_is(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while ONNX Runtime runs: alone it does not die of these cases."""
    def check(case: Case, note: Any) -> str:
        note(phase)
        if case.seed % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return ""
    monkeypatch.setattr("tests.random_models.check", check)
    result = campaign(range(4), jobs=2)
    assert result.failures == {seed: f"died with -9 ({phase})" for seed in (1, 3)}
    assert (result.ran, result.beside, result.refused.total()) == (4, 2, 0)
