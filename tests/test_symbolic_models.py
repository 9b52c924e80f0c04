"""Networks from torch and transformers with symbolic sizes: compiled once, right at five sizes each beside ONNX Runtime,
also where one of the sizes has a version of its own.

They want the extra `models` (torch, transformers, onnxscript).
"""
from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest

import tilewright
from tilewright.core.config import config

torch_models = pytest.importorskip("tests.torch_models", reason="needs torch, transformers and onnxscript: "
                                   "pip install 'tilewright[models]'")
pytestmark = pytest.mark.long

Array = np.ndarray[Any, Any]
CASES = [(name, exporter) for name, net in torch_models.NETS.items() for exporter in net.exporters]


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Both exporters' graphs often have the same kernels."""
    with config.override(cache_dir=tmp_path_factory.mktemp("cache")):
        yield


def check(got: list[Array], want: list[Array], where: str) -> None:
    """Whole numbers are equal, others differ by at most 1e-5 of the largest."""
    for g, w in zip(got, want, strict=True):
        assert (g.shape, g.dtype) == (w.shape, w.dtype), where
        if w.dtype.kind == "f":
            np.testing.assert_allclose(g, w, rtol=0, atol=1e-5 * max(np.abs(w).max(initial=0), 1e-9), err_msg=where)
        else:
            np.testing.assert_array_equal(g, w, err_msg=where)


@pytest.mark.parametrize("name,exporter", CASES, ids=[f"{n}-{e}" for n, e in CASES])
def test_one_model_for_five_sizes(name: str, exporter: str) -> None:
    net = torch_models.NETS[name]
    model = torch_models.exported(name, exporter)
    declared = {d.dim_param for i in model.graph.input for d in i.type.tensor_type.shape.dim}
    shapes = {s: r for s, r in net.ranges.items() if s in declared}
    names = [i.name for i in model.graph.input]
    reference = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    traced = {s: size for s, size in net.runs[0].items() if s in declared}
    versions = [traced] if exporter == net.exporters[0] else []
    with tilewright.compile(model, shapes=shapes, versions=versions, fallback="error") as made:
        made.executable.set_poison(True)
        for sizes in net.runs:
            feeds = {k: v.numpy() for k, v in net.inputs(sizes).items() if k in names}
            check(made.run(feeds), reference.run(None, feeds), f"{name} by {exporter} at {sizes}")
