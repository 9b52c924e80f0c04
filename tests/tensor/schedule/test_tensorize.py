"""tensorize: what matches an intrinsic and what does not; instructions run on the CPU that has them; an invented one."""
from __future__ import annotations

import ctypes
import dataclasses
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.codegen.native import Runtime, native
from tests.tensor.schedule.refusals import check, refused
from tests.test_targets import CROSS, QEMU, on_arm
from tilewright.codegen.llvm.compile import compile_object
from tilewright.codegen.llvm.emit import emit
from tilewright.core.errors import UserError
from tilewright.core.node import alpha_equal, walk
from tilewright.loop.instructions.arm import SDOT
from tilewright.loop.instructions.x86 import VPDPBUSD
from tilewright.loop.interpret import run
from tilewright.loop.ir import Program, TensorCall
from tilewright.loop.lower.pipeline import lower
from tilewright.loop.parser import parse_module
from tilewright.loop.printer import print_module
from tilewright.loop.tensor_intrinsics import TensorIntrinsic, tensor_intrinsic, tensor_intrinsic_named
from tilewright.target import Target, get_target
from tilewright.tensor import compute as te
from tilewright.tensor.schedule.schedule import Schedule

GEMM4 = tensor_intrinsic("""
    program test_gemm4x4(c: f32[4, 4], a: f32[4, 4], b: f32[4, 4] strides[4, 1]):
        for i in 0..4:
            for j in 0..4:
                for k in 0..4:
                    c[i, j] = c[i, j] + a[i, k] * b[k, j]
""", emit={"llvm": """
    declare void @test_gemm4x4(ptr, i64, ptr, i64, ptr)
    call void @test_gemm4x4(ptr $c, i64 $c.0, ptr $a, i64 $a.0, ptr $b)
""", "c": "test_gemm4x4($c, $c.0, $a, $a.0, $b);"})
"""The instruction of an invented accelerator: its vendor's C function multiplies tiles, that of b in one piece."""


