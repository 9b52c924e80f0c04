"""The public face of a model: ways to call it, what it says of itself, measuring, keeping, closing."""
from __future__ import annotations

import threading

import numpy as np
import pytest

import tilewright
from tests import small_models
from tests.small_models import inputs, model, reference
from tilewright.core.config import config
from tilewright.core.errors import UserError
from tilewright.model import Memory, relative_error, timing_of
from tilewright.tools.bench import load as bench_load

TWO = """two (float[2,3] x, int64[3] k) => (float[2,3] sum, int64[3] twice) {
    f = Cast<to = 1>(k)
    sum = Add(x, f)
    twice = Add(k, k)
}"""


@pytest.fixture(autouse=True, scope="module")
def in_this_process():
    with config.override(compile_workers=1):
        yield


@pytest.fixture
def two():
    with tilewright.compile(model(TWO)) as made:
        yield made


X, K = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([10, 20, 30])


def test_ways_to_call(two):
    want = [X + K, K + K]
    for got in (two(X, K), two(X, k=K), two(x=X, k=K), two({"k": K, "x": X}), two.run({"x": X, "k": K})):
        assert isinstance(got, list)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)
    with tilewright.compile(small_models.mlp()) as one:
        feeds = inputs(small_models.mlp())
        assert isinstance(one(feeds["x"]), np.ndarray)
        np.testing.assert_array_equal(one(feeds["x"]), one.run(feeds)[0])


@pytest.mark.parametrize("args, named, code", [
    ((X, K, K), {}, "input-count"), ((X,), {}, "input-missing"), ((X, K), {"k": K}, "input-twice"),
    ((X,), {"z": K}, "input-unknown"), ((X.T, K), {}, "input-shape"), ((X.astype(np.float64), K), {}, "input-dtype"),
    ((np.asfortranarray(X), K), {}, "input-layout"), (("text", K), {}, "input-type")])
def test_calls_that_do_not_fit(two, args, named, code):
    with pytest.raises(UserError) as caught:
        two(*args, **named)
    assert caught.value.code == code


def test_what_it_says_of_itself(two):
    assert [(i.name, str(i)) for i in two.inputs] == [("x", "f32[2, 3]"), ("k", "i64[3]")]
    assert [(o.name, str(o)) for o in two.outputs] == [("sum", "f32[2, 3]"), ("twice", "i64[3]")]
    with tilewright.compile(small_models.convnet()) as made:
        assert isinstance(made.memory, Memory) and made.memory.arena > 0
        weights = sum(t.nbytes for t in map(small_models.numpy_helper.to_array, small_models.convnet().graph.initializer)
                      if t.ndim == 4)
        assert made.memory.weights >= weights and made.memory.packed >= weights


def test_shapes_and_bytes_and_paths(tmp_path):
    text = "net (float[batch,n] x) => (float[batch,n] y) { y = Add(x, x) }"
    proto = model(text)
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    for source in (proto, proto.SerializeToString(), tmp_path / "net.onnx", str(tmp_path / "net.onnx")):
        with tilewright.compile(source, shapes={"batch": 2, "x": (2, 5)}) as made:
            assert made(np.ones((2, 5), np.float32)).sum() == 20
    assert proto == model(text), "the caller's model was changed"
    with tilewright.compile(proto, shapes={"batch": 2}) as made:
        assert made(np.ones((2, 3), np.float32)).shape == (2, 3) and made(np.ones((2, 9), np.float32)).shape == (2, 9)


def test_dlpack_in_and_out_without_copies():
    class Foreign:
        """An array of another library."""

        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **_):
            return self.array.__dlpack__()

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()
    proto = small_models.mlp()
    with tilewright.compile(proto) as made:
        x = inputs(proto)["x"]
        y = made(Foreign(x))
        np.testing.assert_array_equal(y, made(x))
        seen = np.from_dlpack(y)
        assert np.shares_memory(seen, y)
        with pytest.raises(UserError, match="input-dtype"):
            made(Foreign(x.astype(np.float64)))


