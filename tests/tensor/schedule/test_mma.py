"""Products on tensor cores: the instructions in a schedule; what each thread holds; sources that NVRTC takes. (How the
default rule uses them: tests/tensor/rules/test_gpu_tensor_cores.py.)"""
from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.codegen.clike.test_cuda import needs_nvrtc
from tests.tensor.schedule.refusals import refused
from tilewright.codegen.clike import nvrtc
from tilewright.codegen.clike.languages import CUDA, OPENCL
from tilewright.codegen.clike.printer import print_kernels
from tilewright.core.errors import UserError
from tilewright.core.node import walk
from tilewright.loop.instructions import nvidia
from tilewright.loop.instructions.nvidia import Loads, MatrixProduct
from tilewright.loop.interpret import run
from tilewright.loop.ir import Load, Program, Store, as_int, const, maximum
from tilewright.loop.lower.device_pipeline import device_kernels, lower_for_device
from tilewright.loop.tensor_intrinsics import Fragment, TensorIntrinsic, fill
from tilewright.loop.verify import verify
from tilewright.target.presets import get_target
from tilewright.tensor import compute as te
from tilewright.tensor.rules.gpu_tensor_cores import Tile, multiply_fragments
from tilewright.tensor.schedule.schedule import Schedule, replay
from tilewright.tensor.schedule.trace import Instruction, Trace

F16, BF16, TF32 = (nvidia.PRODUCTS[t] for t in ("f16", "bf16", "tf32"))
BY_ELEMENT = MatrixProduct(Loads(*[nvidia.MMA_LOAD_A_F16] * 3), Loads(*[nvidia.MMA_LOAD_B_F16] * 3), nvidia.MMA_F16,
                           nvidia.CP_ASYNC_F16)


def product(m: int, n: int, k: int, t: str, epilogue: bool = False) -> Program:
    a, b, r = te.placeholder((m, k), t, "A"), te.placeholder((k, n), t, "B"), te.reduce_axis(k, "k")
    c = te.compute((m, n), lambda i, j: te.sum(a[i, r].cast("f32") * b[r, j].cast("f32"), axis=[r]), name="C")
    if not epilogue:
        return te.create_program("product", [a, b], [c])
    bias = te.placeholder((n,), "f32", "bias")
    d = te.compute((m, n), lambda i, j: maximum(c[i, j] + bias[j], const(0.0, c[i, j])), name="D")
    return te.create_program("product", [a, b, bias], [d])


def on_tensor_cores(program: Program, kind: MatrixProduct, warps: tuple[int, int] = (2, 2),
                    fragments: tuple[int, int] = (2, 2), depth: int = 2, stages: int = 1) -> Schedule:
    """A block computes `warps` × `fragments` × (16, 8) results, `depth` instructions deep at a time."""
    sch = Schedule(program)
    multiply_fragments(sch, sch.block("C"), kind, Tile(warps, fragments, depth, stages))
    return sch


def altered(sch: Schedule, program: Program, change: Callable[[list[Instruction]], None]) -> Schedule:
    """The schedule with some instructions of its trace changed."""
    instructions = list(sch.trace.instructions)
    change(instructions)
    return replay(Trace(instructions), program)


def operands(program: Program) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(-4, 5, [d.value for d in p.shape]).astype(p.dtype.numpy()) for p in program.params[:-1]]


CASES = {"f16": ("f16", F16), "f16 by element": ("f16", BY_ELEMENT), "bf16": ("bf16", BF16), "tf32": ("f32", TF32)}


@pytest.mark.parametrize("case", CASES)
def test_a_product_in_every_order(case: str) -> None:
    """Warps and their threads in adversarial orders compute the product."""
    t, kind = CASES[case]
    program = product(16, 16, 32 if t != "f32" else 16, t)
    sch = on_tensor_cores(program, kind, (1, 2), (1, 1))
    assert str(replay(sch.trace, program).program) == str(sch.program)
    module = lower_for_device(sch.program, get_target("sm_80"))
    verify(module, "emitted")
    a, b = operands(program)
    for order in ("forward", "reverse", "random"):
        c = np.full((16, 16), np.nan, np.float32)
        run(module, [a, b, c], order=order, entry="product")  # type: ignore[arg-type]
        np.testing.assert_array_equal(c, a.astype(np.float32) @ b.astype(np.float32))


