"""ONNX's own node cases: every operator, most attributes, at the newest versions. What fails is listed with its reason."""
from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.frontend.onnx.onnx_check import run, same
from tilewright.core.errors import UserError
from tilewright.frontend.onnx import table

NOT_READ = {"onnx-unsupported-op", "onnx-unsupported-type", "onnx-unsupported-variant"}

DRAWN = "random numbers: the case has those of one run of NumPy"
WRONG = {
    "test_loop11": "slices by bounds that depend on data",
    **{f"test_bernoulli{a}{b}": DRAWN for a in ("", "_double", "_seed") for b in ("", "_expanded")},
    "test_reduce_log_sum_exp_empty_set": "the largest of no elements", "test_reduce_max_empty_set": "the same",
    "test_reduce_min_empty_set": "the same"}

UNSUPPORTED_VARIANTS = {
    "no tensors": ("equal_string", "identity_sequence", "identity_opt", "sequence_map"),
    "other": ("scan_sum",)}

FROM_OTHER_TESTS = {"Upsample", "Scatter", "SpaceToDepth", "GlobalLpPool", "LpNormalization", "MaxRoiPool", "Multinomial",
                    "RandomUniform", "RandomNormal", "RandomNormalLike", "RandomUniformLike", "Bernoulli"}
"""Operators that older models have and ONNX's cases do not; test_onnx_versions.py and test_onnx_operators.py cover them."""


def cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases
        return list(collect_testcases(None))


def arrays(values: Any) -> list[Any]:
    return [numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v for v in values]


def compared(case: Any) -> str:
    """ "" if the case passes, else the code of the error that was raised; operands that must be known become weights."""
    ins, outs = (arrays(v) for v in case.data_sets[0])
    feeds = dict(zip([v.name for v in case.model.graph.input], ins, strict=True))
    try:
        try:
            got = run(case.model, feeds)
        except UserError as e:
            if e.code != "onnx-dynamic-value":
                raise
            first = 0 if len(feeds) == 1 or isinstance(e, table.NeedsValue) and e.value.name == next(iter(feeds)) else 1
            m, rest = onnx.ModelProto(), list(feeds)[first:]
            m.CopyFrom(case.model)
            m.graph.initializer.extend([numpy_helper.from_array(np.asarray(feeds[k]), k) for k in rest])
            del m.graph.input[first:]
            got = run(m, {k: feeds[k] for k in feeds if k not in rest})
    except UserError as e:
        return e.code
    same(got, outs, atol=1e-5)
    return ""


@pytest.mark.filterwarnings("ignore")
def test_node_cases() -> None:
    wrong, passed, covered = [], 0, set()
    for case in cases():
        name, known = case.name, [w for ws in UNSUPPORTED_VARIANTS.values() for w in ws]
        try:
            code = compared(case)
        except (AssertionError, ValueError) as e:
            if name not in WRONG:
                wrong.append(f"{name}: {str(e)[:200]}")
            continue
        if not code:
            passed += 1
            covered |= {n.op_type for n in case.model.graph.node}
            if name in WRONG:
                wrong.append(f"{name} passes: take it off the list")
        elif not (name in WRONG or code == "onnx-unsupported-op" or code in NOT_READ and any(w in name for w in known)):
            wrong.append(f"{name}: {code}")
    assert not wrong, "\n".join(wrong)
    assert passed >= 1600, passed
    assert set(table.names()) - covered <= FROM_OTHER_TESTS, sorted(set(table.names()) - covered - FROM_OTHER_TESTS)
