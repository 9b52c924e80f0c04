"""The device table, through its first user: a host program allocates, copies, loads a module, launches, waits."""
from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.build import load
from tilewright.core.dtype import f32, u8
from tilewright.core.errors import UserError
from tilewright.runtime import native
from tilewright.runtime.descriptor import Descriptor, TensorSpec

MODULE = """
#include "tilewright_abi.h"
int32_t twice(tw_ctx *ctx, void *args, int64_t begin, int64_t end) {
  float *x = ((void **)args)[0];
  for (int64_t i = begin; i < end; ++i) x[i] *= 2;
  return TW_OK;
}"""

HOST = """
#include "tilewright_abi.h"
#define TRY(call) if ((call) != TW_OK) { return tw_fail(ctx, TW_ERROR_DEVICE, d->error(d)); }
int32_t tw_main(tw_ctx *ctx, void *const *in, void *const *out) {
  tw_device *d = ctx->devices[0];
  const int64_t *image_shape = in[3];
  void *module, *memory;
  TRY(d->load(d, in[1], image_shape[0], &module));
  TRY(d->alloc(d, 4000, &memory));
  TRY(d->copy(d, TW_COPY_TO_DEVICE, memory, 2000, in[0], 0, 2000));
  TRY(d->copy(d, TW_COPY_TO_DEVICE, memory, 0, in[0], 2000, 2000));
  int64_t grid[] = {10, 20, 5}, block[] = {1, 1, 1};
  TRY(d->launch(d, ctx, module, "KERNEL", grid, block, 0, &memory, 1));
  TRY(d->sync(d));
  TRY(d->copy(d, TW_COPY_TO_HOST, out[0], 0, memory, 0, 4000));
  return d->free(d, memory, 4000);
}"""


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> np.ndarray:
    folder: Path = tmp_path_factory.mktemp("module")
    (folder / "module.c").write_text(MODULE)
    subprocess.run(["cc", "-shared", "-fPIC", f"-I{native.NATIVE_FOLDER}", "-o", "module.so", "module.c"], cwd=folder,
                   check=True)
    return np.frombuffer((folder / "module.so").read_bytes(), np.uint8)


def host_program(kernel: str):
    model = Descriptor("host", (TensorSpec("x", f32, (1000,)), TensorSpec("image", u8, (-1,))),
                       (TensorSpec("y", f32, (1000,)),))
    return load(HOST.replace("KERNEL", kernel), model, threads=2)


def test_module_runs_on_the_cpu_device(image):
    x = np.arange(1000, dtype=np.float32)
    np.testing.assert_array_equal(host_program("twice").run([x, image])[0], 2 * np.roll(x, 500))


def test_what_the_device_says_reaches_the_user(image):
    x = np.zeros(1000, np.float32)
    with pytest.raises(UserError, match="thrice") as caught:
        host_program("thrice").run([x, image])
    assert caught.value.code == "run-device"
    with pytest.raises(UserError, match="cpu: load"):
        host_program("twice").run([x, image[:100]])


def test_two_modules_are_two(image, tmp_path):
    (tmp_path / "other.c").write_text(MODULE.replace("*= 2", "*= 5"))
    subprocess.run(["cc", "-shared", "-fPIC", f"-I{native.NATIVE_FOLDER}", "-o", "other.so", "other.c"], cwd=tmp_path,
                   check=True)
    other = np.frombuffer((tmp_path / "other.so").read_bytes(), np.uint8)
    x = np.ones(1000, np.float32)
    model = host_program("twice")
    assert [model.run([x, module])[0][0] for module in (image, other, image)] == [2, 5, 2]
