"""A detector with a While loop, a recurrent Scan and a NonMaxSuppression as one library, called from C."""
from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import tilewright

STEPS, FEATURES, HIDDEN, BOXES = 7, 5, 6, 24
F32, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def value(name: str, kind: int, shape: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def weight(name: str, a: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(a), name)


def detector() -> onnx.ModelProto:
    """signal [steps, features], boxes [1, boxes, 4] → selected [n, 3], turns of the loop, the last state."""
    rng = np.random.default_rng(4)
    node = helper.make_node
    # Scan: h ← tanh(x W + h U); the states of all steps are stacked
    step = helper.make_graph(
        [node("MatMul", ["x_t", "w"], ["xw"]), node("MatMul", ["h_in", "u"], ["hu"]), node("Add", ["xw", "hu"], ["sum"]),
         node("Tanh", ["sum"], ["h_out"]), node("Identity", ["h_out"], ["row"])], "step",
        [value("h_in", F32, [HIDDEN]), value("x_t", F32, [FEATURES])],
        [value("h_out", F32, [HIDDEN]), value("row", F32, [HIDDEN])])
    # While: halve the last state until its largest element is small
    halve = helper.make_graph(
        [node("Mul", ["v_in", "half"], ["v_out"]), node("Abs", ["v_out"], ["size"]),
         node("ReduceMax", ["size"], ["most"], keepdims=0), node("Greater", ["most", "small"], ["go_on"]),
         node("Add", ["count_in", "one"], ["count_out"])], "halve",
        [value("turn", I64, []), value("go", BOOL, []), value("v_in", F32, [HIDDEN]), value("count_in", I64, [])],
        [value("go_on", BOOL, []), value("v_out", F32, [HIDDEN]), value("count_out", I64, [])])
    nodes = [node("Scan", ["h0", "signal"], ["last", "states"], num_scan_inputs=1, body=step),
             node("Loop", ["", "yes", "last", "zero"], ["tiny", "turns"], body=halve),
             node("Mul", ["tiny", "scale"], ["bias"]),
             node("Add", ["states", "bias"], ["features"]),
             node("ReduceSum", ["features", "all_axes"], ["shift"], keepdims=0),
             node("Add", ["base_scores", "shift"], ["scores"]),
             node("NonMaxSuppression", ["boxes", "scores", "most_boxes", "overlap", "threshold"], ["selected"])]
    weights = [weight("w", rng.standard_normal((FEATURES, HIDDEN)).astype(np.float32)),
               weight("u", rng.standard_normal((HIDDEN, HIDDEN)).astype(np.float32) / 3),
               weight("h0", np.zeros(HIDDEN, np.float32)), weight("half", np.float32(0.5)),
               weight("small", np.float32(0.01)),
               weight("one", np.int64(1)), weight("zero", np.int64(0)), weight("yes", np.array(True)),
               weight("scale", np.float32(3)), weight("all_axes", np.array([0, 1])),
               weight("base_scores", rng.uniform(0, 1, (1, 2, BOXES)).astype(np.float32)),
               weight("most_boxes", np.array([6])), weight("overlap", np.array([0.4], np.float32)),
               weight("threshold", np.array([0.3], np.float32))]
    inputs = [value("signal", F32, [STEPS, FEATURES]), value("boxes", F32, [1, BOXES, 4])]
    outputs = [value("selected", I64, ["n", 3]), value("turns", I64, []), value("last", F32, [HIDDEN])]
    graph = helper.make_graph(nodes, "detector", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def feeds(seed: int) -> dict[str, Any]:
    """The signals get weaker and weaker: the loop turns less often, the scores move less."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 1, (1, BOXES, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.1, 0.5, (1, BOXES, 2))], 2)
    signal = rng.standard_normal((STEPS, FEATURES)) / 3 ** seed
    return {"signal": signal.astype(np.float32), "boxes": boxes.astype(np.float32)}


PROGRAM = """
#include <inttypes.h>
#include <stdio.h>
#include "detector.h"
int main(int argc, char **argv) {
  static float signal[SIGNAL], boxes[BOXES], last[HIDDEN];
  int64_t turns;
  tw_instance *model = detector_open();
  if (model == NULL) { fprintf(stderr, "%s\\n", detector_error()); return 1; }
  for (int k = 1; k < argc; ++k) {
    FILE *file = fopen(argv[k], "rb");
    if (fread(signal, sizeof signal, 1, file) != 1 || fread(boxes, sizeof boxes, 1, file) != 1) return 2;
    fclose(file);
    const int64_t signal_shape[] = {STEPS, FEATURES}, boxes_shape[] = {1, COUNT, 4};
    const void *in[] = {signal, boxes};
    const int64_t *shapes[] = {signal_shape, boxes_shape};
    void *out[] = {NULL, &turns, last};
    tw_result results[3];
    if (detector_run_shapes(model, in, shapes, out, results)) { fprintf(stderr, "%s\\n", detector_error()); return 3; }
    const int64_t *selected = results[0].data;
    printf("%" PRId64 " %.6f", turns, last[0]);
    for (int64_t i = 0; i < results[0].shape[0] * results[0].shape[1]; ++i) printf(" %" PRId64, selected[i]);
    printf("\\n");
    detector_release(results[0].data);
  }
  detector_close(model);
  return 0;
}
"""
SIZES = {"STEPS": STEPS, "FEATURES": FEATURES, "SIGNAL": STEPS * FEATURES, "COUNT": BOXES, "BOXES": BOXES * 4,
         "HIDDEN": HIDDEN}


def test_one_library_called_from_c(tmp_path: Path) -> None:
    proto = detector()
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    with tilewright.compile(proto, fallback="error") as made:
        made.save(tmp_path / "detector.so")
    (tmp_path / "main.c").write_text(PROGRAM)
    sizes = [f"-D{name}={n}" for name, n in SIZES.items()]
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", *sizes, "main.c", "./detector.so", "-o", "main"], cwd=tmp_path,
                   check=True)
    wanted, files = [], []
    for seed in range(6):
        given = feeds(seed)
        files.append(f"in{seed}")
        (tmp_path / files[-1]).write_bytes(given["signal"].tobytes() + given["boxes"].tobytes())
        wanted.append(session.run(None, given))
    ran = subprocess.run(["./main", *files], cwd=tmp_path, capture_output=True, text=True, check=True, env={})
    counts = set()
    for line, (selected, turns, last) in zip(ran.stdout.splitlines(), wanted, strict=True):
        words = line.split()
        assert int(words[0]) == turns
        np.testing.assert_allclose(float(words[1]), last[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(np.array(words[2:], np.int64).reshape(-1, 3), selected)
        counts.add(len(selected))
    assert len(counts) > 1 and len({int(line.split()[0]) for line in ran.stdout.splitlines()}) > 1
