"""NonMaxSuppression and Unique with everything at run time: sizes are symbols, thresholds are inputs."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto as T
from onnx import helper

import tilewright


def model(node: Any, inputs: dict[str, tuple[int, Any]], outputs: dict[str, int]) -> Any:
    infos = [helper.make_tensor_value_info(n, *v) for n, v in inputs.items()]
    results = [helper.make_tensor_value_info(n, kind, None) for n, kind in outputs.items()]
    graph = helper.make_graph([node], "select", infos, results)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("center", "given"), ((0, 1), (1, 2), (0, 3)))
def test_suppression_as_onnx_runtime_does_it(center: int, given: int) -> None:
    """Boxes on a coarse grid, so that scores and overlaps are equal now and then."""
    names = ["most", "overlap", "threshold"][:given]
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", *names], ["selected"], center_point_box=center)
    shapes = {"boxes": (T.FLOAT, ["batch", "n", 4]), "scores": (T.FLOAT, ["batch", "classes", "n"])}
    kinds = {"most": T.INT64, "overlap": T.FLOAT, "threshold": T.FLOAT}
    m = model(node, {**shapes, **{n: (kinds[n], [1]) for n in names}}, {"selected": T.INT64})
    session = onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(center)
    counts = set()
    with tilewright.compile(m, fallback="error") as made:
        for batch, classes, n, most, overlap, threshold in [
                (1, 1, 1, 5, .5, .2), (2, 3, 20, 4, .5, .3), (1, 5, 57, 100, .3, .1), (3, 1, 9, 2, 0, .8),
                (1, 2, 7, 0, .5, 0), (2, 2, 12, 9, .7, 2), (1, 1, 100, 1 << 40, .9, -1)]:
            feed = {"boxes": rng.integers(0, 9, (batch, n, 4)).astype(np.float32),
                    "scores": rng.integers(0, 8, (batch, classes, n)).astype(np.float32) / 8,
                    "most": np.array([most]), "overlap": np.array([overlap], np.float32),
                    "threshold": np.array([threshold], np.float32)}
            feed = {k: v for k, v in feed.items() if k in (*shapes, *names)}
            (want,) = session.run(None, feed)
            np.testing.assert_array_equal(made.run(feed)[0], want)
            counts.add(len(want))
    assert len(counts) > 3


@pytest.mark.parametrize(("axis", "in_order"), ((None, 0), (None, 1), (1, 1), (0, 0), (-1, 1)))
def test_unique_slices(axis: int | None, in_order: int) -> None:
    attrs = {"sorted": in_order} | ({} if axis is None else {"axis": axis})
    node = helper.make_node("Unique", ["x"], ["y", "first", "inverse", "counts"], **attrs)
    m = model(node, {"x": (T.FLOAT, ["a", 2, "b"])},
              {"y": T.FLOAT, "first": T.INT64, "inverse": T.INT64, "counts": T.INT64})
    rng = np.random.default_rng(0)
    with tilewright.compile(m, fallback="error") as made:
        for a, b in ((4, 6), (1, 1), (40, 1), (3, 30)):
            x = rng.integers(0, 3, (a, 2, b)).astype(np.float32)
            got = made.run({"x": x})
            want = list(np.unique(x, True, True, True, axis=axis))
            if not in_order:
                order = np.argsort(want[1])
                want = [np.take(want[0], order, axis or 0), want[1][order], np.argsort(order)[want[2]], want[3][order]]
            for g, w in zip(got, want, strict=True):
                np.testing.assert_array_equal(g, w.reshape(g.shape))


def test_unique_of_none_and_of_numbers_that_are_none() -> None:
    m = model(helper.make_node("Unique", ["x"], ["y", "", "", "counts"]), {"x": (T.FLOAT, ["n"])},
              {"y": T.FLOAT, "counts": T.INT64})
    with tilewright.compile(m, shapes={"n": "0.."}) as made:
        y, counts = made(np.array([3, np.nan, -0.0, np.nan, 0, -np.inf], np.float32))
        np.testing.assert_array_equal(y, np.array([-np.inf, 0, 3, np.nan], np.float32))
        assert counts.tolist() == [1, 2, 1, 2]
        assert [r.shape for r in made(np.zeros(0, np.float32))] == [(0,), (0,)]