def test_outputs_are_fresh_and_may_be_given(two):
    first, second = two(X, K), two(X + 1, K)
    assert not np.shares_memory(first[0], second[0])
    given = [np.empty((2, 3), np.float32), np.empty(3, np.int64)]
    results = two.executable.run([X, K], given)
    assert results[0] is given[0]
    np.testing.assert_array_equal(given[0], X + K)


def test_benchmark_and_percentiles(two):
    t = two.benchmark(runs=10, warmup=1)
    assert t.runs == 10 and 0 < t.minimum <= t.median <= t.p90 <= t.p99
    t = timing_of([float(k) for k in range(100, 0, -1)])
    assert (t.minimum, t.median, t.p90, t.p99) == (1, 50.5, 90, 99)


def test_profile_matches_the_launches():
    """In a loop a kernel runs once per turn; its share counts them all."""
    with tilewright.compile(small_models.nested_loops()) as made:
        rows = made.profile(runs=3)
        assert [r.kernel for r in rows] == [u.kernel for u in made.kernels]
        assert [r.label for r in rows] == [u.label for u in made.kernels]
        assert sum(r.share for r in rows) == pytest.approx(1)
    with tilewright.compile(small_models.convnet()) as made:
        conv = max(made.profile(), key=lambda r: r.gflops)
        assert "conv" in conv.label and conv.gflops > 0 and conv.gbytes > 0


def test_threads_can_be_chosen(monkeypatch):
    with tilewright.compile(small_models.mlp(), threads=2) as made:
        assert made.threads == 2
        made.threads = 1
        assert made.threads == 1
    monkeypatch.setenv("TILEWRIGHT_THREADS", "3")
    with tilewright.compile(small_models.mlp()) as made:
        assert made.threads == 3


def test_threads_are_kept_in_the_library(tmp_path):
    tilewright.compile(small_models.mlp(), threads=2).save(tmp_path / "net.so")
    assert tilewright.load(tmp_path / "net.so").threads == 2
    assert tilewright.load(tmp_path / "net.so", threads=1).threads == 1


def test_closing_gives_memory_back(two):
    two(X, K)
    two.close()
    two.close()
    with pytest.raises(UserError, match="model-closed"):
        two(X, K)


def test_closing_waits_for_runs():
    proto = small_models.convnet()
    made = tilewright.compile(proto)
    feeds, stopped = inputs(proto), []

    def work() -> None:
        try:
            while True:
                made.run(feeds)
        except UserError as error:
            stopped.append(error.code)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads:
        t.start()
    made.close()
    for t in threads:
        t.join(10)
    assert stopped == ["model-closed"] * 3


def test_verify_finds_a_wrong_result(monkeypatch):
    made = tilewright.compile(small_models.mlp(), verify=True)
    monkeypatch.setattr("tilewright.model.interpret", lambda graph, feeds: [made(*feeds) + 1])
    with pytest.raises(UserError, match="verify-failed"):
        made.verify()
    with pytest.raises(UserError, match="verify-failed"):
        tilewright.compile(small_models.mlp(), verify=True)


def test_relative_error():
    one = np.array([1, 2, np.inf], np.float32)
    assert relative_error(one, one) == 0
    assert relative_error(np.array([1, 3, np.inf]), one) == 0.5
    assert relative_error(np.array([1, 2, np.nan]), one) == float("inf")
    assert relative_error(np.array([1, np.nan, np.inf]), one) == float("inf")
    assert relative_error(one[:2], one) == float("inf")
    nan = np.array([np.nan])
    assert relative_error(nan, nan) == 0


def test_saved_model_knows_less(tmp_path):
    tilewright.compile(small_models.mlp()).save(tmp_path / "net.so")
    loaded = tilewright.load(tmp_path / "net.so")
    with pytest.raises(UserError, match="verify-no-graph"):
        loaded.verify()
    rows = loaded.profile(runs=2)
    assert rows and all(r.microseconds > 0 for r in rows)


def test_bench_load():
    """What benchmark scripts call: named feeds in any order, a list of outputs."""
    proto = model(TWO)
    run = bench_load(proto, 2)
    for got, want in zip(run({"k": K, "x": X}), reference(proto, {"x": X, "k": K}), strict=True):
        np.testing.assert_array_equal(got, want)
