"""Executable: what it accepts, what it refuses, and what it gives back."""
from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from tests.runtime.build import SCALE_CONSTS, SCALE_MODEL, VECTOR, load, scale
from tilewright.core.dtype import bf16, f32, i64
from tilewright.core.errors import UserError
from tilewright.runtime import native
from tilewright.runtime.descriptor import Descriptor, TensorSpec
from tilewright.runtime.memory import address_of, aligned, empty

X = np.arange(1000, dtype=np.float32)


@pytest.fixture(scope="module")
def model():
    return scale(threads=2)


def test_result_and_given_outputs(model):
    np.testing.assert_array_equal(model.run([X])[0], 2 * X + 1)
    y = np.zeros(1000, np.float32)
    assert model.run([X], [y])[0] is y
    np.testing.assert_array_equal(y, 2 * X + 1)


def test_read_only_inputs(model):
    x = X.copy()
    x.flags.writeable = False
    assert model.run([x])[0][1] == 3


@pytest.mark.parametrize(("value", "code", "says"), [
    (X.astype(np.float64), "input-dtype", "float64"),
    (X.astype(">f4"), "input-dtype", "expected f32[1000]"),
    (X[:999], "input-shape", "999"),
    (X.reshape(1, 1000), "input-shape", "[1, 1000]"),
    (np.zeros(2000, np.float32)[::2], "input-layout", "ascontiguousarray"),
    (np.zeros(4004, np.uint8)[1:4001].view(np.float32), "input-layout", "contiguous"),
    ([1.0] * 1000, "input-type", "list"),
    (None, "input-type", "NoneType"),
])
def test_refused_inputs_are_named(model, value, code, says):
    with pytest.raises(UserError) as caught:
        model.run([value])
    assert caught.value.code == code
    assert "'x'" in str(caught.value) and says in str(caught.value)


def test_refused_counts_and_outputs(model):
    with pytest.raises(UserError, match="input-count"):
        model.run([X, X])
    for wrong in (np.zeros(999, np.float32), np.zeros(1000), np.zeros(2000, np.float32)[::2], None):
        with pytest.raises(UserError, match="output-array"):
            model.run([X], [wrong])
    with pytest.raises(UserError, match="output-array"):
        model.run([X], [])


# ---- DLPack ----
def test_torch_tensors_in_without_a_copy(model):
    torch = pytest.importorskip("torch")
    x = torch.arange(1000, dtype=torch.float32)
    y = model.run([x])[0]
    np.testing.assert_array_equal(y, 2 * X + 1)
    back = torch.from_dlpack(y)
    assert back.data_ptr() == address_of(y)
    cases = [(x.double(), "input-dtype"), (x[:10], "input-shape"), (torch.zeros(2000)[::2], "input-layout"),
             (x.clone().requires_grad_(), "input-type")]
    for wrong, code in cases:
        with pytest.raises(UserError) as caught:
            model.run([wrong])
        assert caught.value.code == code


def test_address_of_the_callers_memory_reaches_the_model():
    torch = pytest.importorskip("torch")
    source = """
      #include "tilewright_abi.h"
      int32_t tw_main(tw_ctx *ctx, void *const *in, void *const *out) {
        *(int64_t *)out[0] = (int64_t)(intptr_t)in[0]; return TW_OK; }"""
    for kind, torch_kind in ((f32, torch.float32), (bf16, torch.bfloat16)):
        echo = load(source, Descriptor("address", (TensorSpec("x", kind, (4, 1, 999)),), (TensorSpec("y", i64, ()),)))
        x = torch.zeros(4, 1, 999, dtype=torch_kind)
        assert int(echo.run([x])[0]) == x.data_ptr()
        view = torch.zeros(5, 1, 999, dtype=torch_kind)[1:]
        assert int(echo.run([view])[0]) == view.data_ptr()
    x = np.zeros((4, 1, 999), ml_dtypes.bfloat16)
    assert int(echo.run([x])[0]) == address_of(x)


class OnAnotherDevice:
    def __dlpack_device__(self): return (2, 0)
    def __dlpack__(self): raise AssertionError("must not be asked")


def test_array_on_another_device(model):
    with pytest.raises(UserError, match="input-device"):
        model.run([OnAnotherDevice()])


def test_dlpack_capsule_is_released_once(model):
    released = []

    class Producer:
        def __init__(self): self.array = X.copy()
        def __dlpack_device__(self): return (1, 0)
        def __dlpack__(self): return self.array.__dlpack__()
        def __del__(self): released.append(1)

    producer = Producer()
    model.run([producer])
    del producer
    gc.collect()
    assert released == [1]


