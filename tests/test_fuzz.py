"""Damaged models end in a UserError or a result: 500 always, 20,000 in the long run. A failure names its seed;
`fuzz.mutated` makes the model again."""
from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests import fuzz, small_models
from tests.frontend.onnx.onnx_check import BOOL, I64, model, value
from tests.random_models import random_model
from tilewright.core.errors import UserError

N = helper.make_node


def loops() -> onnx.ModelProto:
    body = helper.make_graph([N("SequenceInsert", ["s", "x"], ["t"]), N("Identity", ["go"], ["on"])], "b",
                             [onnx.ValueInfoProto(name=n) for n in ("i", "go", "s")],
                             [onnx.ValueInfoProto(name=n) for n in ("on", "t")])
    scan = helper.make_graph([N("Add", ["a", "b"], ["c"]), N("Neg", ["c"], ["d"])], "sb",
                             [value("a", [3]), value("b", [3])], [value("c", [3]), value("d", [3])])
    nodes = [N("SequenceEmpty", [], ["e"]), N("Loop", ["n", "", "e"], ["s"], body=body),
             N("ConcatFromSequence", ["s"], ["y"], axis=0), N("Scan", ["z", "y"], ["w", "v"], body=scan, num_scan_inputs=1),
             N("OptionalHasElement", ["s"], ["has"])]
    return model(nodes, [value("x", ["k", 3])], ["v", "w", "has"], weights={"n": np.int64(3), "z": np.zeros(3, np.float32)},
                 opset=18)


def words() -> onnx.ModelProto:
    nodes = [N("StringConcat", ["x", "x"], ["a"]), N("StringSplit", ["a"], ["b", "c"]), N("Equal", ["x", "a"], ["d"]),
             N("Where", ["d", "x", "a"], ["f"]), N("Cast", ["c"], ["g"], to=TensorProto.STRING)]
    return model(nodes, [value("x", [2], TensorProto.STRING)], ["b", "f", "g"], opset=20)


def integers() -> onnx.ModelProto:
    nodes = [N("TopK", ["x", "k"], ["v", "i"]), N("Gather", ["x", "i"], ["g"], axis=1), N("If", ["f"], ["h"], **{
        f"{name}_branch": helper.make_graph([N(op, ["v"], ["o"])], name, [], [value("o", None)])
        for name, op in (("then", "Neg"), ("else", "Abs"))}), N("NonZero", ["g"], ["z"]), N("Shape", ["g"], ["s"]),
        N("Range", ["zero", "five", "one"], ["r"]), N("OneHot", ["i", "five1", "two"], ["o"]),
        N("Resize", ["im", "", "scales"], ["big"], mode="linear"), N("QuantizeLinear", ["x", "q", "p"], ["u"])]
    weights = {"k": np.array([2]), "zero": np.int64(0), "five": np.int64(5), "one": np.int64(1), "five1": np.array([5]),
               "two": np.array([0.0, 1.0]), "scales": np.array([1, 1, 2, 2], np.float32), "q": np.float32(0.1),
               "p": np.uint8(3)}
    return model(nodes, [value("x", [3, 4]), value("f", [], BOOL), value("im", [1, 2, 3, 3])],
                 ["h", "z", "s", "r", "o", "big", "u"], weights=weights)


def bases() -> list[bytes]:
    made = [loops(), words(), integers(), small_models.mlp(), *[random_model(k) for k in range(20)]]
    return [m.SerializeToString() for m in made]


def check(codes: dict[str, int], failures: list[fuzz.Failure], count: int) -> None:
    assert not failures, "\n".join([f"seed {f.seed}: {f.what}" for f in failures])
    assert sum(codes.values()) == count
    assert {"", "onnx-malformed", "onnx-invalid-graph", "onnx-unsupported-op", "onnx-initializer-size"} <= set(codes), codes


def test_damaged_models() -> None:
    """Most end while they are read; some of the others are compiled and run."""
    given = bases()
    check(*fuzz.campaign(given, range(460), run=False), 460)
    codes, failures = fuzz.campaign(given, range(460, 500))
    assert not failures, "\n".join([f"seed {f.seed}: {f.what}" for f in failures])
    assert sum(codes.values()) == 40


@pytest.mark.long
def test_many_damaged_models() -> None:
    seed = int(os.environ.get("TILEWRIGHT_SEED", time.time_ns() % 10**9))
    print(f"TILEWRIGHT_SEED={seed}")
    check(*fuzz.campaign(bases(), range(seed, seed + 20_000)), 20_000)


def test_the_campaign_sees_crashes_hangs_and_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    monkeypatch.setattr(fuzz, "PATIENCE", 2)

    def attempt(data: bytes, run: bool = True) -> str:
        if not data:
            os.kill(os.getpid(), signal.SIGKILL)
        if len(data) == 1:
            time.sleep(30)
        if len(data) == 2:
            raise IndexError("a fault")
        if len(data) == 3:
            np.zeros(fuzz.BYTES)[:] = 1
        return ""
    monkeypatch.setattr(fuzz, "attempt", attempt)
    monkeypatch.setattr(fuzz, "mutated", lambda seed, _: b"x" * seed)
    codes, failures = fuzz.campaign([], [9, 0, 1, 2, 3, 8])
    assert codes == {"": 2} and [f.seed for f in failures] == [0, 1, 2, 3]
    for f, what in zip(failures, ["exit code -9", "hung", "a fault", "Unable to allocate"], strict=True):
        assert what in f.what


def test_inputs_that_contradict_the_model_are_named() -> None:
    """Before any kernel runs: shape, symbol, dtype, structure."""
    import tilewright
    m = model([N("Add", ["x", "z"], ["y"]), N("SequenceLength", ["s"], ["n"])],
              [value("x", ["batch", 4]), value("z", ["batch", 1]), helper.make_tensor_sequence_value_info("s", I64, None)],
              ["y", "n"])
    made = tilewright.compile(m, shapes={"batch": "1..8", "s": [(2,)]})
    good: dict[str, Any] = {"x": np.zeros((2, 4), np.float32), "z": np.zeros((2, 1), np.float32),
                            "s": [np.zeros(2, np.int64)]}
    assert made.run(good)[0].shape == (2, 4)
    for name, wrong in {"x": np.zeros((2, 5), np.float32), "z": np.zeros((3, 1), np.float32), "s": [np.zeros(2)]}.items():
        with pytest.raises(UserError) as e:
            made.run({**good, name: wrong})
        assert name in f"{e.value.where} {e.value.message}"
    with pytest.raises(UserError) as e:
        made.run({**good, "x": np.zeros((9, 4), np.float32), "z": np.zeros((9, 1), np.float32)})
    assert "batch" in str(e.value)
