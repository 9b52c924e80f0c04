"""The printer of kernels: C that runs on the CPU computes what the interpreter computes; the words of each language."""
from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.loop.lower.test_device import device, product, window
from tilewright.codegen.clike.languages import CUDA, LANGUAGES, OPENCL, C
from tilewright.codegen.clike.printer import print_kernels
from tilewright.core.dtype import boolean, f32, f64
from tilewright.core.errors import InternalError, UserError
from tilewright.loop.interpret import run
from tilewright.loop.intrinsics import intrinsic
from tilewright.loop.ir import Call, Expr, Program, maximum
from tilewright.loop.lower.device_pipeline import device_kernels, lower_for_device
from tilewright.tensor import compute as te
from tilewright.tensor.schedule.schedule import Schedule

DTYPES = {"f32": f32, "f64": f64}


def kernels(program: Program) -> list[Program]:
    return device_kernels(lower_for_device(program, device()))


def run_c(program: Program, folder: Path, *arrays: np.ndarray) -> None:
    """Run a program of one kernel as plain C."""
    (kernel,) = kernels(program)
    run_c_kernel(kernel, folder, *arrays)


def run_c_kernel(kernel: Program, folder: Path, *arrays: np.ndarray) -> None:
    (folder / "k.c").write_text(C.prelude + print_kernels([kernel], C))
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-Wno-unused-function", "-shared", "-fPIC", "-ffp-contract=off", "-o",
                    "k.so", "k.c", "-lm"], cwd=folder, check=True)
    function = getattr(ctypes.CDLL(str(folder / "k.so")), kernel.name)
    function(*[ctypes.c_void_p(a.ctypes.data) for a in arrays])


def test_rows_and_columns_of_one_number_are_that_number() -> None:
    """The place n // 34 * 34 + n % 34 is n: no division is left in it."""
    text = print_kernels(device_kernels(window()), CUDA)
    (line,) = (t for t in text.splitlines() if t.strip().startswith("B["))
    place, value = line.split(" = ")
    assert "/" not in place and "%" not in place and "% 34" in value


def test_every_language_has_its_words() -> None:
    (kernel,) = kernels(product().program)
    opencl, cuda = print_kernels([kernel], OPENCL), print_kernels([kernel], CUDA)
    assert "__kernel __attribute__((reqd_work_group_size(4, 4, 1)))" in opencl and "get_local_id(1)" in opencl
    assert "__local float A_shared[" in opencl and opencl.count("barrier(") == 2
    assert "__launch_bounds__(16, 16)" in cuda and "threadIdx.y" in cuda and cuda.count("__syncthreads()") == 2
    assert set(LANGUAGES) == {"opencl", "cuda", "hip", "metal", "c", "wgsl"}


def test_a_language_without_threads_refuses_barriers() -> None:
    with pytest.raises(InternalError, match="wait for each other"):
        print_kernels(kernels(product().program), C)


