"""docs/operators.md says what the tables say, and every operator that runs on the host says why."""
from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.golden import UPDATE
from tilewright.frontend.onnx import table
from tilewright.graph.registry import OPS
from tilewright.tools import operators

PAGE = Path(__file__).parents[1] / "docs" / "operators.md"


def test_the_page_is_up_to_date() -> None:
    if UPDATE:
        PAGE.write_text(operators.text(), encoding="utf-8")
    kept = PAGE.read_text(encoding="utf-8")
    if f"with onnx {onnx.__version__}." not in kept:
        pytest.skip("the page was written with another version of onnx")
    assert kept == operators.text()


def test_host_operators_say_why() -> None:
    hosts = {name for name, rec in OPS.items() if rec.host}
    assert set(table.HOST.values()) <= hosts
    for name, rec in OPS.items():
        bare = rec.compute is None and rec.numpy is not None
        known = name in ("if_", "loop", "scan", "sizes", "winograd_weights", "nonzero")  # of the host program, or folded
        assert bare == (bool(rec.host) or known), name
