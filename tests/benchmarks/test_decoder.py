"""The benchmark of language models: what it feeds them."""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import decoder


def test_tokens_stand_behind_the_cache() -> None:
    names = {"input_ids": ["b", "s"], "attention_mask": ["b", "t"], "position_ids": ["b", "s"]}
    graph = helper.make_graph([], "g", [
        *[helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in names.items()],
        helper.make_tensor_value_info("past_key_values.0.key", TensorProto.FLOAT16, ["b", 4, "p", 8])], [])
    fed = decoder.inputs(graph, 2, 3, 5)
    assert {name: a.shape for name, a in fed.items()} == {
        "input_ids": (2, 3), "attention_mask": (2, 8), "position_ids": (2, 3), "past_key_values.0.key": (2, 4, 5, 8)}
    assert fed["position_ids"].tolist() == [[5, 6, 7]] * 2 and fed["attention_mask"].all()
    assert fed["past_key_values.0.key"].dtype == np.float16
