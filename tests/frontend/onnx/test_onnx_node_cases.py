"""ONNX's own node cases: every operator, most attributes, at the newest versions. What fails is listed with its reason."""
from __future__ import annotations

import warnings
from typing import Any

import pytest

from tests.frontend.onnx.onnx_check import case_value, compare
from tilewright.core.errors import UserError
from tilewright.frontend.onnx import table
from tilewright.frontend.onnx.backend import interpreted

NOT_READ = {"onnx-unsupported-op", "onnx-unsupported-type", "onnx-unsupported-variant"}

DRAWN = "random numbers: the case has those of one run of NumPy"
WRONG = {f"test_bernoulli{a}{b}": DRAWN for a in ("", "_double", "_seed") for b in ("", "_expanded")}

UNSUPPORTED_VARIANTS: dict[str, tuple[str, ...]] = {}

FROM_OTHER_TESTS = {"Upsample", "Scatter", "SpaceToDepth", "GlobalLpPool", "LpNormalization", "MaxRoiPool", "Multinomial",
                    "RandomUniform", "RandomNormal", "RandomNormalLike", "RandomUniformLike", "Bernoulli",
                    "ConcatFromSequence", "Optional", "SequenceAt", "SequenceConstruct", "SequenceErase",
                    "SimplifiedLayerNormalization"}
"""Operators that older models have and ONNX's cases do not; the other tests of this folder cover them."""


def cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases
        return list(collect_testcases(None))


def compared(case: Any) -> str:
    """ "" if the case passes, else the code of the error that was raised; operands that must be known become weights."""
    ins, outs = ([case_value(v) for v in values] for values in case.data_sets[0])
    try:
        got = interpreted(case.model, ins)
    except UserError as e:
        return e.code
    assert len(got) == len(outs)
    for g, e in zip(got, outs, strict=True):
        narrow = getattr(g, "itemsize", 0) < 4  # rounded in other places than ONNX's reference does
        compare(case_value(e), g, case.rtol, 1e-2 if narrow else 1e-5)
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
