"""The command line: what each command prints and returns; each kind of bad input gives a code, a status, no traceback."""
from __future__ import annotations

import functools
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import external_data_helper, numpy_helper
from typer.testing import CliRunner

from tests import small_models
from tests.small_models import model, weight
from tilewright.codegen.clike import nvrtc
from tilewright.tools.commands import app

ROOT = Path(__file__).parents[2]


def tilewright(*args: object, status: int = 0) -> str:
    """Standard output of a command, which must end with `status` and show no traceback."""
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == status, (result.exit_code, result.output, result.exception)
    assert "Traceback" not in result.output
    return result.stdout


def refused(*args: object) -> dict[str, str]:
    """The error record of a command that must fail for the user's fault; its text goes to standard error."""
    result = CliRunner().invoke(app, [*[str(a) for a in args], "--json"])
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    error = json.loads(result.stdout)["error"]
    assert f"error: [{error['code']}] " in result.stderr and "Traceback" not in result.output
    return error


def process(*args: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tilewright", *map(str, args)], cwd=ROOT, capture_output=True, text=True,
                          check=False, **options)  # type: ignore[call-overload]


@pytest.fixture
def mlp(tmp_path) -> Path:
    onnx.save(small_models.mlp(), tmp_path / "mlp.onnx")
    return tmp_path / "mlp.onnx"


# ---- commands --------------------------------------------------------------------------------------------------------
def test_compile_run_and_run_the_saved_library(mlp, tmp_path):
    said = json.loads(tilewright("compile", mlp, "-o", tmp_path / "net.so", "--json"))
    assert said["inputs"] == {"x": "f32[4, 16]"} and said["memory"]["weights"] >= 4 * 16 * 32
    assert "arena of one run" in tilewright("compile", mlp, "-o", tmp_path / "net.so", "--threads", 1, "--verify")
    x = small_models.inputs(small_models.mlp(), 3)["x"]
    np.savez(tmp_path / "in.npz", x=x)
    np.save(tmp_path / "in.npy", x)
    (want,) = small_models.reference(small_models.mlp(), {"x": x})
    for source, given in (("mlp.onnx", "in.npz"), ("net.so", "in.npy"), ("net.so", f"x={tmp_path}/in.npy")):
        where = given if "=" in given else tmp_path / given
        tilewright("run", tmp_path / source, "--input", where, "-o", tmp_path / "out.npz")
        np.testing.assert_allclose(np.load(tmp_path / "out.npz")["y"], want, rtol=1e-5)
    top = json.loads(tilewright("run", mlp, "--input", tmp_path / "in.npz", "--top-k", 2, "--json"))["y"]["top"]
    assert [i for i, _ in top] == np.argsort(-want.reshape(-1))[:2].tolist()
    row, column = np.unravel_index(want.argmax(), want.shape)
    assert f"\n{row}, {column} " in tilewright("run", mlp, "--input", tmp_path / "in.npz", "--top-k", 1)
    for late in (("--target", "x86-64"), ("--shape", "x=4,16"), ("--numerics", "strict")):
        assert refused("run", tmp_path / "net.so", *late)["code"] == "option-library"
    assert "library" in refused("inspect", tmp_path / "net.so")["hint"]
    assert refused("run", mlp, "-o", tmp_path / "nowhere" / "out.npz")["code"] == "output-file"
    assert "f32" in tilewright("run", mlp).replace("float32", "f32")


def test_run_on_an_image(tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (40, 30), (255, 0, 0)).save(tmp_path / "red.png")
    onnx.save(model("net (float[1,3,8,8] x) => (float[1,3,8,8] y) { y = Identity(x) }"), tmp_path / "net.onnx")
    tilewright("run", tmp_path / "net.onnx", "--image", tmp_path / "red.png", "--no-normalize", "-o", tmp_path / "o.npz")
    y = np.load(tmp_path / "o.npz")["y"]
    assert (y[0, 0] == 1).all() and (y[0, 1:] == 0).all()
    tilewright("run", tmp_path / "net.onnx", "--image", tmp_path / "red.png", "-o", tmp_path / "o.npz")
    np.testing.assert_allclose(np.load(tmp_path / "o.npz")["y"][0, 0], (1 - 0.485) / 0.229, rtol=1e-6)
    (tmp_path / "text.png").write_text("no image")
    assert refused("run", tmp_path / "net.onnx", "--image", tmp_path / "text.png")["code"] == "input-file"


