"""Throughput: every caller calls, rates are what was counted, errors come back."""
from __future__ import annotations

import json
import threading

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from tests import small_models
from tilewright.tools import bench, throughput
from tilewright.tools.commands import app


def test_all_callers_call():
    seen = set()
    met = threading.Barrier(3)

    def meeting(feeds):
        met.wait(30)  # passes only when three callers are here at once
        seen.add(threading.get_ident())
        return [feeds["x"]]

    def engine(feeds):
        if len(seen) < 3:
            return meeting(feeds)
        return [feeds["x"]]
    (found,) = throughput.rates({"meeting": engine}, [{"x": np.zeros(1)}], 3, rounds=1, seconds=0.05)
    assert len(seen) == 3 and found.ratio is None and found.per_second > 0


def test_an_error_in_a_caller_is_raised():
    def broken(feeds):
        raise ValueError("no")
    with pytest.raises(ValueError, match="no"):
        throughput.rates({"broken": broken}, [{}], 2, rounds=1, seconds=0.1)


@pytest.mark.parametrize("name", bench.PEERS)
def test_callers_share_an_engine(name):
    if name != "onnxruntime":
        pytest.importorskip(name)
    proto = small_models.mlp()
    feeds = [small_models.inputs(proto, k) for k in range(2)]
    run = bench.peer(name)(proto, 1, 2)
    ours, theirs = throughput.rates({"a": run, "b": run}, feeds, 2, rounds=1, seconds=0.05)
    assert ours.per_second > 0 and theirs.ratio is not None


def test_the_command(tmp_path):
    onnx.save(small_models.mlp(), tmp_path / "net.onnx")
    result = CliRunner().invoke(app, ["bench", str(tmp_path / "net.onnx"), "--callers", "2", "--seconds", "0.1", "--against",
                                      "onnxruntime", "--json"])
    assert result.exit_code == 0, result.output
    ours, theirs = json.loads(result.stdout)[str(tmp_path / "net.onnx")]
    assert ours["engine"] == "tilewright" and theirs["per_second"] > 0 and ours["ratio"] > 0