def test_an_epilogue_on_what_each_thread_holds() -> None:
    program = product(32, 16, 16, "f16", epilogue=True)
    sch = on_tensor_cores(program, F16, (2, 1), (1, 2), depth=1)
    module = lower_for_device(sch.program, get_target("sm_80"))
    a, b, bias = operands(program)
    for order in ("forward", "reverse", "random"):
        d = np.full((32, 16), np.nan, np.float32)
        run(module, [a, b, bias, d], order=order, entry="product")  # type: ignore[arg-type]
        np.testing.assert_array_equal(d, np.maximum(a.astype(np.float32) @ b.astype(np.float32) + bias, 0))
    source = print_kernels(device_kernels(module), CUDA)
    assert len(re.findall(r"C\[\d+\] \+ bias", source)) == 8  # of the thread's own registers


# ---- sources -----------------------------------------------------------------------------------------------------------
@needs_nvrtc
@pytest.mark.parametrize("generation", ["sm_80", "sm_90"])
@pytest.mark.parametrize("case", CASES)
def test_sources_become_cubins(case: str, generation: str) -> None:
    t, kind = CASES[case]
    module = lower_for_device(on_tensor_cores(product(128, 64, 64, t), kind).program, get_target(generation))
    source = print_kernels(device_kernels(module), CUDA)
    assert source.count("mma.sync") == 4 and source.count("ldmatrix") == (4 if kind in (F16, BF16) else 0)
    assert nvrtc.compile_cubin(CUDA.prelude + source, generation)[:4] == b"\x7fELF"


@needs_nvrtc
def test_an_epilogue_becomes_a_cubin() -> None:
    module = lower_for_device(on_tensor_cores(product(64, 32, 32, "f16", True), F16).program,
                              get_target("sm_80"))
    assert nvrtc.compile_cubin(CUDA.prelude + print_kernels(device_kernels(module), CUDA), "sm_80")[:4] == b"\x7fELF"


