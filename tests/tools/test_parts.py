"""The tools' parts by themselves: other engines, races between engines, differences of results, texts."""
from __future__ import annotations

import sys
import time

import numpy as np
import pytest

import tilewright
from tests import small_models
from tilewright.core.dtype import dtype
from tilewright.core.errors import UserError
from tilewright.runtime.descriptor import TensorSpec
from tilewright.tools import bench
from tilewright.tools.compare import differences
from tilewright.tools.inputs import gather
from tilewright.tools.options import shapes_of
from tilewright.tools.report import size


@pytest.mark.parametrize("name", bench.PEERS)
def test_peers_run_or_say_what_is_wrong(name, monkeypatch):
    proto = small_models.mlp()
    if name == "onnxruntime" or pytest.importorskip(name):
        feeds = small_models.inputs(proto)
        (got,), (want,) = bench.peer(name)(proto, 1, 1)(feeds), small_models.reference(proto, feeds)
        np.testing.assert_allclose(got, want, atol=1e-6)
    proto.graph.node[0].op_type = "Wobble"
    with pytest.raises(UserError) as failed:
        bench.peer(name)(proto, 1, 1)
    assert failed.value.code == "engine-failed"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError) as missing:
        bench.peer(name)(proto, 1, 1)
    assert missing.value.code == "engine-missing" and "pip install" in missing.value.hint


def test_a_race_has_a_winner():
    def slow(feeds):
        time.sleep(0.02)
        return [feeds["x"] * 2]
    found = bench.race({"quick": lambda f: [f["x"] + f["x"]], "slow": slow, "wrong": lambda f: [f["x"] * 3]},
                       [{"x": np.ones(3)}, {"x": np.zeros(3)}], warmup=1, rounds=2, seconds=0)
    by_name = {s.engine: s for s in found}
    assert by_name["slow"].timing.median > 15 and by_name["slow"].ratio < 1
    assert by_name["quick"].error == 0 and by_name["wrong"].error == 0.5
    assert all(s.timing.runs == 4 for s in found)


def test_differences():
    spec = TensorSpec("y", dtype("f32"), (3,))
    want = np.array([1, -2, 0], np.float32)

    def of(got, spec=spec, want=want, tolerance=1e-4):
        return differences([spec], [got], [want], tolerance)[0]
    assert of(want).ok and of(want).ulp == 0
    near = of(np.array([np.nextafter(np.float32(1), np.float32(2)), -2, 0], np.float32))
    assert near.ok and near.ulp == 1
    across = of(np.array([1, -2, -np.float32(1e-45)], np.float32))
    assert across.ulp == 1 and across.absolute == pytest.approx(1e-45, rel=0.5)
    far = of(np.array([1, -3, 0], np.float32))
    assert not far.ok and far.absolute == 1 and far.relative == 0.5
    assert not of(np.array([1, -2, np.nan], np.float32)).ok
    assert not of(want.reshape(3, 1)).ok and not of(want.astype(np.float64)).ok
    integers = TensorSpec("n", dtype("i64"), (2,))
    big = np.array([2**53, 5])
    assert of(big, integers, big).ok
    off = of(big + np.array([1, 0]), integers, big)
    assert not off.ok and off.absolute == 1


def test_gather_fills_what_is_missing_with_random_numbers(tmp_path):
    proto = small_models.model("net (float[2] a, int64[3] b) => (float[2] c, int64[3] d) { c = Relu(a)\n d = Identity(b) }")
    np.save(tmp_path / "b.npy", np.array([7, 8, 9]))
    with tilewright.compile(proto) as made:
        feeds = gather(made, [f"b={tmp_path}/b.npy"], None, False, seed=1)
        assert list(feeds) == ["a", "b"] and feeds["b"].tolist() == [7, 8, 9]
        assert np.array_equal(feeds["a"], gather(made, [], None, False, seed=1)["a"])
        assert not np.array_equal(feeds["a"], gather(made, [], None, False, seed=2)["a"])
        with pytest.raises(UserError, match="input-file"):
            gather(made, [str(tmp_path / "b.npy")], None, False, seed=0)  # of which input?


def test_shapes():
    assert shapes_of(["batch=2", "x=1,3,8,8", "y=[4]", "z=(n,3)", "s=()", "t=5,"]) == {
        "batch": 2, "x": (1, 3, 8, 8), "y": (4,), "z": ("n", 3), "s": (), "t": (5,)}


def test_sizes():
    assert [size(n) for n in (0, 1023, 1024, 1536, 5 << 20, 3 << 40)] == [
        "0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 MiB", "3072.0 GiB"]


def test_images_need_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    proto = small_models.convnet()
    with tilewright.compile(proto) as made, pytest.raises(UserError) as caught:
        gather(made, [], tmp_path / "photo.png", True, 0)
    assert caught.value.code == "extra-missing"
