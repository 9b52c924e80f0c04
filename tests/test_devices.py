"""Whole models on every device that opens here: every class of operators, control flow, saved libraries."""
from __future__ import annotations

import os
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
from tests.devices import check, count, on_devices
from tests.small_models import inputs, model, weight
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


CLASSES = {
    "products": ("""(float[3,20,36] x, float[3,36,24] z, float[33] v) =>
            (float[3,20,24] a, float[3,20,40] b, float[3,20,20] c, float[3,20] d, float[20,24,3] e, float[33,33] f) {
        a = MatMul(x, z)
        p = MatMul(x, w)
        b = Gelu(p)
        t = Transpose<perm = [0,2,1]>(x)
        c = MatMul(x, t)
        d = MatMul(x, u)
        e = Einsum<equation = "bij,bjk->ikb">(x, z)
        column = Unsqueeze(v, last)
        row = Unsqueeze(v, first)
        f = MatMul(column, row)
    }""", {"w": weight(36, 40), "u": weight(36), "last": np.array([1]), "first": np.array([0])}),
    "convolutions": ("""(float[2,8,13,11] x, float[2,6,40] s) => (float[2,24,13,11] a, float[2,12,13,11] b,
            float[2,8,7,6] c, float[2,8,13,11] d, float[2,5,25,21] e, float[2,9,38] f) {
        p = Conv<pads = [1,1,1,1]>(x, w1, b1)
        a = Relu(p)
        b = Conv<group = 2, pads = [2,2,2,2], dilations = [2,2]>(x, w2)
        c = Conv<group = 8, strides = [2,2], pads = [1,1,1,1]>(x, w3)
        q = Conv(x, w4)
        r = Add(q, x)
        d = Clip(r, low, high)
        e = ConvTranspose<strides = [2,2], pads = [1,1,1,1]>(x, w5)
        f = Conv(s, w6)
    }""", {"w1": weight(24, 8, 3, 3), "b1": weight(24), "w2": weight(12, 4, 3, 3), "w3": weight(8, 1, 3, 3),
           "w4": weight(8, 8, 1, 1), "w5": weight(8, 5, 3, 3), "w6": weight(9, 6, 3), "low": np.float32(0),
           "high": np.float32(6)}),
    "windows": ("""(float[2,8,13,11] x) => (float[2,8,6,5] a, float[2,8,13,11] b, float[2,8,1,1] c, float[2,8,1,1] d,
            float[2,8,26,22] e, float[2,8,7,6] f) {
        a = MaxPool<kernel_shape = [3,3], strides = [2,2]>(x)
        b = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1], count_include_pad = 1>(x)
        c = GlobalMaxPool(x)
        d = GlobalAveragePool(x)
        e = Resize<mode = "nearest">(x, , scales)
        f = LpPool<kernel_shape = [2,2], strides = [2,2], pads = [1,1,0,0]>(x)
    }""", {"scales": np.array([1, 1, 2, 2], np.float32)}),
    "rows": ("""(float[6,5,70] x) => (float[6,5,70] a, float[6,5,70] b, float[6,5,70] c, float[6,5,70] d, float[6,5,70] e,
            float[6,5,70] f, float[6,5,70] g) {
        a = Softmax<axis = -1>(x)
        b = LogSoftmax<axis = 1>(x)
        c = LayerNormalization<axis = 1>(x, k, h)
        d = InstanceNormalization(x, s, t)
        e = LpNormalization<axis = 2>(x)
        f = CumSum(x, axis)
        g = CumSum<reverse = 1, exclusive = 1>(x, axis)
    }""", {"k": weight(5, 70), "h": weight(5, 70), "s": weight(5), "t": weight(5), "axis": np.array(2)}),
    "reductions": ("""(float[7,300,9] x, bool[7,300] m) => (float s, float[7,1,9] a, float[7,300] b, float[300,9] c,
            float[7,9] d, int64[7,9] e, int64[300,9] f, int64[7] g) {
        s = ReduceSum<keepdims = 0>(x)
        a = ReduceMean(x, one)
        b = ReduceMax<keepdims = 0>(x, two)
        c = ReduceL2<keepdims = 0>(x, zero)
        d = ReduceLogSumExp<keepdims = 0>(x, one)
        e = ArgMax<axis = 1, keepdims = 0>(x)
        f = ArgMin<axis = 0, keepdims = 0, select_last_index = 1>(x)
        n = Cast<to = 7>(m)
        g = ReduceSum<keepdims = 0>(n, one)
    }""", {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2])}),
    "moves": ("""(float[4,6,10] x, float[4,3,10] z) => (float[10,6,4] a, float[4,9,10] b, float[4,2,10] c, float[4,4,10] d,
            float[4,3,5] e, float[4,8,13] f, float[4,10,6] g, float[8,6,10] h, float[24,10] i) {
        a = Transpose<perm = [2,1,0]>(x)
        b = Concat<axis = 1>(x, z)
        c, d = Split<axis = 1>(x, parts)
        e = Slice(x, starts, ends, axes, steps)
        f = Pad<mode = "reflect">(x, pads)
        g = Transpose<perm = [0,2,1]>(x)
        h = Tile(x, twice)
        i = Reshape(x, flat)
    }""", {"parts": np.array([2, 4]), "starts": np.array([5, 9]), "ends": np.array([-7, -11]), "axes": np.array([1, 2]),
           "steps": np.array([-2, -2]), "pads": np.array([0, 1, 2, 0, 1, 1]), "twice": np.array([2, 1, 1]),
           "flat": np.array([24, 10])}),
    "indices": ("""(float[9,12] x, int64[4,12] i, float[4,12] u) => (float[4,12] a, float[9,12] b, float[9,12] c,
            float[9,3] d, int64[9,3] e, float[4,12,4] f, float[9,12] g) {
        a = GatherElements<axis = 0>(x, i)
        b = ScatterElements<axis = 0, reduction = "add">(x, i, u)
        c = ScatterND(x, places, rows)
        d, e = TopK<axis = 1>(x, three)
        f = OneHot(i, four, values)
        g = Trilu<upper = 0>(x)
    }""", {"places": np.array([[2], [7]]), "rows": weight(2, 12), "three": np.array([3]), "four": np.array(4),
           "values": np.array([-1, 2], np.float32)}),
    "recurrences": ("""(float[3,2,4] x) => (float[3,1,2,3] a, float[1,2,3] b, float[3,2,2,3] c) {
        a, b = LSTM<hidden_size = 3>(x, w1, r1, b1)
        c = GRU<hidden_size = 3, direction = "bidirectional">(x, w2, r2)
    }""", {"w1": weight(1, 12, 4), "r1": weight(1, 12, 3), "b1": weight(1, 24), "w2": weight(2, 9, 4),
           "r2": weight(2, 9, 3)}),
}
"""A model for each class of default schedules, by the graph's text behind its name and the weights."""


@on_devices
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_of_schedules(name: str, target: str) -> None:
    text, weights = CLASSES[name]
    check(model("f " + text, opset=20, **weights), target)


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
    """In the driver's words, with the line."""
    def broken(sources: list[str], device: Target) -> bytes:
        text = device_image(sources, device).decode()
        return text[:text.rindex("}")].encode() + b"  nonsense here;\n}\n"

    monkeypatch.setattr(tilewright.driver, "device_image", broken)
    with pytest.raises(UserError, match=r"run-device\].*the driver rejects a kernel(.|\n)*nonsense"):
        tilewright.compile(small_models.mlp(), target=target)


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