# ---- what each thread holds ----------------------------------------------------------------------------------------------
FRAGMENTS = [nvidia.A16, nvidia.B16, nvidia.A8, nvidia.B8, nvidia.C]


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=lambda f: f.name)
def test_every_register_has_one_element(fragment: Fragment) -> None:
    m, n = fragment.shape
    places = {(fragment.lane(i, j), fragment.register(i, j)) for i in range(m) for j in range(n)}
    assert places == {(t, r) for t in range(32) for r in range(m * n // 32)}


@pytest.mark.parametrize("intrinsic", [nvidia.MMA_LOAD_A_F16, nvidia.MMA_LOAD_B_F16, nvidia.MMA_STORE, nvidia.MMA_FILL],
                         ids=lambda t: t.name)
def test_templates_hold_what_the_fragments_say(intrinsic: TensorIntrinsic, tmp_path: Path) -> None:
    """The template of a copy, run as C for each thread, from and to memory with rows and columns apart."""
    (warp,) = [p for p in intrinsic.operands if p.scope == "warp"]
    fragment = intrinsic.fragments[warp.name]
    m, n = fragment.shape
    count, strides = m * n // 32, (3 * n, 2)
    words = {warp.name: "held[lane]", "lane": "lane", **{p.name: "matrix" for p in intrinsic.operands if p is not warp}}
    body = fill(intrinsic.emit["cuda"], {k: lambda d, text=text: text if d is None else str(strides[d])
                                         for k, text in words.items()})
    element = "unsigned short" if warp.dtype.bits == 16 else "float"
    (tmp_path / "k.c").write_text(f"void f({element} *matrix, {element} (*held)[{count}]) {{\n"
                                  f"for (int lane = 0; lane < 32; ++lane) {{ {body} }} }}\n")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-fno-strict-aliasing", "-o", "k.so", "k.c"], cwd=tmp_path, check=True)
    kind = np.uint16 if warp.dtype.bits == 16 else np.float32
    matrix = np.arange(m * strides[0], dtype=kind)
    held = (1000 + np.arange(32 * count)).astype(kind).reshape(32, count)
    before = held.copy()
    function = ctypes.CDLL(str(tmp_path / "k.so")).f
    function(*[ctypes.c_void_p(x.ctypes.data) for x in (matrix, held)])
    for i in range(m):
        for j in range(n):
            at, own = i * strides[0] + j * strides[1], held[fragment.lane(i, j), fragment.register(i, j)]
            if intrinsic is nvidia.MMA_STORE:
                assert matrix[at] == before[fragment.lane(i, j), fragment.register(i, j)]
            else:
                assert own == (0 if intrinsic is nvidia.MMA_FILL else at)


@pytest.mark.parametrize("intrinsic", [nvidia.LDMATRIX_A_F16, nvidia.LDMATRIX_B_F16, nvidia.LDMATRIX_TURNED_A_F16,
                                       nvidia.LDMATRIX_TURNED_B_F16], ids=lambda t: t.name)
def test_matrix_loads_hold_what_the_fragments_say(intrinsic: TensorIntrinsic) -> None:
    """ldmatrix as the PTX ISA defines it: threads 8q … 8q + 7 give the rows of matrix q, of eight 16-bit elements each;
    thread t gets elements 2(t % 4) and the next of row t / 4 of each matrix, of its column if transposed."""
    held, memory = intrinsic.operands
    fragment, stride = intrinsic.fragments["f"], 40
    text = intrinsic.emit["cuda"]
    count, transposed = int(re.search(r"\.x(\d)", text)[1]), ".trans" in text  # type: ignore[index]
    place = re.search(r"shared\(\$\w \+ (.*)\);", text)[1].replace("/", "//")  # type: ignore[index]
    rows = [eval(place.replace(f"(${memory.name}.0)", str(stride)).replace("$lane", str(t))) for t in range(8 * count)]
    got = {}
    for t in range(32):
        for q in range(count):
            for e in range(2):
                r, c = (2 * (t % 4) + e, t // 4) if transposed else (t // 4, 2 * (t % 4) + e)
                got[t, 2 * q + e] = rows[8 * q + r] + c
    read = next(n for n in walk(intrinsic.body.body) if isinstance(n, Load))
    (i, j), turned = held.shape, read.indices[0] is not next(
        n for n in walk(intrinsic.body.body) if isinstance(n, Store)).indices[0]
    for x in range(as_int(i) or 0):
        for y in range(as_int(j) or 0):
            assert got[fragment.lane(x, y), fragment.register(x, y)] == (y * stride + x if turned else x * stride + y)


# ---- refusals ------------------------------------------------------------------------------------------------------------
def test_rounding_is_asked_for() -> None:
    sch = Schedule(product(16, 8, 8, "f32"))
    load = sch.cache_read(sch.block("C"), "A", "warp")
    with refused(sch, "rounds its operands to tf32"):
        sch.tensorize(sch.loops(load)[0], nvidia.MMA_LOAD_A_TF32)


def test_a_warp_is_not_one_of_its_threads() -> None:
    sch = Schedule(product(16, 8, 16, "f16"))
    block = sch.block("C")
    load = sch.cache_read(block, "A", "warp")
    with refused(sch, "A lies in global memory, the operand a in shared"):
        sch.tensorize(sch.loops(load)[0], nvidia.LDMATRIX_A_F16)
    sch.cache_write(block, 0, "warp")
    sch.cache_read(block, "B", "warp")
    with refused(sch, "one thread would initialise"):
        sch.tensorize(sch.loops(block)[0], nvidia.MMA_F16)
    sch = Schedule(product(16, 16, 16, "f16"))
    load = sch.cache_read(sch.block("C"), "A", "warp")
    t, r1 = sch.split(sch.loops(load)[0], [1, None])
    sch.bind(t, "threadIdx.x")
    with refused(sch, "takes all threads along it"):
        sch.tensorize(r1, nvidia.MMA_LOAD_A_F16)


def test_a_device_without_tensor_cores() -> None:
    sch = on_tensor_cores(product(64, 32, 32, "f16"), F16)
    with pytest.raises(UserError, match=r"intrinsic-target.*sm_75 has no mma"):
        lower_for_device(sch.program, get_target("sm_75"))
    sch = on_tensor_cores(product(64, 32, 16, "f32"), TF32)
    with pytest.raises(UserError, match=r"kernel-warp.*no tensor intrinsic for opencl"):
        print_kernels(device_kernels(lower_for_device(sch.program, get_target("sm_80"))), OPENCL)


def test_more_sums_than_a_thread_has_registers() -> None:
    sch = on_tensor_cores(product(256, 128, 32, "f16"), F16, (1, 1), (16, 16), depth=1)
    with pytest.raises(UserError, match=r"kernel-limit.* registers of a thread for what its warp holds; sm_80 has 255"):
        lower_for_device(sch.program, get_target("sm_80"))


def test_registers_of_other_warps() -> None:
    """The sums of warp (z, y) are started by warp (y, z)."""
    program = product(64, 32, 32, "f16")

    def turn(instructions: list[Instruction]) -> None:
        binds = [k for k, i in enumerate(instructions) if i.name == "bind" and i.args[1] in ("threadIdx.z", "threadIdx.y")]
        for k, axis in zip(binds[2:4], "yz", strict=True):  # behind those of the product
            instructions[k] = replace(instructions[k], args=(instructions[k].args[0], f"threadIdx.{axis}"))

    sch = altered(on_tensor_cores(program, F16), program, turn)
    with pytest.raises(UserError, match=r"kernel-warp.*may read elements of C_warp that it did not write itself"):
        lower_for_device(sch.program, get_target("sm_80"))


def test_a_warp_is_gone_after_its_kernel() -> None:
    """Two nests that no loop over blocks holds are two kernels."""
    sch = Schedule(product(16, 8, 16, "f16"))
    load = sch.cache_read(sch.block("C"), "A", "warp")
    sch.tensorize(sch.loops(load)[0], nvidia.MMA_LOAD_A_F16)
    kernels = device_kernels(lower_for_device(sch.program, get_target("sm_80")))
    with pytest.raises(UserError, match=r"kernel-warp.*no warp can hold A_warp: several kernels use it"):
        print_kernels(kernels, CUDA)


def test_half_a_warp() -> None:
    """A copy on 48 threads beside a product of a warp."""
    sch = Schedule(product(32, 8, 48, "f16"))
    block = sch.block("C")
    store = sch.cache_write(block, 0, "warp")
    i, j, k = sch.loops(block)
    (i0, i1), (k0, k1) = sch.split(i, [None, 16]), sch.split(k, [None, 16])
    sch.reorder(i0, k0, i1, j, k1)
    sch.reverse_compute_at(store, i0)
    init = sch.decompose_reduction(block, k0)
    copy = sch.cache_read(block, "A", "shared")
    loads = [sch.cache_read(block, name, "warp") for name in ("A_shared", "B")]
    for load, intrinsic in zip(loads, (BY_ELEMENT.a.any, BY_ELEMENT.b.any), strict=True):
        sch.compute_at(load, k0)
        sch.tensorize(sch.loops(load)[-2], intrinsic)
    sch.compute_at(copy, i0)
    sch.bind(i0, "blockIdx.x")
    sch.bind(sch.loops(copy)[2], "threadIdx.x")
    sch.tensorize(i1, nvidia.MMA_F16)
    sch.tensorize(sch.loops(init)[1], nvidia.MMA_FILL)
    sch.tensorize(sch.loops(store)[1], nvidia.MMA_STORE)
    with pytest.raises(UserError, match=r"kernel-warp.*run by 32 threads together; product_\d has 48 along x"):
        lower_for_device(sch.program, get_target("sm_80"))


def test_elements_of_other_threads() -> None:
    program = product(32, 16, 16, "f16", epilogue=True)
    sch = on_tensor_cores(program, F16, (1, 1), depth=1)
    assert "bias" in print_kernels(device_kernels(lower_for_device(sch.program, get_target("sm_80"))), CUDA)

    def turn(instructions: list[Instruction]) -> None:
        """Threads along the other axis first."""
        last = max(k for k, i in enumerate(instructions) if i.name == "fuse")
        a, b = instructions[last].args
        order = [{a: b, b: a}.get(x, x) for x in instructions[last - 1].args]
        instructions[last - 1:last + 1] = [replace(instructions[last - 1], args=tuple(order)),
                                           replace(instructions[last], args=(b, a))]

    sch = altered(sch, program, turn)
    with pytest.raises(UserError, match=r"kernel-warp.*another thread of the warp may hold"):
        print_kernels(device_kernels(lower_for_device(sch.program, get_target("sm_80"))), CUDA)