# ---- profile, taps, poison, host calls, errors ----
def test_profile(model):
    model.set_profiling(True)
    for _ in range(3):
        model.run([X])
    (kernel,) = model.profile(reset=True)
    assert kernel.name == "scale" and kernel.calls == 3 and 0 < kernel.seconds < 1
    model.set_profiling(False)
    model.run([X])
    assert model.profile()[0].calls == 0


def test_taps_and_exceptions_in_them(model):
    seen = {}
    model.set_tap(lambda value, data: seen.__setitem__(value, data))
    y = model.run([X])[0]
    np.testing.assert_array_equal(seen[7].view(np.float32), y)

    def fail(value, data):
        raise KeyError("tap")

    model.set_tap(fail)
    with pytest.raises(KeyError, match="tap"):
        model.run([X])
    model.set_tap(None)
    assert model.run([X])[0][0] == 1


MEMORY = """
#include "tilewright_abi.h"
int32_t tw_main(tw_ctx *ctx, void *const *in, void *const *out) {
  float *y = out[0];
  float *a = (float *)ctx->arena, *g = tw_grow(ctx, 0, 4000000);
  if (g == NULL || (intptr_t)g % 64 || (intptr_t)a % 64) return tw_fail(ctx, TW_ERROR_VALUE, "not aligned");
  for (int i = 0; i < 1000; ++i) y[i] = a[i] + g[i];
  g = tw_grow(ctx, 0, 8000000);
  y[0] += g[1999999];
  if (((const float *)in[0])[0] == 5) return tw_grow(ctx, 0, (int64_t)1 << 60) ? TW_OK : ctx->code;
  for (int i = 0; i < 1000; ++i) a[i] = g[i] = 0;
  return TW_OK;
}"""


def test_poison_shows_memory_that_nothing_wrote():
    model = load(MEMORY, replace(SCALE_MODEL, arena_bytes=8 << 20, grown_count=1))
    assert not np.isnan(model.run([X])[0]).any()
    model.set_poison(True)
    assert np.isnan(model.run([X])[0]).all()
    assert np.isnan(model.run([X])[0]).all()
    assert model.context_bytes >= (8 << 20) + 8_000_000
    with pytest.raises(UserError, match="1152921504606846976") as caught:
        model.run([X + 5])
    assert caught.value.code == "run-memory"
    model.set_poison(False)
    model.run([X])


def test_growable_slot_out_of_range():
    model = load(MEMORY, replace(SCALE_MODEL, arena_bytes=4000))
    with pytest.raises(UserError, match="growable"):
        model.run([X])


HOST = """
#include "tilewright_abi.h"
int32_t tw_main(tw_ctx *ctx, void *const *in, void *const *out) {
  void *args[] = {(void *)in[0], (void *)out[0]};
  return tw_host_call(ctx, 0, args, 2);
}"""


def test_host_calls():
    model = load(HOST, replace(SCALE_MODEL, host_count=1))
    with pytest.raises(UserError, match="has no function") as caught:
        model.run([X])
    assert caught.value.code == "run-host-call"
    model.set_host_call(0, lambda args: np.copyto(_floats(args[1]), _floats(args[0]) + 1))
    np.testing.assert_array_equal(model.run([X])[0], X + 1)

    def fail(args):
        raise ZeroDivisionError("mine")

    model.set_host_call(0, fail)
    with pytest.raises(ZeroDivisionError, match="mine"):
        model.run([X])
    with pytest.raises(UserError, match="run-argument"):
        model.set_host_call(1, fail)


def test_closing_from_within_a_run_is_refused():
    model = load(HOST, replace(SCALE_MODEL, host_count=1))
    model.set_host_call(0, lambda args: model.close())
    with pytest.raises(UserError, match="within its own run"):
        model.run([X])
    model.close()


def _floats(address):
    import ctypes
    return np.ctypeslib.as_array((ctypes.c_float * 1000).from_address(address))


FAIL = """
#include "tilewright_abi.h"
static int32_t body(tw_ctx *ctx, void *p, int64_t begin, int64_t end) {
  __atomic_fetch_add((int32_t *)p, (int32_t)(end - begin), __ATOMIC_RELAXED);
  return tw_fail(ctx, TW_ERROR_INDEX, "index 9 is out of bounds");
}
int32_t tw_main(tw_ctx *ctx, void *const *in, void *const *out) {
  int32_t done = 0;
  int32_t status = tw_parallel(ctx, body, &done, 1000);
  if (ctx->threads > 1 && done >= 1000) return TW_ERROR_VALUE;
  return status;
}"""


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_first_error_of_a_region_wins_and_the_rest_is_skipped(threads):
    model = load(FAIL, SCALE_MODEL, threads=threads)
    for _ in range(20):
        with pytest.raises(UserError, match="index 9 is out of bounds") as caught:
            model.run([X])
        assert caught.value.code == "run-index"


