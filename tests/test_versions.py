"""Specialised versions of a model for all sizes: which one runs, what they share, what is refused."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import tilewright
from tests.test_sizes import T, block, check, ints, model, parsed, x
from tilewright.core.errors import UserError
from tilewright.model import Model

N = onnx.helper.make_node


def launched(made: Model, feed: dict[str, Any]) -> set[str]:
    return {k.kernel for k in made.profile(feed, runs=1)}


def feed(batch: int, seq: int) -> dict[str, Any]:
    return {"x": x(batch, seq, 16), "z": x(batch, seq, 32)}


def test_the_sizes_of_a_run_choose_the_first_version_that_fits(tmp_path: Path) -> None:
    with tilewright.compile(block(), shapes={"batch": "1..8", "seq": "1..~32"},
                            versions=[{"batch": 1, "seq": 32}, {"batch": 1}]) as made:
        assert [s.shape for s in made.outputs] == [(-1, -1, 32)]
        check(made, [feed(*s) for s in [(1, 1), (2, 3), (1, 32), (8, 100), (1, 33), (1, 32)]])
        kernels = [launched(made, feed(*s)) for s in [(1, 32), (1, 7), (2, 32)]]
        assert all(kernels) and not kernels[0] & kernels[1] and not kernels[0] & kernels[2]
        assert made.verify() < 1e-4
        made.save(tmp_path / "net.so")
        feeds = [feed(*s) for s in [(1, 32), (1, 7), (2, 32)]]
        want = [made.run(f) for f in feeds]
    with tilewright.load(tmp_path / "net.so") as loaded:
        for f, (y,) in zip(feeds, want, strict=True):
            np.testing.assert_array_equal(loaded.run(f)[0], y)
        with pytest.raises(UserError, match="input-shape"):
            loaded.run(feed(9, 1))


def test_versions_share_weights() -> None:
    shapes = {"batch": "1..8~4", "seq": "1..~32"}
    with tilewright.compile(block(), shapes=shapes) as one, \
            tilewright.compile(block(), shapes=shapes, versions=[{"batch": 4, "seq": 32}]) as two:
        assert two.memory.packed == one.memory.packed


def test_a_version_of_images_and_outputs_of_fixed_size() -> None:
    nodes = [N("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]), N("Relu", ["a"], ["b"]),
             N("Conv", ["b", "v"], ["c"], pads=[1, 1, 1, 1]),
             N("ReduceMean", ["c", "axes"], ["m"], keepdims=0)]
    m = model(nodes, {"x": ["n", 3, "h", "h"]}, "c m", {"w": x(16, 3, 3, 3), "v": x(16, 16, 3, 3), "axes": ints(0, 2, 3)})
    with tilewright.compile(m, versions=[{"n": 1, "h": 24}]) as made:
        assert [s.shape for s in made.outputs] == [(-1, 16, -1, -1), (16,)]
        check(made, [{"x": x(n, 3, h, h)} for n, h in [(1, 24), (2, 24), (1, 9)]])


def test_a_version_with_control_flow_and_sizes_that_are_data() -> None:
    m = parsed("""loop (float[n, 3] x) => (float[n, 3] y, int64[k, m] z) {
        count = Constant <value = int64 {3}> ()
        y = Loop <body = step (int64 i, bool go, float[n, 3] a) => (bool on, float[n, 3] b) {
            on = Identity(go)
            b = Add(a, x)
        }> (count, , x)
        big = Greater(y, x)
        z = NonZero(big)
    }""")
    with tilewright.compile(m, versions=[{"n": 4}]) as made:
        check(made, [{"x": x(n, 3)} for n in (4, 5, 4, 1)])


def test_names_that_shapes_gave() -> None:
    m = model([N("Relu", ["x"], ["y"])], {"x": (T.FLOAT, ["a", "b"])}, "y")
    with tilewright.compile(m, shapes={"x": ("rows:1..8", 16)}, versions=[{"rows": 2}]) as made:
        check(made, [{"x": x(n, 16)} for n in (2, 3)])


@pytest.mark.parametrize("version, text", [
    ({"bach": 1}, "no symbol 'bach'"), ({"batch": 9}, "1..8"), ({"batch": "1..4"}, "1..8"), ({}, "not {}")])
def test_refused(version: Any, text: str) -> None:
    with pytest.raises(UserError, match="version-invalid") as error:
        tilewright.compile(block(), shapes={"batch": "1..8"}, versions=[version])
    assert text in str(error.value)