def bytes_product(m: int, n: int, k: int, lanes: int, left: str) -> Program:
    """A matrix of bytes times a packed one, [N/lanes, K/4, lanes, 4]."""
    a, b = te.placeholder((m, k), left, "A"), te.placeholder((n // lanes, k // 4, lanes, 4), "i8", "B")
    r = te.reduce_axis(k, "k")
    c = te.compute((m, n), lambda i, j: te.sum(a[i, r].cast("i32") * b[j // lanes, r.var // 4, j % lanes, r.var % 4]
                                               .cast("i32"), axis=[r]), name="C")
    return te.create_program("product", [a, b], [c])


def tensorized(program: Program, intrinsic: TensorIntrinsic, lanes: int, rows: int = 2) -> Schedule:
    """Rows of tiles in registers, the intrinsic innermost."""
    sch = Schedule(program)
    block = sch.block("C")
    store = sch.cache_write(block, 0, "local")
    i, j, k = sch.loops(block)
    (i0, i1), (j0, j1), (k0, k1) = sch.split(i, [None, rows]), sch.split(j, [None, lanes]), sch.split(k, [None, 4])
    sch.reorder(j0, i0, k0, i1, j1, k1)
    sch.reverse_compute_at(store, i0)
    init = sch.decompose_reduction(block, k0)
    sch.tensorize(j1, intrinsic)
    sch.unroll(i1)
    sch.unroll(sch.loops(init)[-2])
    sch.vectorize(sch.loops(init)[-1])
    sch.unroll(sch.loops(store)[-2])
    sch.vectorize(sch.loops(store)[-1])
    return sch


def operands(program: Program, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    out = []
    for p in program.params[:-1]:
        limits = np.iinfo(p.dtype.numpy())
        out.append(rng.integers(limits.min, limits.max + 1, [d.value for d in p.shape]).astype(p.dtype.numpy()))
    return out


def product_of(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    wide = b.transpose(1, 3, 0, 2).reshape(a.shape[1], -1)
    return a.astype(np.int32) @ wide.astype(np.int32)


@pytest.mark.parametrize("lanes, left, intrinsic", [(16, "u8", VPDPBUSD), (4, "i8", SDOT)])
def test_the_loops_stay_the_meaning(lanes: int, left: str, intrinsic: TensorIntrinsic) -> None:
    program = bytes_product(4, 2 * lanes, 12, lanes, left)
    sch = tensorized(program, intrinsic, lanes)
    check(sch, program)
    assert "tensorize(h" in str(sch.trace) and f"'{intrinsic.name}'" in str(sch.trace)
    module = lower(sch.program, get_target())
    calls = [n for n in walk(module) if isinstance(n, TensorCall)]
    assert [c.name for c in calls] == [intrinsic.name] * 2 and calls[0].tiles[0].buffer.scope == "local"
    assert alpha_equal(parse_module(print_module(module)), module)
    a, b = operands(program)
    c = np.zeros((4, 2 * lanes), np.int32)
    run(module, [a, b, c])
    np.testing.assert_array_equal(c, product_of(a, b))


@pytest.mark.skipif(not get_target().has("vnni"), reason="this CPU has no AVX512-VNNI")
def test_bytes_are_multiplied_by_vpdpbusd() -> None:
    program = bytes_product(24, 64, 256, 16, "u8")
    module = lower(tensorized(program, VPDPBUSD, 16, rows=8).program, get_target())
    a, b = operands(program)
    c = np.zeros((24, 64), np.int32)
    assert native(module, [a, b, c]) == 0
    np.testing.assert_array_equal(c, product_of(a, b))


def assembly(program: Program, target: Target) -> str:
    import llvmlite.binding as llvm
    module = llvm.parse_assembly(emit(lower(program, target), target))
    compile_object(emit(lower(program, target), target), target)  # the targets are initialized
    features = ",".join([f"+{x}" for x in target.features])
    machine = llvm.Target.from_triple(target.triple).create_target_machine(cpu=target.cpu, features=features, opt=3)
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    llvm.create_pass_builder(machine, tuning).getModulePassManager().run(module, llvm.create_pass_builder(machine, tuning))
    return str(machine.emit_assembly(module))


def test_accumulators_stay_in_registers() -> None:
    """Eight rows of sixteen sums: eight instructions per step, whose sums are not stored between the steps."""
    target = dataclasses.replace(get_target("x86-64-v4"), intrinsics=("fma", "vnni"),
                                 features=(*get_target("x86-64-v4").features, "avx512vnni"))
    text = assembly(tensorized(bytes_product(24, 64, 256, 16, "u8"), VPDPBUSD, 16, rows=8).program, target)
    loop = next(part for part in re.split(r"^\.L\w+:", text, flags=re.MULTILINE) if "vpdpbusd" in part)
    assert loop.count("vpdpbusd") == 8
    assert not re.search(r"vmovdq\w*\s+%zmm\d+, .*\(", loop.split("vpdpbusd")[0] + loop.split("vpdpbusd")[4])


ARM = dataclasses.replace(get_target("aarch64-neon"), features=("neon", "dotprod"),
                          intrinsics=(*get_target("aarch64-neon").intrinsics, "dotprod"))


@on_arm
def test_bytes_are_multiplied_by_sdot(tmp_path: Path) -> None:
    program = bytes_product(4, 16, 32, 4, "i8")
    (tmp_path / "k.o").write_bytes(compile_object(emit(lower(tensorized(program, SDOT, 4).program, ARM), ARM), ARM))
    a, b = operands(program)
    tables = [f"signed char {n}[] = {{{', '.join(map(str, x.reshape(-1)))}}};" for n, x in (("a", a), ("b", b))]
    (tmp_path / "main.c").write_text("\n".join([
        "#include <stdio.h>", *tables, "int c[64]; int product(void *, signed char *, signed char *, int *);",
        'int main(void) { product(0, a, b, c); for (int i = 0; i < 64; ++i) printf("%d\\n", c[i]); return 0; }']))
    subprocess.run([str(CROSS), "-static", "main.c", "k.o", "-o", "main"], cwd=tmp_path, check=True)
    ran = subprocess.run([str(QEMU), "-cpu", "max", "./main"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "sdot" in assembly(tensorized(program, SDOT, 4).program, ARM)
    np.testing.assert_array_equal(np.array(ran.stdout.split(), np.int32).reshape(4, 16), product_of(a, b))


# ---- an invented instruction -----------------------------------------------------------------------------------------
def gemm(n: int = 8) -> Program:
    a, b, k = te.placeholder((n, n), name="A"), te.placeholder((n, n), name="B"), te.reduce_axis(n, "k")
    c = te.compute((n, n), lambda i, j: te.sum(a[i, k] * b[k, j], axis=[k]), name="C")
    return te.create_program("gemm", [a, b], [c])


def accelerated() -> Schedule:
    """Tiles of 4 × 4; that of the right operand is copied into one piece."""
    sch = Schedule(gemm())
    block = sch.block("C")
    i, j, k = sch.loops(block)
    (i0, i1), (j0, j1), (k0, k1) = sch.split(i, [None, 4]), sch.split(j, [None, 4]), sch.split(k, [None, 4])
    sch.reorder(i0, j0, k0, i1, j1, k1)
    sch.compute_at(sch.cache_read(block, "B", "local"), k0)
    sch.decompose_reduction(block, k0)
    sch.tensorize(i1, GEMM4)
    return sch


def test_an_invented_instruction_runs_as_a_function_of_its_vendor() -> None:
    sch = accelerated()
    calls = []

    def multiply(c: int, ldc: int, a: int, lda: int, b: int) -> None:
        calls.append((ldc, lda))
        tiles = [np.lib.stride_tricks.as_strided(np.ctypeslib.as_array(ctypes.cast(p, ctypes.POINTER(ctypes.c_float)),
                                                                       (4,)), (4, 4), (4 * ld, 4))
                 for p, ld in ((c, ldc), (a, lda), (b, 4))]
        tiles[0][:] += tiles[1] @ tiles[2]

    runtime = Runtime()
    p, i = ctypes.c_void_p, ctypes.c_int64
    function = ctypes.CFUNCTYPE(None, p, i, p, i, p)(multiply)
    runtime.symbols["test_gemm4x4"] = ctypes.cast(function, p).value or 0
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 8, (8, 8)).astype(np.float32) for _ in range(2))
    c = np.zeros((8, 8), np.float32)
    assert native(lower(sch.program, get_target()), [a, b, c], runtime=runtime) == 0
    np.testing.assert_array_equal(c, a @ b)
    assert calls == [(8, 8)] * 8
    run(sch.program, [a, b, c])  # and it means what its program says
    np.testing.assert_array_equal(c, a @ b)


# ---- what is no match --------------------------------------------------------------------------------------------------
def test_other_statements_are_refused() -> None:
    def product(left: str, twice: int = 1) -> Schedule:
        a, b, k = te.placeholder((8,), left, "A"), te.placeholder((16, 8), "i8", "B"), te.reduce_axis(8, "k")
        c = te.compute((16,), lambda i: te.sum(a[k].cast("i32") * b[i, k.var * twice % 8].cast("i32"), axis=[k]), name="C")
        sch = Schedule(te.create_program("f", [a, b], [c]))
        i, k_ = sch.loops(sch.block("C"))
        k0, k1 = sch.split(k_, [None, 4])
        sch.reorder(k0, i, k1)
        sch.decompose_reduction(sch.block("C"), k0)
        return sch

    sch = product("i8")
    with refused(sch, "A has elements i8 where a has u8", "block C("):
        sch.tensorize(sch.loops(sch.block("C"))[1], VPDPBUSD)
    sch = product("u8")
    with refused(sch, "it loops over 4 × 4, the nest over 16 × 4"):
        sch.tensorize(sch.loops(sch.block("C"))[1], SDOT)
    with refused(sch, "along dimension 0 of its operand b the elements of B lie 8 apart, not 4"):
        sch.tensorize(sch.loops(sch.block("C"))[1], VPDPBUSD)
    sch = product("u8", 3)
    with refused(sch, "of B is no sum of multiples of the loops' variables"):
        sch.tensorize(sch.loops(sch.block("C"))[1], VPDPBUSD)
    sch = accelerated()
    with refused(sch, "is test_gemm4x4 already"):
        sch.tensorize(sch.block("C"), "test_gemm4x4")
    with refused(sch, "would not be test_gemm4x4 any more"):
        sch.transform_layout(sch.block("C"), "B_local", lambda k, j: [k, j % 2, j // 2])


def test_a_result_that_overlaps_itself_is_no_tile() -> None:
    fold = tensor_intrinsic("""
        program test_fold(c: i32[2, 3], a: i32[2, 3]):
            for i in 0..2:
                for j in 0..3:
                    c[i, j] = c[i, j] + a[i, j]
    """, emit={})
    a, r = te.placeholder((2, 3), "i32", "A"), te.reduce_axis(2, "r")
    sch = Schedule(te.create_program("f", [a], [te.compute((3,), lambda j: te.sum(a[r, j], axis=[r]), name="C")]))
    j = sch.loops(sch.block("C"))[0]
    sch.decompose_reduction(sch.block("C"), j)
    with refused(sch, "two elements of the result c would be one element of C"):
        sch.tensorize(j, fold)


def test_declarations() -> None:
    def declared(text: str) -> str:
        with pytest.raises(UserError, match="intrinsic-declaration") as error:
            tensor_intrinsic(text, emit={})
        return str(error.value)

    assert "another tensor intrinsic called sdot" in declared(str(SDOT.body).replace("+", "-"))
    assert tensor_intrinsic(SDOT.body, SDOT.emit, requires="dotprod") is tensor_intrinsic_named("sdot")
    assert "is no loop variable by itself" in declared("""
        program bad(c: i32[8]):
            for i in 0..4:
                c[i * 2] = 0:i32""")
    assert "no buffer of constant shape" in declared("""
        program bad(n: i64, c: i32[n]):
            c[0] = 0:i32""")
    assert "without a constant extent" in declared("""
        program bad(c: i32[4]):
            for i in 1..+3:
                c[i] = 0:i32""")


def test_code_that_is_not_there() -> None:
    program = bytes_product(4, 32, 8, 16, "u8")
    sch = tensorized(program, VPDPBUSD, 16)
    with pytest.raises(UserError, match=r"intrinsic-target.*x86-64-v4 has no vnni"):
        emit(lower(sch.program, get_target("x86-64-v4")), get_target("x86-64-v4"))
    nothing = tensor_intrinsic("""
        program test_nothing(c: i32[8], a: i32[8]):
            for i in 0..8:
                c[i] = a[i]
    """, emit={"cuda": "…"})
    a = te.placeholder((8,), "i32", "A")
    sch = Schedule(te.create_program("f", [a], [te.compute((8,), lambda i: a[i], name="C")]))
    sch.tensorize(sch.loops(sch.block("C"))[0], nothing)
    with pytest.raises(UserError, match=r"intrinsic-target.*no code for llvm"):
        emit(lower(sch.program, get_target()), get_target())


def test_a_layout_that_the_instruction_cannot_read() -> None:
    """Rows of the copy are eight apart once storage is what is live; the instruction wants four."""
    sch = Schedule(gemm())
    block = sch.block("C")
    i, j, k = sch.loops(block)
    (i0, i1), (j0, j1), (k0, k1) = sch.split(i, [None, 4]), sch.split(j, [None, 4]), sch.split(k, [None, 4])
    sch.reorder(i0, k0, j0, i1, j1, k1)
    sch.compute_at(sch.cache_read(block, "B", "local"), k0)
    sch.decompose_reduction(block, k0)
    sch.tensorize(i1, GEMM4)
    with pytest.raises(UserError, match=r"intrinsic-layout.*B_local 4 apart along dimension 0 of its operand b"):
        emit(lower(sch.program, get_target()), get_target())
