"""Kernels over words compute what kernels over typed buffers compute, and leave the words of others alone."""
from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from tilewright.core.dtype import dtype
from tilewright.core.errors import UserError
from tilewright.loop.interpret import run
from tilewright.loop.ir import Buffer, Call, Expr, Program
from tilewright.loop.lower.device_pipeline import device_kernels, lower_for_device
from tilewright.loop.verify import verify
from tilewright.target.presets import get_target
from tilewright.tensor import compute as te
from tilewright.tensor.rules.dispatch import schedule_program

TARGET = dataclasses.replace(get_target("webgpu"), max_binding=4 << 10)
"""As WebGPU, but that it binds 4 KiB at once."""
WORDS = TARGET.max_binding // 4


def kernels(program: Program) -> list[Program]:
    return device_kernels(lower_for_device(schedule_program(program, TARGET, "default").program, TARGET))


def run_words(program: Program, *arrays: np.ndarray[Any, Any], order: str = "forward") -> None:
    """Run a program's one kernel as a driver does: all arrays in one memory of words, those of the weights in another."""
    (kernel,) = kernels(program)
    verify(kernel, "emitted")
    arena, pieces, views, places, end = np.full(WORDS, 0xDEADBEEF, np.uint32), [], [], [], 16
    for letter, array in zip(kernel.attr("arguments"), arrays, strict=True):
        words = np.frombuffer(array.tobytes() + bytes(-array.nbytes % 4), np.uint32)
        if letter == "a":
            arena[end:end + words.size] = words
            places.append(end)
            end += words.size + 16
        elif letter == "s":
            raise NotImplementedError
        else:
            piece = np.full(int(letter) * WORDS, 0xDEADBEEF, np.uint32)
            places.append(0 if letter > "1" else 16)
            piece[places[-1]:places[-1] + words.size] = words
            pieces += np.split(piece, int(letter))
    memory = zip([arena, *pieces], [p for p in kernel.params if isinstance(p, Buffer)], strict=True)
    views = [words.view(b.dtype.numpy()) for words, b in memory]
    untouched = arena.copy()
    run(kernel, [*views, *places], order=order)  # type: ignore[arg-type]
    for letter, array, start in zip(kernel.attr("arguments"), arrays, places, strict=True):
        if letter == "a":
            stop = start + -(-array.nbytes // 4)
            untouched[start:stop] = arena[start:stop]
            array[...] = np.frombuffer(arena[start:stop].tobytes()[:array.nbytes], array.dtype).reshape(array.shape)
    np.testing.assert_array_equal(arena, untouched)  # nothing beside the arrays


def values(kind: str, n: int, seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    t = dtype(kind)
    if t.is_bool:
        return rng.integers(0, 2, n).astype(np.bool_)
    if t.is_float:
        return rng.standard_normal(n).astype(np.float32)
    low, high = t.range()
    return rng.integers(max(low, -2**15), min(high, 2**15 - 1), n, endpoint=True).astype(t.numpy())


@pytest.mark.parametrize("kind", ["f32", "i64", "i32", "u32", "u64", "i16", "u16", "i8", "u8"])
def test_arithmetic_wraps_as_the_type_does(kind: str) -> None:
    n = 37
    a, b = te.placeholder((n,), kind, "A"), te.placeholder((n,), kind, "B")
    program = te.create_program("f", [a, b], [te.compute((n,), lambda i: a[i] * b[i] - (a[i] + b[n - 1 - i]), name="C")])
    x, y = values(kind, n, 0), values(kind, n, 1)
    if kind in ("i32", "i64"):
        x, y = x % 1000, y % 1000
    if kind in ("u32", "u64"):
        x, y = x % 100 + 200, y % 100 + 1000
    got, want = np.zeros(n, x.dtype), np.zeros(n, x.dtype)
    run(program, [x, y, want])
    run_words(program, x, y, got, order="random")
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("source", ["f32", "i64", "i32", "i16", "i8", "u8", "u16", "bool"])
@pytest.mark.parametrize("to", ["f32", "i64", "i16", "i8", "u8", "u16", "bool"])
def test_casts(source: str, to: str) -> None:
    n = 21
    a = te.placeholder((n,), source, "A")
    program = te.create_program("f", [a], [te.compute((n,), lambda i: a[i].cast(to), name="C")])
    x = values(source, n, 3)
    if source == "f32":
        x = np.abs(x) * 40 % 120  # beyond a type, casts are undefined
    got, want = np.zeros(n, dtype(to).numpy()), np.zeros(n, dtype(to).numpy())
    run(program, [x, want])
    run_words(program, x, got)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", ["i8", "u8", "u16", "i16"])
@pytest.mark.parametrize("name", ["neg", "abs", "bit_not", "shift_left", "shift_right", "bit_xor", "sign"])
def test_functions_of_small_integers(kind: str, name: str) -> None:
    n = 26
    a = te.placeholder((n,), kind, "A")

    def value(i: Expr) -> Expr:
        x = a[i]
        other = (x.cast("u8") % 7).cast(kind) if name.startswith("shift") else a[n - 1 - i]
        return Call(name, (x, other) if name.startswith(("shift", "bit_x")) else (x,), x.dtype)

    program = te.create_program("f", [a], [te.compute((n,), value, name="C")])
    x = values(kind, n, 5)
    x[0] = dtype(kind).range()[0]
    got, want = np.zeros(n, x.dtype), np.zeros(n, x.dtype)
    run(program, [x, want])
    run_words(program, x, got)
    np.testing.assert_array_equal(got, want)


def test_masks_weights_and_private_memory() -> None:
    """A mask among the weights, a sum of bytes kept in a thread's own memory, a table of 64-bit integers."""
    m, w, k = te.placeholder((6, 9), "bool", "M"), te.placeholder((9,), "f32", "W"), te.placeholder((6, 9), "u8", "K")
    r = te.reduce_axis(9)
    table = te.const_table(np.arange(6) - 3, "i64")
    total = te.compute((6,), lambda i: te.sum(te.select(m[i, r], w[r], 0.0) + k[i, r].cast("f32"), axis=[r]), name="total")
    program = te.create_program("f", [m, w, k], [te.compute((6,), lambda i: total[i] * table[i].cast("f32"), name="out")],
                                weights={"M", "W"})
    mask, row, bytes_ = values("bool", 54, 0).reshape(6, 9), values("f32", 9, 1), values("u8", 54, 2).reshape(6, 9)
    got, want = np.zeros(6, np.float32), np.zeros(6, np.float32)
    run(program, [mask, row, bytes_, want])
    run_words(program, mask, row, bytes_, got)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_weight_in_several_pieces() -> None:
    """A table of 10 KiB where 4 KiB can be bound."""
    w, i = te.placeholder((320, 8), name="W"), te.placeholder((9,), "i64", "I")
    program = te.create_program("f", [w, i], [te.compute((9, 8), lambda r, c: w[i[r], c], name="out")], weights={"W"})
    (kernel,) = kernels(program)
    assert kernel.attr("arguments") == "3aa"
    table, rows = values("f32", 2560, 0).reshape(320, 8), np.array([0, 319, 127, 128, 129, 255, 256, 5, 160])
    got = np.zeros((9, 8), np.float32)
    run_words(program, table, rows, got)
    np.testing.assert_array_equal(got, table[rows])


def test_ends_of_wide_integers_are_those_of_narrow_ones() -> None:
    a = te.placeholder((5, 8), "i64", "A")
    r = te.reduce_axis(8)
    program = te.create_program("f", [a], [te.compute((5,), lambda i: te.min(a[i, r], axis=[r]), name="C")])
    x = np.random.default_rng(0).integers(-2**31, 2**31, (5, 8))
    got = np.zeros(5, np.int64)
    run_words(program, x, got)
    np.testing.assert_array_equal(got, x.min(1))


def test_what_no_word_holds_is_refused() -> None:
    a = te.placeholder((4,), "i64", "A")
    with pytest.raises(UserError, match="device-integers"):
        kernels(te.create_program("f", [a], [te.compute((4,), lambda i: a[i] + 2**40, name="C")]))
    b = te.placeholder((4,), "f16", "B")
    with pytest.raises(UserError, match="device-dtype"):
        kernels(te.create_program("f", [b], [te.compute((4,), lambda i: b[i], name="C")]))


def test_weights_that_need_too_many_bindings_are_refused() -> None:
    w = [te.placeholder((80, 16), "f32", f"w{k}") for k in range(5)]
    with pytest.raises(UserError, match=r"kernel-limit\].*25600 bytes; webgpu binds 8 ranges of 4096 bytes"):
        kernels(te.create_program("f", w, [te.compute((16,), lambda i: w[0][7, i] + w[1][0, i] + w[2][3, i] + w[3][5, i]
                                                      + w[4][7, i], name="C")], weights={f"w{k}" for k in range(5)}))
