"""Indices that are data are checked before they are used: in this process, in a saved library, and while compiling."""
from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import tilewright
from tests.frontend.onnx.onnx_check import I64, value
from tests.frontend.onnx.onnx_check import model as onnx_model
from tilewright.core.errors import UserError
from tilewright.graph import interpret
from tilewright.graph.ir import Graph

SPAN = {"n": "0.."}


def model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text}')


def x(*shape: int) -> Any:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


CASES: dict[str, tuple[str, Any, list[Any], list[tuple[Any, str]]]] = {
    "gather": ("g (float[2,5] x, int64[n] i) => (y) { y = Gather <axis = 1> (x, i) }", x(2, 5), [[0, -5, 4], [], [2]],
               [([1, 5], "from 1 to 5, for an axis of 5"), ([-6, 2, 0], "from -6 to 2, for an axis of 5"),
                ([1 << 62], "an axis of 5")]),
    "gather of symbolic size": ("g (float[m] x, int32[n] i) => (y) { y = Gather(x, i) }", x(7), [[0, -7, 6]],
                                [([7, 3], "from 3 to 7, for an axis of 7")]),
    "gather_elements": ("g (float[3,2] x, int64[n,2] i) => (y) { y = GatherElements(x, i) }", x(3, 2), [[[2, -3]]],
                        [([[0, 1], [3, 0]], "from 0 to 3, for an axis of 3")]),
    "gather_nd": ("g (float[3,2] x, int64[n,2] i) => (y) { y = GatherND(x, i) }", x(3, 2), [[[2, -1], [-3, 1]]],
                  [([[2, 0], [0, 2]], "from 0 to 2, for an axis of 2"), ([[3, 0]], "from 3 to 3, for an axis of 3")]),
    "gather_nd of batches": ("g (float[2,3] x, int64[2,n,1] i) => (y) { y = GatherND <batch_dims = 1> (x, i) }", x(2, 3),
                             [[[[2]], [[-3]]]], [([[[0]], [[3]]], "from 0 to 3, for an axis of 3")]),
    "scatter_elements": ("g (float[4] x, int64[n] i) => (y) { u = Cast <to = 1> (i) y = ScatterElements(x, i, u) }", x(4),
                         [[3, -3]], [([-5], "from -5 to -5, for an axis of 4")]),
    "scatter_nd": ("g (float[4] x, int64[n,1] i) => (y) { a = Constant <value_ints = [1]> () s = Squeeze(i, a) "
                   "u = Cast <to = 1> (s) y = ScatterND(x, i, u) }", x(4), [[[3], [0]]],
                   [([[4]], "from 4 to 4, for an axis of 4")])}


@pytest.mark.parametrize("name", CASES)
def test_an_index_out_of_bounds_fails_the_run(name: str) -> None:
    text, data, good, bad = CASES[name]
    with tilewright.compile(model(text), shapes=SPAN, fallback="error") as made:
        kind = made.inputs[1].dtype.numpy()
        graph = made.graph
        assert isinstance(graph, Graph)
        for at in [*good, good[0]]:
            feed = {"x": data, "i": np.array(at, kind)}
            np.testing.assert_array_equal(made.run(feed)[0], interpret.run(graph, feed)[0])
        for at, said in bad:
            for run in (made.run, lambda feed: interpret.run(graph, feed)):
                with pytest.raises(UserError, match="run-index") as error:
                    run({"x": data, "i": np.array(at, kind)})
                assert said in str(error.value)
            assert "'y'" in str(error.value) or "Gather" in str(error.value) or "Scatter" in str(error.value)
        feed = {"x": data, "i": np.array(good[0], kind)}
        np.testing.assert_array_equal(made.run(feed)[0], interpret.run(graph, feed)[0])  # a failure leaves nothing behind


def test_indices_that_are_known_are_checked_while_compiling() -> None:
    def chosen(*at: int) -> onnx.ModelProto:
        m = model("g (float[2,5] x) => (y) { y = GatherElements <axis = 1> (x, i) }")
        m.graph.initializer.append(onnx.numpy_helper.from_array(np.array([at]), "i"))
        return m
    with pytest.raises(UserError, match="index-out-of-range") as error:
        tilewright.compile(chosen(1, 5))
    assert "from [1] to [5], sizes [5]" in str(error.value)
    with tilewright.compile(chosen(1, -5)) as made:
        assert len(made.kernels) == 1  # nothing is checked when it runs


def test_known_indices_into_a_symbolic_axis_are_checked_when_it_runs() -> None:
    m = model("g (float[m,2] x) => (y) { y = GatherND(x, i) }")
    m.graph.initializer.append(onnx.numpy_helper.from_array(np.array([[2], [-1]]), "i"))
    with tilewright.compile(m) as made:
        np.testing.assert_array_equal(made.run({"x": x(4, 2)})[0], x(4, 2)[[2, -1]])
        with pytest.raises(UserError, match="run-index"):
            made.run({"x": x(2, 2)})


def test_indices_of_an_axis_of_at_most_one_element() -> None:
    m = model("g (float[3] x, int64[n,1] i) => (y) { y = GatherND(x, i) }")
    with tilewright.compile(m, shapes={"n": "0..1"}) as made:
        for at in ([[2]], np.zeros((0, 1))):
            np.testing.assert_array_equal(made.run({"x": x(3), "i": np.array(at, np.int64)})[0], np.ravel(at))


