"""Whole models on every device that opens here: every class of operators, control flow, saved libraries."""
from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

import tilewright
from tests import small_models
from tests.device_cases import CLASSES
from tests.devices import check, count, on_devices
from tests.small_models import inputs, model, weight
from tests.tensor.rules.gpu_cases import CASES
from tilewright.core.errors import UserError
from tilewright.driver import device_image
from tilewright.runtime import native
from tilewright.target.target import Target


@on_devices
@pytest.mark.parametrize("build", [small_models.mlp, small_models.convnet, small_models.attention, small_models.branches,
                                   small_models.while_loop, small_models.swaps, small_models.stacked, small_models.ends],
                         ids=lambda f: f.__name__)
def test_small_models(build: Callable[[], onnx.ModelProto], target: str) -> None:
    check(build(), target)


@on_devices
def test_a_product_is_tiled(target: str) -> None:
    m = model("f (float[40,50] x) => (float[40,70] y) { a = MatMul(x, w)  y = Relu(a) }", w=weight(50, 70))
    compiled = check(m, target)
    (kernel,) = compiled.kernels
    assert "schedule_fallback" not in kernel.record
    assert count(compiled, "kernels") == 1 and count(compiled, "barriers") == 2


@on_devices
def test_convolutions(target: str) -> None:
    m = model("""f (float[1,6,15,15] x) => (float[1,20,8,8] y) {
        a = Conv<pads = [1,1,1,1], strides = [2,2]>(x, w, b)
        y = Relu(a)
    }""", w=weight(20, 6, 3, 3), b=weight(20))
    compiled = check(m, target)
    assert "schedule_fallback" not in compiled.kernels[0].record
    assert count(compiled, "kernels") == 1
    check(model("""f (float[2,8,9,9] x) => (float[2,8,9,9] y) {
        a = Conv<pads = [1,1,1,1], group = 8>(x, w)
        b = MaxPool<kernel_shape = [3,3], pads = [1,1,1,1]>(a)
        y = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1]>(b)
    }""", w=weight(8, 1, 3, 3)), target)


@on_devices
def test_rows_share_a_block(target: str) -> None:
    m = model("""f (float[3,5,100] x) => (float[3,5,100] y) {
        a = Softmax<axis = -1>(x)
        y = LayerNormalization<axis = -1>(a, s, b)
    }""", s=weight(100), b=weight(100))
    compiled = check(m, target)
    assert all("schedule_fallback" not in k.record for k in compiled.kernels)
    assert count(compiled, "kernels") == len(compiled.kernels) <= 2


@on_devices
def test_indexing_and_reductions(target: str) -> None:
    check(model("""f (float[4,300] x, int64[5] i) => (float[5,300] g, int64[4] m, float s, float[300,4] t) {
        g = Gather<axis = 0>(x, i)
        m = ArgMax<axis = 1, keepdims = 0>(x)
        s = ReduceSum<keepdims = 0>(x)
        t = Transpose<perm = [1,0]>(x)
    }"""), target)


@on_devices
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_of_schedules(name: str, target: str) -> None:
    check(CLASSES[name](), target)


@on_devices
@pytest.mark.parametrize("name", CASES)
def test_every_default_schedule_runs(name: str, target: str) -> None:
    """One class of operators each, by the rule that is meant for it."""
    compiled = check(CASES[name].model(), target)
    taken = [rule.split()[0] for k in compiled.kernels for rule in k.record["rules"].split("; ")]
    assert tuple(taken) == CASES[name].rules
    assert not [k.label for k in compiled.kernels if "schedule_fallback" in k.record]


@on_devices
def test_runs_are_independent_and_profiles_count(target: str) -> None:
    compiled = check(small_models.convnet(), target)
    feeds = [inputs(small_models.convnet(), seed=k) for k in range(3)]
    want = [compiled.run(f) for f in feeds]
    for f, w in zip(reversed(feeds), reversed(want), strict=True):
        for a, b in zip(compiled.run(f), w, strict=True):
            np.testing.assert_array_equal(a, b)
    compiled.close()
    with pytest.raises(UserError, match="model-closed"):
        compiled.run(feeds[0])