def test_bench_against_onnxruntime(mlp):
    said = json.loads(tilewright("bench", mlp, "--against", "onnxruntime", "--rounds", 2, "--seconds", 0, "--json"))
    ours, theirs = said[str(mlp)]
    assert ours["engine"] == "tilewright" and theirs["engine"] == "onnxruntime"
    assert ours["runs"] == 4 and ours["minimum"] <= ours["median"] <= ours["p90"] <= ours["p99"]
    assert ours["ratio"] == pytest.approx(theirs["median"] / ours["median"]) and theirs["error"] < 1e-5
    assert refused("bench", mlp, "--against", "onxruntime")["code"] == "engine-unknown"


def test_compare_fails_on_a_mismatch(mlp):
    for reference in ("onnxruntime", "interpreter", "float64", "auto"):
        said = json.loads(tilewright("compare", mlp, "--with", reference, "--json"))
        (found,) = said["outputs"]
        assert said["ok"] and found["relative"] < 1e-5 and found["mean"] <= found["absolute"] and found["ulp"] < 10_000
    said = json.loads(tilewright("compare", mlp, "--tolerance", -1, "--json", status=1))
    assert not said["ok"] and not said["outputs"][0]["ok"]
    assert "tilewright bisect" in tilewright("compare", mlp, "--tolerance", -1, status=1)


def test_profile_lists_launches(mlp):
    said = json.loads(tilewright("profile", mlp, "--json"))
    assert [p["number"] for p in said["launches"]] == list(range(len(said["launches"])))
    assert sum(p["share"] for p in said["launches"]) == pytest.approx(1)
    assert any("Gemm" in p["label"] or "matmul" in p["label"] for p in said["launches"])
    worst = json.loads(tilewright("profile", mlp, "--worst", "--json"))["launches"]
    assert [p["microseconds"] for p in worst] == sorted((p["microseconds"] for p in worst), reverse=True)


def test_inspect_shows_every_stage(mlp, tmp_path):
    assert "kernel" in tilewright("inspect", mlp)
    assert "matmul" in tilewright("inspect", mlp, "--graph")
    (tmp_path / "file").write_text("")
    assert refused("inspect", mlp, "--passes", tmp_path / "file" / "dump")["code"] == "output-file"
    said = json.loads(tilewright("inspect", mlp, "--passes", tmp_path / "dump", "--json"))["passes"]
    assert "graph/00.ir" in said and (tmp_path / "dump" / "graph" / "00.ir").read_text().startswith("graph")
    name = json.loads(tilewright("inspect", mlp, "--json"))["launches"][0]["kernel"]
    assert "program" in tilewright("inspect", mlp, "--loops", name)
    assert "define" in tilewright("inspect", mlp, "--llvm", 0)
    assert name in tilewright("inspect", mlp, "--asm", name)
    assert "fma" in tilewright("inspect", mlp, "--intrinsics")
    assert "block " in tilewright("inspect", mlp, "--program", 0) and "define" in tilewright("inspect", mlp, "--source", 0)
    assert refused("inspect", mlp, "--barriers", 0)["code"] == "no-device"
    assert refused("inspect", mlp, "--asm", "k_zz")["code"] == "kernel-unknown"