OTHERS: dict[str, tuple[str, dict[str, Any], str, list[Any], list[tuple[Any, str]]]] = {
    "RoiAlign": ("g (float[2,1,4,4] x, float[1,4] r, int64[1] i) => (y) { "
                 "y = RoiAlign <output_height = 2, output_width = 2, sampling_ratio = 2> (x, r, i) }",
                 {"x": x(2, 1, 4, 4), "r": np.array([[0, 0, 3, 3]], np.float32)}, "i", [[0], [1]],
                 [([2], "from 2 to 2, for an axis of 2"), ([-1], "from -1 to -1")]),
    "MaxRoiPool": ("g (float[2,1,4,4] x, float[1,5] r) => (y) { y = MaxRoiPool <pooled_shape = [2, 2]> (x, r) }",
                   {"x": x(2, 1, 4, 4)}, "r", [[[1, 0, 0, 3, 3]]], [([[2, 0, 0, 3, 3]], "from 2 to 2, for an axis of 2")]),
    "MaxUnpool": ("g (float[1,1,2,2] x, int64[1,1,2,2] i) => (y) { y = MaxUnpool <kernel_shape = [2, 2], strides = [2, 2]> "
                  "(x, i) }", {"x": x(1, 1, 2, 2)}, "i", [[[[[0, 3], [8, 15]]]]],
                  [([[[[0, 3], [8, 16]]]], "from 0 to 16, for an axis of 16"), ([[[[0, -3], [8, 1]]]], "from -3 to 8")]),
    "ReverseSequence": ("g (float[4,2] x, int64[2] i) => (y) { y = ReverseSequence (x, i) }", {"x": x(4, 2)}, "i",
                        [[4, 1]], [([5, 1], "from 0 to 4, for an axis of 4")])}


@pytest.mark.parametrize("name", OTHERS)
def test_operators_that_read_by_index_say_the_same(name: str) -> None:
    text, feed, which, good, bad = OTHERS[name]
    with tilewright.compile(model(text), fallback="error") as made:
        graph, kind = made.graph, next(i.dtype.numpy() for i in made.inputs if i.name == which)
        assert isinstance(graph, Graph)
        for value in good:
            given = {**feed, which: np.array(value, kind)}
            np.testing.assert_array_equal(made.run(given)[0], interpret.run(graph, given)[0])
        for value, said in bad:
            for run in (made.run, lambda given: interpret.run(graph, given)):
                with pytest.raises(UserError, match="run-index") as error:
                    run({**feed, which: np.array(value, kind)})
                assert said in str(error.value)


def test_places_of_rotary_positions_and_of_a_cache() -> None:
    rotary = helper.make_node("RotaryEmbedding", ["x", "i", "t", "t"], ["y"], domain="com.microsoft")
    feed = {"x": x(1, 3, 8), "t": x(5, 4)}
    m = onnx_model([rotary], [value("x", [1, 3, 8]), value("i", [1], I64), value("t", [5, 4])], ["y"],
                   imports=[helper.make_opsetid("com.microsoft", 1)])
    with tilewright.compile(m) as made:
        made.run({**feed, "i": np.array([2])})
        for wrong, said in ((3, "from 3 to 5, for an axis of 5"), (-1, "from -1 to 1")):
            with pytest.raises(UserError, match=said):
                made.run({**feed, "i": np.array([wrong])})
    cache = onnx_model([helper.make_node("TensorScatter", ["x", "n", "i"], ["y"])],
                       [value("x", [2, 1, 4, 2]), value("n", [2, 1, 3, 2]), value("i", [2], I64)], ["y"], opset=24)
    feed = {"x": x(2, 1, 4, 2), "n": -x(2, 1, 3, 2)}
    with tilewright.compile(cache) as made:
        y, = made.run({**feed, "i": np.array([0, 1])})
        np.testing.assert_array_equal(y[:, 0, :, 0], [[0, -2, -4, 6], [8, -6, -8, -10]])
        with pytest.raises(UserError, match="from 2 to 4, for an axis of 4"):
            made.run({**feed, "i": np.array([0, 2])})


PROGRAM = """
#include <stdio.h>
#include "words.h"
int main(void) {
  float x[10], y[6];
  for (int k = 0; k < 10; ++k) x[k] = (float)k;
  const int64_t good[] = {0, 4, -5}, bad[] = {0, 17, 3};
  tw_instance *model = words_open();
  const void *in[] = {x, good}, *wrong[] = {x, bad};
  void *out[] = {y};
  if (words_run(model, in, out)) return 1;
  printf("%g %g %g\\n", y[0], y[1], y[2]);
  const int status = words_run(model, wrong, out);
  printf("%d %s\\n", status == TW_ERROR_INDEX, words_error());
  words_close(model);
  return 0;
}
"""


def test_a_saved_library_says_the_same(tmp_path: Path) -> None:
    m = model("g (float[2,5] x, int64[3] i) => (float[2,3] y) { y = Gather <axis = 1> (x, i) }")
    with tilewright.compile(m) as made:
        made.save(tmp_path / "words.so")
    (tmp_path / "main.c").write_text(PROGRAM)
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", "main.c", "./words.so", "-o", "main"], cwd=tmp_path, check=True)
    ran = subprocess.run(["./main"], cwd=tmp_path, capture_output=True, text=True, check=True, env={})
    first, second = ran.stdout.splitlines()
    assert first == "0 4 0"
    assert second.startswith("1 ") and "indices from 0 to 17, for an axis of 5 elements" in second
