"""docs/tutorials: each runs from top to bottom at small sizes, shows every step and gets every result right."""
from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.devices import DEVICES
from tilewright.loop.interpret import run
from tilewright.target.presets import get_target

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
SMALL = {"depthwise_conv": ["--channels", "2", "--size", "9", "--multiplier", "2"], "gemm": ["--size", "64"],
         "softmax": ["--rows", "6", "--columns", "70"]}
STEPS = {"depthwise_conv": (9, 9), "gemm": (8, 7), "softmax": (4, 4)}
"""Steps, and how many of them any device can do."""


def tutorial(name: str, *options: str, status: int = 0) -> str:
    """What a tutorial prints; PoCL does not optimize its kernels, so that they are compiled in no time."""
    done = subprocess.run([sys.executable, FOLDER / f"{name}.py", *SMALL[name], *options], capture_output=True, text=True,
                          env={**os.environ, "TILEWRIGHT_OPENCL_OPTIONS": "-cl-opt-disable"}, check=False)
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def titles(text: str) -> list[str]:
    """The headings of the steps, which count from 1."""
    found = re.findall(r"^=+\n(\d+)\. (.+)\n=+$", text, re.MULTILINE)
    assert [int(n) for n, _ in found] == list(range(1, len(found) + 1))
    return [title for _, title in found]


def test_every_tutorial_is_run() -> None:
    assert {p.stem for p in FOLDER.glob("*.py")} - {"steps"} == set(SMALL)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SMALL)
def test_a_tutorial_is_right(name: str, device: str, tmp_path: Path) -> None:
    """The same schedules on every kind of device, but for their numbers of threads."""
    text = tutorial(name, "--quiet", "--devices", device, "--html", str(tmp_path / "out.html"))
    steps = titles(text)
    count, anywhere = STEPS[name]
    assert len(steps) == count and text.count(f"{device}: right to ") == anywhere
    assert text.count(f"{device}: no such instructions") == count - anywhere
    table = text[text.rindex("µs   GFLOP/s"):].splitlines()[1:]
    assert [line[:52].strip() for line in table] == steps[:anywhere]
    assert '<script type="application/json" id="data">{"title"' in (tmp_path / "out.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SMALL)
def test_a_tutorial_shows_its_programs_without_a_device(name: str) -> None:
    text = tutorial(name, "--devices")
    steps = titles(text)
    count, anywhere = STEPS[name]
    assert len(steps) == count and "No device runs kernels here" in text and "right to" not in text
    for shown in ("---- the loop program", "---- cuda source", "per result: "):
        assert text.count(shown) >= count, shown
    assert text.count("---- opencl source") == text.count("---- wgsl source") == anywhere
    assert "threadIdx.x" in text and "__kernel" in text and "__global__" in text


def test_tensor_cores_multiply() -> None:
    """What no device here runs: the schedule of fragments and instructions, by the interpreter."""
    sys.path.insert(0, str(FOLDER))
    try:
        gemm = importlib.import_module("gemm")
    finally:
        sys.path.remove(str(FOLDER))
    sch = gemm.tensor_cores(gemm.Product(64, "f16"), get_target("sm_80"))
    a, b = (np.random.default_rng(k).integers(-4, 5, (64, 64)).astype(np.float16) for k in (0, 1))
    c = np.full((64, 64), np.nan, np.float32)
    run(sch.program, [a, b, c])
    np.testing.assert_array_equal(c, a.astype(np.float32) @ b.astype(np.float32))
