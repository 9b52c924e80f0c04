"""Random models end to end, against ONNX Runtime: reading, passes, fusion, schedules, memory plan, control flow together."""
from __future__ import annotations

import os

import numpy as np
import pytest

import tilewright
from tests.random_models import random_model
from tests.small_models import inputs, reference
from tilewright.core.config import config

LONG = os.environ.get("TILEWRIGHT_LONG") == "1"
SEEDS = range(1000 if LONG else 40)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_model(seed):
    """With a poisoned arena; a second run on one more thread must give the same bits."""
    proto = random_model(seed)
    feeds = inputs(proto, seed)
    with config.override(compile_workers=1), tilewright.compile(proto, threads=1) as made:
        made.executable.set_poison(True)
        got = made.run(feeds)
        for spec, a, b in zip(made.outputs, got, reference(proto, feeds), strict=True):
            b = np.asarray(b)
            largest = max(float(np.abs(b[np.isfinite(b)]).max(initial=0)), 1e-2)  # x - x is 1e-8 where products are fused
            assert a.shape == b.shape and np.array_equal(np.isfinite(a), np.isfinite(b)), spec.name
            np.testing.assert_allclose(a / largest, b / largest, rtol=0, atol=1e-4, err_msg=spec.name)
        made.threads = 2
        assert [a.tobytes() for a in made.run(feeds)] == [a.tobytes() for a in got]


def test_the_generator_reaches_what_it_should():
    """The seeds above hold every kind of operator, branches and loops among them."""
    found = {node.op_type for seed in SEEDS for node in random_model(seed).graph.node}
    assert {"Conv", "MatMul", "Softmax", "LayerNormalization", "If", "Loop", "Concat", "Split", "Slice", "Pad", "Gather",
            "Transpose", "Reshape", "MaxPool", "ReduceMean"} <= found