@on_devices
def test_a_saved_library_runs_from_c(tmp_path: Path, target: str) -> None:
    m = small_models.mlp()
    feeds = inputs(m)
    compiled = tilewright.compile(m, target=target)
    want = compiled.run(feeds)[0]
    compiled.save(tmp_path / "net.so")
    with tilewright.load(tmp_path / "net.so") as loaded:
        np.testing.assert_array_equal(loaded.run(feeds)[0], want)
    (tmp_path / "main.c").write_text(textwrap.dedent("""
        #include <stdio.h>
        #include "net.h"
        int main(void) {
          static float x[4 * 16], y[4 * 10];
          const void *in[] = {x};
          void *out[] = {y};
          if (fread(x, sizeof x, 1, stdin) != 1) return 1;
          tw_instance *net = net_open();
          if (net == NULL || net_run(net, in, out) != 0) return fprintf(stderr, "%s\\n", net_error()), 1;
          net_close(net);
          return fwrite(y, sizeof y, 1, stdout) != 1;
        }"""))
    subprocess.run(["cc", "main.c", "./net.so", "-o", "main"], cwd=tmp_path, check=True)
    done = subprocess.run(["./main"], cwd=tmp_path, input=feeds["x"].tobytes(), capture_output=True, check=True)
    np.testing.assert_array_equal(np.frombuffer(done.stdout, np.float32).reshape(want.shape), want)


@on_devices
@pytest.mark.parametrize("direction", [0, 1])
def test_rows_of_bytes_are_stacked(target: str, direction: int) -> None:
    """A scan writes rows that begin within a word, from the first to the last or the other way round."""
    check(model(f"""f (float[7,5] x) => (bool[7,5] m, uint8[7,5] n, float[5] end) {{
        start = ConstantOfShape(five)
        end, m, n = Scan<num_scan_inputs = 1, scan_output_directions = [{direction}, {direction}],
                         body = g (float[5] s, float[5] r) => (float[5] t, bool[5] p, uint8[5] q) {{
            t = Add(s, r)
            p = Less(t, r)
            q = Cast<to = 2>(p)
        }}>(start, x)
    }}""", five=np.array([5])), target)