def test_integers_divide_as_the_loop_ir_says(tmp_path: Path) -> None:
    a, b = te.placeholder((64,), "i32", "A"), te.placeholder((64,), "i32", "B")
    c = te.compute((64,), lambda i: a[i] // b[i] * 1000 + a[i] % b[i], name="C")
    program = te.create_program("f", [a, b], [c])
    rng = np.random.default_rng(0)
    x, y = rng.integers(-50, 50, 64).astype(np.int32), rng.integers(1, 9, 64).astype(np.int32) * rng.choice([-1, 1], 64)
    y = y.astype(np.int32)
    got, want = np.zeros(64, np.int32), np.zeros(64, np.int32)
    run(program, [x, y, want])
    run_c(program, tmp_path, x, y, got)
    np.testing.assert_array_equal(got, want)


def test_wide_integers_do_not_overflow(tmp_path: Path) -> None:
    """Loop variables are 32-bit in the text, but what is computed from them as data is 64-bit."""
    a = te.placeholder((1000,), "i64", "A")
    program = te.create_program("f", [a], [te.compute((1000,), lambda i: a[i] + i * 100_000_000, name="C")])
    x = np.arange(1000)
    got = np.zeros(1000, np.int64)
    run_c(program, tmp_path, x, got)
    np.testing.assert_array_equal(got, x + x * 100_000_000)


def test_floats_and_nan(tmp_path: Path) -> None:
    a, b = te.placeholder((6,), name="A"), te.placeholder((6,), name="B")
    program = te.create_program("f", [a, b], [te.compute((6,), lambda i: maximum(a[i], b[i]), name="C")])
    nan, inf = np.nan, np.inf
    x, y = (np.array(v, np.float32) for v in ([1, nan, 2, -inf, 0, nan], [nan, 1, 3, inf, -1, nan]))
    got, want = np.zeros(6, np.float32), np.zeros(6, np.float32)
    run(program, [x, y, want])
    run_c(program, tmp_path, x, y, got)
    np.testing.assert_array_equal(got, want)


def test_an_element_type_without_a_name_is_refused() -> None:
    a = te.placeholder((4,), "bf16", "A")
    program = te.create_program("f", [a], [te.compute((4,), lambda i: a[i], name="C")])
    with pytest.raises(UserError, match="device-dtype"):
        print_kernels(kernels(program), OPENCL)


def test_a_function_without_a_name_is_refused() -> None:
    a = te.placeholder((4,), "i32", "A")
    program = te.create_program("f", [a], [te.compute((4,), lambda i: Call("popcount", (a[i],), a[i].dtype), name="C")])
    with pytest.raises(UserError, match="device-function"):
        print_kernels(kernels(program), OPENCL)


def test_copies_are_wide() -> None:
    a = te.placeholder((64, 64), name="A")
    sch = Schedule(te.create_program("f", [a], [te.compute((64, 64), lambda i, j: a[i, j], name="B")]))
    i, j = sch.loops(sch.block("B"))
    _, lanes = sch.split(j, [None, 4])
    sch.vectorize(lanes)
    sch.bind(i, "threadIdx.x")
    text = print_kernels(kernels(sch.program), OPENCL)
    assert "vstore4(vload4(0, (A + " in text


def test_a_buffer_may_be_called_like_a_function() -> None:
    a = te.placeholder((8,), name="exp")
    b = te.compute((8,), lambda i: Call("exp", (a[i],), a[i].dtype), name="tanh")
    c = te.compute((8,), lambda i: Call("tanh", (b[i],), b[i].dtype), name="barrier")
    program = te.create_program("f", [a], [b, c])
    text = print_kernels(kernels(program), OPENCL)
    assert "tanh_1[" in text and "exp(exp_1[" in text and "barrier_1[" in text


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_functions_in_c(dtype: str, tmp_path: Path) -> None:
    """Every function that C has a name for."""
    names = sorted(C.functions)
    kind = DTYPES[dtype]
    x = te.placeholder((len(names), 24), dtype, "X")
    out = []
    for k, name in enumerate(names):
        def point(j: Expr, k: int = k, name: str = name) -> Expr:
            args = (x[k, j], *[x[k, j] * n for n in (0.5, 2.0)])[:intrinsic(name).arity]
            result = boolean if name.startswith("is") else kind
            return Call(name, args, result).cast(kind)
        out.append(te.compute((24,), point, name=f"Y{k}"))
    data = np.random.default_rng(0).uniform(0.1, 0.9, (len(names), 24)).astype(kind.numpy())
    data[names.index("acosh")] += 1
    data[names.index("isnan"), 3] = np.nan
    data[names.index("isinf"), 3] = np.inf
    program = te.create_program("f", [x], out)
    got, want = (np.zeros((len(names), 24), kind.numpy()) for _ in range(2))
    run(program, [data, *want])
    for n, kernel in enumerate(kernels(program)):
        folder = tmp_path / str(n)
        folder.mkdir()
        run_c_kernel(kernel, folder, data, got[n])
    np.testing.assert_allclose(got, want, rtol=1e-6 if dtype == "f32" else 1e-14)
