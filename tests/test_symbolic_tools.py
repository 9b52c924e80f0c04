"""Models of symbolic sizes looked into, measured, verified, compared, and called from C without shapes."""
from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import tilewright
from tilewright.graph import interpret
from tilewright.graph.ir import Graph
from tilewright.tools.bisect import layers


def model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text}')


def chain() -> onnx.ModelProto:
    """What the data decide: which elements are kept; a softmax of them."""
    return model("g (float[batch,n] x, float[free] z) => (y, s) { r = Relu(x) p = NonZero(r) t = Transpose(p) "
                 "k = GatherND(r, t) y = Softmax(k) w = Softmax(r) o = ReduceSum <keepdims = 0> (w) s = Add(z, o) }")


def usual(made: Any) -> dict[str, tuple[int, ...]]:
    return {k: v.shape for k, v in made.random_inputs().items()}


def test_inputs_have_the_usual_or_the_least_sizes() -> None:
    shapes = {"batch": "2..8", "n": "4..~12", "free": "0.."}
    with tilewright.compile(chain(), shapes=shapes) as made:
        assert usual(made) == {"x": (2, 12), "z": (1,)}
        assert made.verify() < 1e-5
        assert made.benchmark(warmup=1, runs=2).runs == 2
        assert made.profile(runs=2)


def test_values_inside_have_their_shapes() -> None:
    with tilewright.compile(chain(), shapes={"n": "1..~16"}) as made:
        rng = np.random.default_rng(1)
        feed = {"x": rng.standard_normal((3, 9)).astype(np.float32), "z": np.ones(4, np.float32)}
        inside = made.intermediates(feed)
        graph = made.graph
        assert isinstance(graph, Graph)
        y, s = interpret.run(graph, feed)
        assert inside["y"].shape == y.shape == (int((feed["x"] > 0).sum()),) and inside["s"].shape == (4,)
        assert (3, 9) in [a.shape for a in inside.values()]
        found = layers(made, feed)
        assert len(found) >= 4 and all(x.ok for x in found)
        np.testing.assert_allclose(inside["s"], s, rtol=1e-5)


def test_values_whose_sizes_are_inputs_have_their_shapes() -> None:
    with tilewright.compile(model("g (float[3,5] x, int64[4] p, int32[2] s) => (y, z) { y = Pad <mode = \"reflect\"> (x, p) "
                                  "t = Cast <to = 7> (s) a = Abs(x) e = Exp(a) z = Reshape(e, t) }")) as made:
        feed = {"x": np.ones((3, 5), np.float32), "p": np.array([0, 1, 0, 2]), "s": np.array([5, 3], np.int32)}
        assert {v.value: v.ok for v in layers(made, feed)}.items() >= {"y": True}.items()
        inside = made.intermediates(feed)
        assert inside["y"].shape == (3, 8) and all(x.ok for x in layers(made, feed))


PROGRAM = """
#include <stdio.h>
#include "net.h"
int main(void) {
  float x[8] = {0}, y[8];
  const void *in[] = {x};
  void *out[] = {y};
  tw_instance *model = net_open();
  printf("%d ", net_run(model, in, out) == TW_ERROR_ARGUMENT);
  printf("%s\\n", net_error());
  net_close(model);
  return 0;
}
"""


@pytest.mark.parametrize("example", (False, True))
def test_a_run_without_shapes_is_refused_in_c(tmp_path: Path, example: bool) -> None:
    with tilewright.compile(model("g (float[n,4] x) => (y) { y = Relu(x) }")) as made:
        made.save(tmp_path / "net.so")
    text = (Path(__file__).parents[1] / "examples" / "c" / "run_model.c").read_text() if example else PROGRAM
    (tmp_path / "main.c").write_text(text)
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", "main.c", "./net.so", "-o", "main"], cwd=tmp_path, check=True)
    ran = subprocess.run(["./main"], cwd=tmp_path, capture_output=True, text=True, check=False, env={})
    if example:
        assert ran.returncode == 1 and ran.stderr.startswith("x: a size is chosen by the run")
    else:
        assert ran.stdout == "1 the model has symbolic sizes: a run needs the shapes of its inputs\n"
