"""The depthwise benchmark's parts that need no device: a function's launches, what is tried, what it says without one."""
from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewright import te
from tilewright.loop.interpret import run
from tilewright.loop.lower.device_pipeline import device_kernels
from tilewright.target.presets import get_target

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest) -> Any:
    """The script as a module; it imports the tutorial, and the tutorial its steps."""
    before = list(sys.path)
    sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "docs" / "tutorials")]
    spec = importlib.util.spec_from_file_location("depthwise_benchmark", ROOT / "benchmarks" / "depthwise.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.mark.parametrize("fused", [False, True])
def test_the_launches_of_a_function_compute_it(bench: Any, fused: bool) -> None:
    d, target = bench.tutorial.Depthwise(2, 5, 3, 2), get_target("sm_80")
    threads = bench.tutorial.Threads(2, 4, virtual_x=2)
    make = bench.tutorial.fused if fused else bench.tutorial.unfused
    f = te.build(make(d, target, threads), target, args=d.fused_args)
    calls, scratch = bench.calls_of(f)
    assert len(calls) == (1 if fused else 3) and len(scratch) == (0 if fused else 2)
    x, w, scale, shift = d.inputs()
    out = np.full(d.shape, np.nan, np.float32)
    memory = [x, w, scale, shift, out, *[np.zeros(n // 4, np.float32).reshape(d.shape) for n in scratch]]
    kernels = {k.name: k for k in device_kernels(f.lowered)}
    for call in calls:
        run(kernels[call.kernel], [memory[k] for k in call.arguments])
        assert call.grid[3] * call.grid[4] * call.grid[5] in (8, 256)
    want = np.maximum(d.expected(x, w) * scale[:, None, None] + shift[:, None, None], 0)
    np.testing.assert_allclose(out, want, atol=1e-5)


def test_what_is_tried_fits_the_device(bench: Any) -> None:
    d, target = bench.tutorial.Depthwise(2, 21, 3), get_target("sm_80")
    found = list(bench.candidates(d, target))
    assert len(found) == len(set(found)) > 20
    for t in found:
        assert target.warp <= t.x * t.y <= target.max_threads
        assert d.tile % (t.x * t.virtual_x) == d.tile % (t.y * t.virtual_y) == 0


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is here")
def test_without_pytorch_it_says_so() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "depthwise.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("Nothing was measured: PyTorch is not installed")
