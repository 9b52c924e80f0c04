"""The benchmarks' own parts: records kept and compared, cases that are models, graphs in float64."""
from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import small_models
from tilewright.frontend.onnx.importer import import_onnx
from tilewright.graph.interpret import run

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module


def kept(kernel: str, share: float, threads: int = 1) -> dict[str, object]:
    return {"kernel": kernel, "threads": threads, "share": share}


def test_a_history_grows_and_names_what_became_slower(load, tmp_path):
    history = load("history")
    file = tmp_path / "new" / "rates.jsonl"
    assert history.read(file) == []
    history.append(file, [kept("a", 0.5), kept("b", 0.5), kept("b", 0.9, 2)])
    history.append(file, [kept("a", 0.8)])
    with file.open("a") as f:
        f.write('{"kernel": "a", "thr')  # a run that was cut off
    past = history.read(file)
    assert len(past) == 4 and all(r["machine"] == history.machine() and "git" in r and "time" in r for r in past)
    now = [kept("a", 0.7), kept("b", 0.46), kept("b", 0.5, 2), kept("c", 0.1)]
    assert [(r.kernel, r.threads) for r in history.regressions(past, now, history.machine())] == [("b", 2), ("a", 1)]
    assert not history.regressions(past, now, {"cpu": "another", "cpus": 2})


def test_a_record_after_a_cut_off_line_is_not_lost(load, tmp_path):
    history = load("history")
    file = tmp_path / "rates.jsonl"
    file.write_text('{"kernel": "a", "thr')
    history.append(file, [kept("b", 0.5)])
    assert [r["kernel"] for r in history.read(file)] == ["b"]


def test_cases_are_models(load, monkeypatch):
    monkeypatch.setattr(load("cases"), "COLD_BYTES", 1)
    families = load("cases").families(1 << 20)
    cases = [c for family in families.values() for c in family]
    assert len({c.name for c in cases}) == len(cases) > 40
    for case in (families["depthwise"][5], families["rows"][0], families["elementwise and movement"][0],
                 families["decode: one row, weights from memory"][0]):
        proto = case.model()
        onnx.checker.check_model(onnx.shape_inference.infer_shapes(proto))
        assert any(n.name.startswith(case.part) for n in proto.graph.node)


@pytest.mark.parametrize("name", ("mlp", "convnet", "attention"))
def test_float64_runs_agree_with_float32(load, name):
    m = small_models.ALL[name]()
    graph, feeds = import_onnx(m), small_models.inputs(m)
    for got, want in zip(load("errors").exactly(graph, feeds), run(graph, feeds), strict=True):
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)


def test_rates_measure_and_append(load, tmp_path, monkeypatch, capsys):
    rates = load("rates")
    file = tmp_path / "rates.jsonl"
    monkeypatch.setattr(rates.cases, "families", lambda last: {"one": [rates.cases.conv(16, 16, 8, 3, 1, 16)]})
    monkeypatch.setattr(sys, "argv", ["rates.py", "--threads", "1", "--no-models", "--history", str(file), "--json"])
    rates.main()
    (said,) = json.loads(capsys.readouterr().out)["kernels"]
    (stored,) = map(json.loads, file.read_text().splitlines())
    assert stored["kernel"] == said["kernel"] == "depthwise 3×3 16→16 at 8²" and stored["microseconds"] > 0
    assert stored["gflops"] == pytest.approx((2 * 9 + 2) * 16 * 64 / stored["microseconds"] / 1e3)


def test_tables_are_put_between_their_marks(load, tmp_path):
    tables, page = load("tables"), tmp_path / "page.md"
    page.write_text("a\n<!-- models -->\nold\n<!-- end -->\nb\n<!-- layers -->\nkept\n<!-- end -->\n")
    tables.put(page, "models", r"\\1 new")
    assert page.read_text() == "a\n<!-- models -->\n\\\\1 new\n<!-- end -->\nb\n<!-- layers -->\nkept\n<!-- end -->\n"
    with pytest.raises(ValueError, match="0 places"):
        tables.put(page, "others", "")
    lines = list(tables.layer_table("mlp", small_models.mlp(), [1]))
    assert any("matmul" in line for line in lines) and "1 thread: µs" in lines[0]
    marks = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    assert marks.count("<!-- models -->") == marks.count("<!-- layers -->") == 1