@pytest.mark.parametrize("target", ["opencl", "sm_80"])
def test_inspect_shows_the_kernels_of_a_device(target, tmp_path):
    if target == "sm_80" and not nvrtc.is_there():
        pytest.skip("NVRTC is missing")
    onnx.save(model("f (float[40,50] x) => (float[40,70] y) { y = MatMul(x, w) }", w=weight(50, 70)), tmp_path / "net.onnx")
    look = functools.partial(tilewright, "inspect", tmp_path / "net.onnx", "--target", target)
    assert "threadIdx.x" in look("--program", 0) and "launch k_" in look("--loops", 0)
    assert {"opencl": "__kernel", "sm_80": "__global__"}[target] in look("--source", 0)
    assert "launch" in look("--llvm", 0) and "k_" in look("--asm", 0)
    text = look("--barriers", 0)
    assert "barrier  # 1" in text and "barrier  # 2" in text and "barrier  # 3" not in text
    (kernel,) = json.loads(look("--barriers", 0, "--json"))["barriers"]
    before, after = kernel["barriers"]
    assert {d["buffer"] for d in after} == {"in0_shared", "w0_shared"}
    assert all(d["earlier"].startswith("writes ") and d["later"].startswith("reads ") and not d["turns"] for d in after)
    assert [(d["earlier"][:6], d["later"][:7], d["turns"]) for d in before] == [("reads ", "writes ", ["k_0"])]
    assert all(d["later"].split(" ", 1)[1] in kernel["program"] for d in (*before, *after))
    assert json.loads(look("--schedules", "--json"))["schedules"][0]["replays"]


@pytest.mark.parametrize("name", ("convnet", "attention", "nested_loops"))
def test_schedules_replay_to_the_same_code(name, tmp_path):
    onnx.save(small_models.ALL[name](), tmp_path / "net.onnx")
    said = json.loads(tilewright("inspect", tmp_path / "net.onnx", "--schedules", "--json"))["schedules"]
    assert said and all(s["replays"] for s in said)
    assert all(s["program"] for s in said) and any("vectorize" in s["trace"] for s in said)


def test_a_trace_that_does_not_replay_is_a_mismatch(mlp, monkeypatch):
    monkeypatch.setattr("tilewright.tools.inspect.compile_object", lambda text, target: b"other")
    assert "REPLAYS TO OTHER CODE" in tilewright("inspect", mlp, "--schedules", status=1)


def test_targets_and_doctor():
    said = json.loads(tilewright("targets", "--json"))
    assert {"native", "x86-64", "x86-64-v4"} <= set(said)
    assert "x86-64-v3" in tilewright("targets") and "shared memory" in tilewright("targets")
    said = json.loads(tilewright("doctor", "--json"))
    assert not said["problems"] and said["cache"]["usable"] == "yes" and said["versions"]["numpy"] == np.__version__
    assert "all is well" in tilewright("doctor")


