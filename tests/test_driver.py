"""The whole way: ONNX models compiled and run, against ONNX Runtime; threads, caches, targets, saved libraries."""
from __future__ import annotations

import os
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

import tilewright
from tests import small_models
from tests.small_models import inputs, model, reference, weight
from tilewright import driver
from tilewright.core.config import config
from tilewright.core.errors import InternalError, UserError
from tilewright.graph.builder import GraphBuilder
from tilewright.graph.ir import tensor_type
from tilewright.model import relative_error
from tilewright.target import host
from tilewright.target.presets import PRESETS, get_target

EXAMPLE = Path(__file__).parents[1] / "examples" / "c" / "run_model.c"


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with config.override(cache_dir=tmp_path_factory.mktemp("cache"), compile_workers=1):
        yield


def same_bits(a: list, b: list) -> bool:
    return all(x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def check(compiled: tilewright.Model, proto, seeds=(0, 1, 2)) -> None:
    for seed in seeds:
        feeds = inputs(proto, seed)
        for spec, got, want in zip(compiled.outputs, compiled.run(feeds), reference(proto, feeds), strict=True):
            assert got.shape == np.shape(want) and got.dtype == np.asarray(want).dtype
            assert relative_error(got, np.asarray(want)) <= (1e-5 if spec.dtype.is_float else 0), spec.name


@pytest.mark.parametrize("name", small_models.ALL)
def test_models_against_onnxruntime(name):
    """In poison mode too, where reading what nothing wrote gives NaN; threads change no bit."""
    proto = small_models.ALL[name]()
    with tilewright.compile(proto, threads=1) as compiled:
        compiled.executable.set_poison(True)
        check(compiled, proto)
        feeds = inputs(proto, 7)
        one = compiled.run(feeds)
        compiled.threads = 2
        assert same_bits(one, compiled.run(feeds))
        assert same_bits(one, compiled.run(feeds))
        assert compiled.verify() <= 1e-5


@pytest.mark.parametrize("name", [n for n in PRESETS if PRESETS[n].is_x86])
@pytest.mark.parametrize("which", ("mlp", "convnet", "attention", "swaps"))
def test_levels_of_x86(name, which):
    if not set(PRESETS[name].features) <= set(host.native().features):
        pytest.skip("this CPU has not these features")
    proto = small_models.ALL[which]()
    check(tilewright.compile(proto, target=name), proto)


@pytest.mark.parametrize("which", ("convnet", "attention"))
def test_strict_numerics(which):
    proto = small_models.ALL[which]()
    check(tilewright.compile(proto, numerics="strict"), proto)


def test_threads_call_one_model_at_once():
    proto = small_models.convnet()
    with tilewright.compile(proto, threads=2) as compiled:
        feeds = [inputs(proto, seed) for seed in range(4)]
        want = [compiled.run(f) for f in feeds]
        wrong: list[int] = []

        def work(k: int) -> None:
            for _ in range(50):
                if not same_bits(compiled.run(feeds[k]), want[k]):
                    wrong.append(k)
        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not wrong


# ---- the cache -------------------------------------------------------------------------------------------------------
def test_second_compile_compiles_no_kernel(tmp_path, monkeypatch):
    proto = small_models.convnet()
    with config.override(cache_dir=tmp_path / "cache"):
        first = tilewright.compile(proto)
        assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700

        def refuse(*_):
            raise AssertionError("a kernel was scheduled")
        monkeypatch.setattr("tilewright.kernels.schedule_kernel", refuse)
        second = tilewright.compile(proto)
    feeds = inputs(proto)
    assert same_bits(first.run(feeds), second.run(feeds))


def test_damaged_cache_entries_are_compiled_again(tmp_path):
    proto = small_models.mlp()
    with config.override(cache_dir=tmp_path):
        tilewright.compile(proto)
        for entry in tmp_path.glob("??/*"):
            entry.write_bytes(entry.read_bytes()[:-9])
        check(tilewright.compile(proto), proto)


def test_cache_that_cannot_be_used_costs_only_speed(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with config.override(cache_dir=blocked / "cache"), pytest.warns(RuntimeWarning, match="without the cache"):
        proto = small_models.mlp()
        check(tilewright.compile(proto), proto, seeds=(0,))


# ---- saving ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ("convnet", "while_loop", "nested_loops", "ends", "integers"))
def test_saved_library_gives_the_same_bits(name, tmp_path):
    proto = small_models.ALL[name]()
    compiled = tilewright.compile(proto)
    compiled.save(tmp_path / "net.so")
    loaded = tilewright.load(tmp_path / "net.so")
    assert loaded.inputs == compiled.inputs and loaded.outputs == compiled.outputs
    for seed in range(3):
        assert same_bits(loaded.run(inputs(proto, seed)), compiled.run(inputs(proto, seed)))
    with pytest.raises(UserError, match="save-loaded"):
        loaded.save(tmp_path / "again.so")


def test_saved_loop_runs_in_c_without_python(tmp_path):
    """The example program feeds ones and knows f32 alone: a loop that squares until the sum passes a bound."""
    proto = model("""looping (float[2,2] x) => (float[2,2] y, float turns) {
        start = Constant<value_float = 0.0>()
        go = Cast<to = 9>(many)
        y, turns = Loop (many, go, x, start) <
            body = turn (int64 i, bool c, float[2,2] s, float n) => (bool more, float[2,2] t, float m) {
                t = MatMul(s, w)
                m = Add(n, one)
                total = ReduceSum<keepdims = 0>(t)
                more = Less(total, limit)
            }
        >
    }""", many=np.int64(50), w=np.array([[1, 1], [0, 1]], np.float32), one=np.float32(1), limit=np.float32(20))
    (y, turns) = reference(proto, {"x": np.ones((2, 2), np.float32)})
    assert 3 < turns < 50
    tilewright.compile(proto).save(tmp_path / "net.so")
    shutil.copy(EXAMPLE, tmp_path)
    subprocess.run(["cc", "-Wall", "-Werror", "run_model.c", "./net.so", "-o", "run_model"], cwd=tmp_path, check=True)
    needs = subprocess.run(["ldd", "run_model"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "python" not in needs
    said = subprocess.run(["./run_model"], cwd=tmp_path, capture_output=True, text=True, check=True, env={}).stdout
    assert said == "y: " + " ".join(f"{v:g}" for v in y.ravel()) + f"\nturns: {turns:g}\n"


# ---- faults ----------------------------------------------------------------------------------------------------------
def test_fault_of_the_compiler_leaves_a_bundle(tmp_path, monkeypatch):
    def broken(*_):
        raise KeyError("some invariant")
    monkeypatch.setattr(driver, "compile_kernels", broken)
    with config.override(cache_dir=tmp_path), pytest.raises(InternalError, match="to reproduce it") as caught:
        tilewright.compile(small_models.mlp())
    folder = Path(str(caught.value).rsplit(": ", 1)[1])
    assert folder.is_relative_to(tmp_path)
    assert {f.name for f in folder.iterdir()} == {"traceback.txt", "facts.json", "imported.graph", "optimized.graph",
                                                 "model.onnx"}
    assert "some invariant" in (folder / "traceback.txt").read_text()
    assert (folder / "model.onnx").read_bytes() == small_models.mlp().SerializeToString()


def test_interrupt_while_compiling_leaves_nothing_behind(tmp_path, monkeypatch):
    """Ctrl-C in the middle of the kernels: workers end, no half-written entry, and the next compile works."""
    proto = small_models.convnet()
    with config.override(cache_dir=tmp_path, compile_workers=2):
        def progress(done: int, total: int) -> None:
            if done == 2:
                raise KeyboardInterrupt
        with pytest.raises(KeyboardInterrupt):
            tilewright.compile(proto, progress=progress)
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        workers = [c for c in children if "pytest" in Path(f"/proc/{c}/cmdline").read_text()]
        assert not workers
        assert not [f for f in tmp_path.rglob("*") if f.name.startswith(".new-") or "lock" in f.name]
        check(tilewright.compile(proto), proto, seeds=(0,))


def test_non_finite_weights_are_allowed():
    w = weight(6, 5)
    w[0, 0], w[1, 1] = np.nan, np.inf
    proto = model("net (float[2,6] x) => (float[2,5] y) { y = MatMul(x, w) }", w=w)
    with tilewright.compile(proto) as compiled:
        (got,), (want,) = compiled.run(inputs(proto)), reference(proto, inputs(proto))
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
        np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("bad, code", [
    ({"target": "x86-64-v9"}, "target-unknown"), ({"numerics": "loose"}, "numerics-unknown"),
    ({"threads": -1}, "threads-invalid"), ({"shapes": {"z": 1}}, "shape-unknown-name")])
def test_bad_options(bad, code):
    with pytest.raises(UserError) as caught:
        tilewright.compile(small_models.mlp(), **bad)
    assert caught.value.code == code


def test_settings_dump_and_verify_every_pass(tmp_path):
    with config.override(dump_dir=tmp_path / "dump", cache_dir=tmp_path / "cache", debug=True):
        made = tilewright.compile(small_models.convnet())
    assert (tmp_path / "dump" / "graph" / "00.ir").read_text().startswith("graph")
    kernel = tmp_path / "dump" / made.kernels[0].kernel / "lower"
    assert (kernel / "00.ir").read_text().startswith("program")
    assert list(kernel.glob("*_flatten_blocks.diff"))


def test_a_model_of_more_values_than_python_has_frames() -> None:
    b = GraphBuilder("chain")
    x, w = b.input("x", tensor_type("f32", (2, 4))), b.constant(np.eye(4, dtype=np.float32))
    y = x
    for _ in range(400):
        y = b.add("matmul", [y, w])
    stages = driver.Stages(optimized=b.finish([y]))
    built = driver.build(stages, get_target("native"), "default", 1, lambda done, total: None)
    given = np.arange(8, dtype=np.float32).reshape(2, 4)
    (got,) = built.run({"x": given})
    assert (got == given).all()