# ---- symbolic shapes ----
DYNAMIC = """
#include "tilewright_abi.h"
/* y = rows of x whose first element is positive; n = how many. */
int32_t tw_main(tw_ctx *ctx, void *const *in, void *const *out) {
  const float *x = in[0]; const int64_t *shape = in[1];
  int64_t n = 0, rows = shape[0], columns = shape[1];
  for (int64_t r = 0; r < rows; ++r) n += x[r * columns] > 0;
  float *y = tw_output(ctx, 0, 2, (int64_t[]){n, columns}, n * columns * 4);
  if (y == NULL) return ctx->code;
  for (int64_t r = 0; r < rows; ++r)
    if (x[r * columns] > 0) for (int64_t c = 0; c < columns; ++c) *y++ = x[r * columns + c];
  *(int64_t *)out[1] = n;
  return rows == 13 ? tw_fail(ctx, TW_ERROR_SHAPE, "13 rows") : TW_OK;
}"""
DYNAMIC_MODEL = Descriptor("dynamic", (TensorSpec("x", f32, (-1, 4)),),
                           (TensorSpec("y", f32, (-1, 4)), TensorSpec("n", i64, ())))


def test_symbolic_shapes():
    model = load(DYNAMIC, DYNAMIC_MODEL)
    rng = np.random.default_rng(0)
    kept = []
    for rows in (1, 7, 300, 2):
        x = rng.normal(size=(rows, 4)).astype(np.float32)
        y, n = model.run([x])
        np.testing.assert_array_equal(y, x[x[:, 0] > 0])
        assert n == len(y)
        kept.append((y, y.copy()))
    y, n = model.run([-np.ones((5, 4), np.float32)])
    assert y.shape == (0, 4) and n == 0
    with pytest.raises(UserError, match="run-shape"):
        model.run([np.ones((13, 4), np.float32)])
    with pytest.raises(UserError, match=r"f32\[\?, 4\]"):
        model.run([np.ones((3, 5), np.float32)])
    model.close()
    del model
    gc.collect()
    assert all(np.array_equal(y, copy) for y, copy in kept)


def test_runs_share_no_results_and_read_their_inputs_anew():
    model = load(DYNAMIC, DYNAMIC_MODEL)
    for rows in (3, 300):
        x, other = np.ones((rows, 4), np.float32), np.full((rows, 4), 2, np.float32)
        first, _ = model.run([x])
        second, _ = model.run([other])
        x[0, 0] = -1
        third, n = model.run([x])
        assert (first == 1).all() and (second == 2).all() and n == rows - 1 and third.shape == (rows - 1, 4)
        third[:] = 5
        assert (model.run([x])[0][0] == 1).all()


def test_arrays_of_one_shape_from_different_owners(model):
    class Producer:
        def __init__(self, array): self.array = array
        def __dlpack_device__(self): return (1, 0)
        def __dlpack__(self): return self.array.__dlpack__()

    frozen = X + 3
    frozen.flags.writeable = False
    for value, want in ((X, X), (Producer(X + 1), X + 1), (X + 2, X + 2), (frozen, X + 3), (Producer(X), X)):
        np.testing.assert_array_equal(model.run([value])[0], 2 * want + 1)
        np.testing.assert_array_equal(model.run([value], [np.empty(1000, np.float32)])[0], 2 * want + 1)


def test_a_run_within_a_run_of_the_same_model():
    model = load(HOST, replace(SCALE_MODEL, host_count=1))

    def halve(args):
        x, y = _floats(args[0]), _floats(args[1])
        y[:] = x + (0 if x[0] < 1 else model.run([x / 2])[0])

    model.set_host_call(0, halve)
    np.testing.assert_array_equal(model.run([np.full(1000, 8, np.float32)])[0], np.full(1000, 15.5))


# ---- threads, closing ----
def test_several_threads_call_one_model(model):
    wrong = []

    def work(seed):
        x = np.full(1000, seed, np.float32)
        for _ in range(300):
            if not (model.run([x])[0] == 2 * seed + 1).all():
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


SLEEP = """
#include "tilewright_abi.h"
int usleep(unsigned);
int32_t tw_main(tw_ctx *ctx, void *const *in, void *const *out) { usleep(100000); *(float *)out[0] = 1; return TW_OK; }"""