def test_doctor_names_problems(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("TILEWRIGHT_THREADS", "many")
    said = json.loads(tilewright("doctor", "--json", status=1))
    assert any("cache" in p for p in said["problems"]) and any("threads" in p.lower() for p in said["problems"])


# ---- bad input -------------------------------------------------------------------------------------------------------
def test_files_that_are_no_model(mlp, tmp_path):
    assert refused("compile", tmp_path / "none.onnx")["code"] == "onnx-missing-file"
    (tmp_path / "text.onnx").write_text("this is not a model")
    assert refused("compile", tmp_path / "text.onnx")["code"] == "onnx-malformed"
    data = mlp.read_bytes()
    for end in (0, 1, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.onnx").write_bytes(data[:end])
        assert refused("run", tmp_path / "cut.onnx")["code"].startswith("onnx-")
    assert refused("run", tmp_path)["code"] == "onnx-missing-file"


def test_all_unknown_operators_are_named_at_once(tmp_path):
    m = model("net (float[2] x) => (float[2] y) { a = Relu(x)\n b = Exp(a)\n y = Neg(b) }")
    for node, op in ((0, "Wobble"), (2, "Wibble")):
        m.graph.node[node].op_type, m.graph.node[node].name = op, f"node_{op}"
    onnx.save(m, tmp_path / "net.onnx")
    error = refused("compile", tmp_path / "net.onnx")
    assert error["code"] == "onnx-unsupported-op"
    assert all(word in error["message"] for word in ("Wobble", "node_Wobble", "Wibble", "node_Wibble"))
    m = small_models.mlp()
    m.opset_import[0].version = 999
    onnx.save(m, tmp_path / "net.onnx")
    assert refused("compile", tmp_path / "net.onnx")["code"] == "onnx-unsupported-opset"


def test_inputs_that_do_not_fit(mlp, tmp_path):
    for array, code in ((np.zeros((4, 15), np.float32), "input-shape"), (np.zeros((4, 16)), "input-dtype")):
        np.savez(tmp_path / "in.npz", x=array)
        error = refused("run", mlp, "--input", tmp_path / "in.npz")
        assert error["code"] == code and "'x'" in error["message"] and "f32[4, 16]" in error["message"]
    np.savez(tmp_path / "in.npz", z=np.zeros(1))
    assert refused("run", mlp, "--input", tmp_path / "in.npz")["code"] == "input-unknown"
    (tmp_path / "in.npz").write_bytes((tmp_path / "in.npz").read_bytes()[:40])
    assert refused("run", mlp, "--input", tmp_path / "in.npz")["code"] == "input-file"
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    assert refused("run", mlp, "--input", tmp_path / "objects.npy")["code"] == "input-file"
    assert refused("run", mlp, "--input", tmp_path / "none.npy")["code"] == "input-file"


def test_open_dimensions_and_the_option_that_sets_them(tmp_path):
    onnx.save(model("net (float[batch,3] x) => (float[batch,3] y) { y = Relu(x) }"), tmp_path / "net.onnx")
    assert json.loads(tilewright("run", tmp_path / "net.onnx", "--json"))["y"]["shape"] == [1, 3]
    for option in ("batch=5", "x=5,3", "batch=5..9", "x=n:5..,3"):
        said = json.loads(tilewright("run", tmp_path / "net.onnx", "--shape", option, "--json"))
        assert said["y"]["shape"] == [5, 3]
    assert refused("run", tmp_path / "net.onnx", "--shape", "rows=5")["code"] == "shape-unknown-name"
    for bad in ("batch", "=5", "batch="):
        assert refused("run", tmp_path / "net.onnx", "--shape", bad)["code"] == "option-shape"


def _external(folder: Path) -> Path:
    """A model whose only weight is in folder/w.bin."""
    m = model("net (float[2,300] x) => (float[2,4] y) { y = MatMul(x, w) }", w=weight(300, 4))
    external_data_helper.convert_model_to_external_data(m, location="w.bin", size_threshold=0)
    onnx.save(m, folder / "net.onnx")
    return folder / "net.onnx"


def test_external_data(tmp_path):
    (tmp_path / "model").mkdir()
    path = _external(tmp_path / "model")
    assert json.loads(tilewright("compare", path, "--json"))["ok"]
    data = tmp_path / "model" / "w.bin"
    data.rename(tmp_path / "secret")
    assert refused("run", path)["code"] == "onnx-external-data"  # it is gone
    data.symlink_to(tmp_path / "secret")
    assert refused("run", path)["code"] == "onnx-external-data"  # a link
    for location in ("../secret", str(tmp_path / "secret")):
        m = onnx.load(path, load_external_data=False)
        for entry in m.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = location
        path.write_bytes(m.SerializeToString())
        assert refused("run", path)["code"] == "onnx-external-data"  # outside of the folder


def test_initializer_of_another_size(tmp_path):
    m = small_models.mlp()
    m.graph.initializer[0].raw_data = m.graph.initializer[0].raw_data[:-4]
    onnx.save(m, tmp_path / "net.onnx")
    error = refused("compile", tmp_path / "net.onnx")
    assert error["code"] == "onnx-initializer-size" and "w1" in error["message"] + error["where"]


def test_weights_that_are_not_finite_are_allowed(tmp_path):
    w = weight(3, 4)
    w[0, 0], w[1, 1] = np.nan, np.inf
    onnx.save(model("net (float[2,3] x) => (float[2,4] y) { y = MatMul(x, w) }", w=w), tmp_path / "net.onnx")
    said = json.loads(tilewright("compare", tmp_path / "net.onnx", "--with", "onnxruntime", "--json"))
    assert said["ok"]


def test_cache_folder_that_cannot_be_written(mlp, tmp_path):
    (tmp_path / "file").write_text("")
    result = process("run", mlp, env={**os.environ, "TILEWRIGHT_CACHE_DIR": str(tmp_path / "file" / "cache")})
    assert result.returncode == 0 and result.stderr.count("warning: compiling without the cache") == 1
    assert "Traceback" not in result.stderr


def test_full_disk_while_saving_leaves_the_old_files(mlp, tmp_path):
    """A limit on the size of files stands for the full disk."""
    out = tmp_path / "out"
    out.mkdir()
    tilewright("compile", mlp, "-o", out / "net.so")
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    command = f"ulimit -f 4; exec {sys.executable} -m tilewright compile {mlp} -o {out}/net.so"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "[save-failed]" in result.stderr and "Traceback" not in result.stderr, result.stderr
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before
    assert refused("compile", mlp, "-o", tmp_path / "nowhere" / "net.so")["code"] == "save-failed"


def test_interrupt_while_compiling(tmp_path):
    onnx.save(small_models.convnet(), tmp_path / "net.onnx")
    cache, out = tmp_path / "cache", tmp_path / "out"
    out.mkdir()
    environment = {**os.environ, "TILEWRIGHT_CACHE_DIR": str(cache), "TILEWRIGHT_COMPILE_WORKERS": "2"}
    command = [sys.executable, "-m", "tilewright", "compile", str(tmp_path / "net.onnx"), "-o", str(out / "net.so")]
    running = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    stop = time.monotonic() + 60
    while len(workers := children.read_text().split()) < 2 and time.monotonic() < stop:
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130 and said.strip() == "interrupted", said
    assert not [w for w in workers if Path(f"/proc/{w}").exists()]
    assert not list(out.iterdir()) and not [f for f in cache.rglob("*") if f.name.startswith(".") or "lock" in f.name]
    result = process("compile", tmp_path / "net.onnx", "-o", out / "net.so", env=environment)
    assert result.returncode == 0, result.stderr


def test_an_interrupt_in_a_callback_is_not_lost():
    """Python swallows what is raised while it collects an object: the command line raises the interrupt again."""
    code = ("import os, signal, sys, time; from tilewright.tools.cli import keep_interrupts; keep_interrupts()\n"
            "class Last:\n    def __del__(self):\n        signal.raise_signal(signal.SIGINT)\n"
            "try:\n    last = Last(); del last; time.sleep(5)\n"
            "except KeyboardInterrupt:\n    print('again')\n")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "again\n", "")


def test_library_for_another_processor(mlp, tmp_path):
    library = tmp_path / "net.so"
    tilewright("compile", mlp, "-o", library)
    data = bytearray(library.read_bytes())
    struct.pack_into("<H", data, 18, 183)
    library.write_bytes(data)
    error = refused("run", library)
    assert error["code"] == "artifact-cpu" and "aarch64" in error["message"]
    library.write_bytes(bytes(data[:-100]))
    assert refused("run", library)["code"] in ("artifact-cpu", "artifact-invalid")


def test_fault_of_the_compiler(mlp, monkeypatch):
    def broken(*_: object) -> None:
        raise KeyError("some invariant")
    monkeypatch.setattr("tilewright.driver.compile_kernels", broken)
    result = CliRunner().invoke(app, ["run", str(mlp)])
    assert result.exit_code == 3 and "to reproduce it: " in result.stderr and "Traceback" not in result.output
    debugged = CliRunner().invoke(app, ["run", str(mlp), "--debug"])
    assert debugged.exit_code == 3 and "Traceback" in debugged.stderr


def test_missing_extra_is_named(tmp_path):
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError('no typer', name='typer')")
    result = process("targets", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert result.returncode == 2 and "pip install 'tilewright[cli]'" in result.stderr and "Traceback" not in result.stderr


def test_external_weights_of_wrong_size_do_not_crash(tmp_path):
    path = _external(tmp_path)
    (tmp_path / "w.bin").write_bytes(b"\0" * 8)
    assert refused("run", path)["code"] in ("onnx-external-data", "onnx-initializer-size")
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "w")
    tensor.dims[0] = 1 << 40
    m = model("net (float[2] x) => (float[2] y) { y = Relu(x) }")
    m.graph.initializer.append(tensor)
    onnx.save(m, tmp_path / "huge.onnx")
    assert refused("run", tmp_path / "huge.onnx")["code"].startswith("onnx-")