@on_devices
def test_threads_share_a_device(target: str) -> None:
    """Runs of one model and of another at once."""
    models = [tilewright.compile(m, target=target) for m in (small_models.mlp(), small_models.ends())]
    feeds = [inputs(small_models.mlp(), seed=1), inputs(small_models.ends(), seed=2)]
    want = [m.run(f) for m, f in zip(models, feeds, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        jobs = [(k % 2, pool.submit(models[k % 2].run, feeds[k % 2])) for k in range(24)]
        for k, job in jobs:
            for a, b in zip(job.result(), want[k], strict=True):
                np.testing.assert_array_equal(a, b)


@on_devices
def test_a_kernel_that_the_driver_rejects(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the driver's words, with the line and the loops around it."""
    def broken(sources: list[str], device: Target) -> bytes:
        lines = device_image(sources, device).decode().split("\n")
        loop = next(k for k, line in enumerate(lines) if "for (" in line)
        return "\n".join([*lines[:loop + 1], "    nonsense here;", *lines[loop + 1:]]).encode()

    monkeypatch.setattr(tilewright.driver, "device_image", broken)
    with pytest.raises(UserError, match=r"run-device\].*the driver rejects a kernel") as error:
        tilewright.compile(small_models.mlp(), target=target)
    assert re.fullmatch(r"line \d+, in the loops i0_j1_f_0, tx, k of k_\w+_0: nonsense here;", error.value.where)


@on_devices
def test_a_device_that_runs_out_of_memory(target: str) -> None:
    """In a process that may not grow by as much as a run takes; when it may, the same model runs."""
    code = f"""
import resource
from pathlib import Path
import numpy as np
import tilewright
from tests.small_models import inputs, model
m = model('''f (float[12000,1] x, float[1,1000] z) => (float[12000] y) {{
    a = Add(x, z)  b = CumSum(a, one)  y = ReduceMax<keepdims = 0>(b, one) }}''', opset=18, one=np.array([1]))
feeds = inputs(m)
with tilewright.compile(m, target={target!r}) as made:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (20 << 20), before[1]))
    try:
        made.run(feeds)
    except tilewright.UserError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_AS, before)
    want = np.cumsum(feeds["x"] + feeds["z"], axis=1).max(axis=1)
    print(np.allclose(made.run(feeds)[0], want, rtol=1e-4, atol=1e-4))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=native.NATIVE_FOLDER.parents[2])
    assert re.match(rf"\[run-memory\] no memory for the model's arena: \d{{8}} bytes on {target}\n", done.stdout)
    assert done.stdout.endswith("True\n")


class OnAnotherDevice:
    """An array on a CUDA device, which DLPack says first."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self) -> object:
        raise AssertionError("must not be asked")


@on_devices
def test_two_devices_in_one_call(target: str) -> None:
    """Inputs and outputs are on the host: one that lies on another device is refused by name, before anything runs."""
    m = model("f (float[3] a, float[3] b) => (float[3] y) { y = Add(a, b) }")
    x = np.ones(3, np.float32)
    with tilewright.compile(m, target=target) as made:
        with pytest.raises(UserError, match=r"input-device\] input 'b' lies on another device"):
            made(x, OnAnotherDevice())
        with pytest.raises(UserError, match=r"output-array\] output 'y' is .*, got OnAnotherDevice"):
            made.executable.run([x, x], [OnAnotherDevice()])
        np.testing.assert_array_equal(made(x, x), 2 * x)


@pytest.mark.parametrize("target, variable, what", [
    ("opencl", "OCL_ICD_VENDORS", "pocl-opencl-icd"), ("webgpu", "TILEWRIGHT_WEBGPU_LIBRARY", "mesa-vulkan-drivers")])
def test_a_missing_driver_says_what_to_install(tmp_path: Path, target: str, variable: str, what: str) -> None:
    """In a process whose loader knows of no driver."""
    code = f"""
import tilewright
from tests.small_models import mlp
try:
    tilewright.compile(mlp(), target={target!r}).run({{}})
except tilewright.UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=native.NATIVE_FOLDER.parents[2],
                          env={variable: str(tmp_path), "PATH": os.defpath, "HOME": str(tmp_path)})
    assert "device-missing" in done.stdout and what in done.stdout


@pytest.mark.parametrize("target", ["opencl", "webgpu"])
def test_sizes_that_are_known_at_run_time_only_are_refused(target: str) -> None:
    m = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 18]> g (float[n] x) => (y) { y = Relu(x) }')
    with pytest.raises(UserError, match="device-sizes"):
        tilewright.compile(m, target=target)


@on_devices
def test_indices_are_checked_on_the_host(target: str) -> None:
    m = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 18]> '
                                'g (float[5] x, int64[3] i) => (y) { y = Gather(x, i) }')
    x = np.arange(5, dtype=np.float32)
    with tilewright.compile(m, target=target) as made:
        np.testing.assert_array_equal(made(x, np.array([0, -5, 4])), [0, 0, 4])
        with pytest.raises(UserError, match="run-index") as error:
            made(x, np.array([0, 5, 1]))
        assert "from 0 to 5, for an axis of 5" in str(error.value)


@on_devices
def test_every_small_type_is_stored_as_on_the_host(target: str) -> None:
    """Masks, bytes and 16-bit integers, neighbours written by different threads, computed, kept and given back."""
    check(model("""f (uint8[7,5] b, int8[7,5] c, int16[7,5] s, float[7,5] x)
            => (bool[5,7] less, uint8[7,5] sum, int8[7,5] down, int16[7,5] up, uint8[7,5] chosen, float[7,5] back) {
        zero = Constant<value = float {0.}>()
        under = Less(x, zero)
        less = Transpose<perm = [1,0]>(under)
        sum = Add(b, b)
        t = Cast<to = 3>(x)
        down = Sub(t, c)
        up = Mul(s, s)
        chosen = Where(under, b, sum)
        back = Cast<to = 1>(c)
    }"""), target)