def test_the_gil_is_released_and_close_waits_for_runs():
    model = load(SLEEP, SCALE_MODEL)
    results = []
    threads = [threading.Thread(target=lambda: results.append(model.run([X])[0][0])) for _ in range(4)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    time.sleep(0.03)
    model.close()
    assert time.perf_counter() - start < 0.35  # one after the other they would take 0.4 s
    for thread in threads:
        thread.join()
    assert results == [1, 1, 1, 1]
    with pytest.raises(UserError, match="model-closed"):
        model.run([X])


def test_close_gives_memory_back():
    with load(MEMORY, replace(SCALE_MODEL, arena_bytes=256 << 20, grown_count=1)) as model:
        model.set_poison(True)  # touches the whole arena
        before = _resident()
        model.run([X])
        assert _resident() - before > 200 << 20
    assert _resident() - before < 50 << 20
    for use in (lambda: model.run([X]), lambda: model.threads, lambda: model.profile(),
                lambda: model.set_poison(True)):
        with pytest.raises(UserError, match="model-closed"):
            use()
    model.close()


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_forgotten_models_are_freed():
    before = _resident()
    for _ in range(20):
        model = load(MEMORY, replace(SCALE_MODEL, arena_bytes=64 << 20, grown_count=1))
        model.set_poison(True)
        model.run([X])
    del model
    gc.collect()
    assert _resident() - before < 200 << 20


def test_weights_are_used_in_place_or_copied_to_aligned_pages():
    weights = aligned(8 << 20)
    assert address_of(weights) % (2 << 20) == 0 and not weights.any()
    weights[:8] = SCALE_CONSTS.view(np.uint8)
    from tests.runtime.build import SCALE
    model = load(SCALE, SCALE_MODEL, weights)
    assert model.run([X])[0][1] == 3
    weights[:8] = np.array([4, 1], np.float32).view(np.uint8)
    assert model.run([X])[0][1] == 5
    odd = np.zeros(1001, np.uint8)[1:9].view(np.uint8)
    odd[:] = SCALE_CONSTS.view(np.uint8)
    assert load(SCALE, SCALE_MODEL, odd).run([X])[0][1] == 3


def test_large_outputs_begin_on_a_cache_line():
    for _ in range(8):
        array = empty((3, 5000), np.dtype(np.float32))
        assert array.shape == (3, 5000) and address_of(array) % 64 == 0 and array.flags.carray


def test_memory_of_outputs_is_kept_up_to_what_was_in_use_at_once_and_while_models_are_open():
    """In a process of its own, where no other model is open."""
    program = """
import os
import numpy as np
from tests.runtime.build import scale
from tilewright.runtime.memory import empty

def mapped():
    return int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")

with scale(threads=1):
    before = mapped()
    for k in range(1, 20):  # grows from run to run
        empty((k << 20,), np.dtype(np.float32))
    assert 19 << 22 <= mapped() - before < 40 << 22, mapped() - before
    late = empty((20 << 20,), np.dtype(np.float32))
assert mapped() - before < 24 << 22, mapped() - before
del late
assert mapped() - before < 1 << 22, mapped() - before
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_memory_of_large_outputs_is_used_again_for_like_sizes_only_when_it_is_free(model):
    first = empty((1 << 18,), np.dtype(np.float32))
    view, where = first[5:7], address_of(first)
    view[:] = 7
    del first
    assert address_of(empty((1 << 18,), np.dtype(np.float32))) != where, "a view of it lives"
    assert view.tolist() == [7, 7]
    del view
    other = empty((1 << 19,), np.dtype(np.float32))
    assert address_of(other) != where
    assert address_of(empty(((1 << 18) - 300,), np.dtype(np.float32))) == where


@pytest.mark.parametrize("threads", [-1, 1025, 1.5, True, "2"])
def test_thread_counts_that_make_no_sense(model, threads):
    with pytest.raises(UserError, match="threads-invalid"):
        scale(threads=threads)
    with pytest.raises(UserError, match="threads-invalid"):
        model.threads = threads


def test_thread_environment(monkeypatch):
    monkeypatch.setenv("TILEWRIGHT_THREADS", "3")
    assert scale().threads == 3
    assert scale(threads=1).threads == 1
    for wrong in ("0", "-2", "many", "2x", "1.5", "99999999999999999999"):
        monkeypatch.setenv("TILEWRIGHT_THREADS", wrong)
        with pytest.raises(UserError, match="TILEWRIGHT_THREADS"):
            scale()
        assert scale(threads=2).threads == 2


def test_missing_cpu_feature():
    absent = [name for name in native.cpu_feature_bits() if name not in native.host_features()]
    if not absent:
        pytest.skip("this CPU has every feature there is")
    with pytest.raises(UserError, match=absent[0]) as caught:
        load(HOST, replace(SCALE_MODEL, cpu_features=(absent[0],)))
    assert caught.value.code == "artifact-cpu"


def test_rank_limit():
    with pytest.raises(UserError, match="rank-too-large"):
        load(HOST, Descriptor("deep", (TensorSpec("x", f32, (1,) * 17),), (VECTOR,)))
