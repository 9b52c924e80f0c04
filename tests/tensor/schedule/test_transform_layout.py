"""transform_layout: what it makes, that it computes the same, prepack programs, what it refuses."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from tests.tensor.schedule.refusals import body, check, check_sizes, refused
from tests.tensor.schedule.schedule_operators import arguments, batched_matmul, conv2d, matmul_relu, results, two_layers
from tilewright.core.dtype import i32
from tilewright.core.node import alpha_equal
from tilewright.loop.interpret import Interpreter
from tilewright.loop.ir import Allocate, Buffer, Program, Var, as_int, const
from tilewright.loop.lower.pipeline import lower
from tilewright.loop.printer import print_program
from tilewright.loop.verify import verify
from tilewright.tensor import compute as te
from tilewright.tensor.compute import compute, create_program, placeholder, reduce_axis
from tilewright.tensor.schedule.index_map import IndexMap
from tilewright.tensor.schedule.schedule import Schedule, replay
from tilewright.tensor.schedule.state import iterate

Map = Callable[..., Sequence[Any]]


def product(n: int = 7, k: int = 6) -> Program:
    """A product whose right side is a weight."""
    a, b = placeholder((5, k), "i32", "A"), placeholder((k, n), "i32", "W")
    r = reduce_axis(k, "k")
    c = compute((5, n), lambda i, j: te.sum(a[i, r] * b[r, j], axis=[r]), name="C")
    return create_program("product", [a, b], [c], weights=["W"])


def shape_of(b: Any) -> list[int | None]:
    return [as_int(d) for d in b.shape]


def pack(sch: Schedule, name: str, data: Any) -> Any:
    """A weight as the prepack program lays it out, in memory full of noise."""
    program = sch.prepacks[name]
    assert verify(program) == []
    source, target = program.params
    assert isinstance(source, Buffer) and isinstance(target, Buffer)
    out = np.full(shape_of(target), 77, target.dtype.numpy())  # type: ignore[arg-type]
    Interpreter(program).run([data, out])
    return out


def check_packed(sch: Schedule, original: Program) -> None:
    """The scheduled program, given packed weights, computes what the original does; and so does the replayed one."""
    assert verify(sch.program) == []
    given = arguments(original)
    expected = results(original, given)[-1]
    again = replay(sch.trace, original)
    assert alpha_equal(again.program, sch.program)
    for s in (sch, again):
        args = [pack(s, p.name, x) if p.name in s.prepacks else x.copy()
                for p, x in zip(original.params, given, strict=True)]
        Interpreter(s.program).run(args)
        assert np.array_equal(args[-1], expected)


# ---- tensors between blocks --------------------------------------------------------------------------------------------
def test_transform_layout() -> None:
    program = matmul_relu(6, 8, 4)
    sch = Schedule(program)
    sch.transform_layout(sch.block("C"), "C", lambda i, j: [j // 4, i, j % 4])
    assert body(sch) == """
alloc C: i32[2, 6, 4]
for i0 in 0..6:
    for j1 in 0..8:
        for k in 0..4:
            block C(i0_1: spatial 6 = i0, j1_1: spatial 8 = j1, k_1: reduce 4 = k):
                init:
                    C[j1_1 // 4, i0_1, j1_1 % 4] = 0:i32
                body:
                    C[j1_1 // 4, i0_1, j1_1 % 4] = C[j1_1 // 4, i0_1, j1_1 % 4] + A[i0_1, k_1] * B[k_1, j1_1]
for i0_2 in 0..6:
    for j1_2 in 0..8:
        block D(i0_3: spatial 6 = i0_2, j1_3: spatial 8 = j1_2):
            D[i0_3, j1_3] = max(C[j1_3 // 4, i0_3, j1_3 % 4] + bias[j1_3], 0:i32)""".strip("\n")
    check(sch, program)


@pytest.mark.parametrize("index_map", [
    lambda i, j: [j, i], lambda i, j: [i * 6 + j], lambda i, j: [i // 3, j // 4, i % 3, j % 4], lambda i, j: [i, j + 2],
    lambda i, j: [(i * 6 + j) // 7, (i * 6 + j) % 7], lambda i, j: [0, i, 0, j], lambda i, j: [i * 3, j * 2],
    lambda i, j: [4 - i, j], lambda *i: [*i[1:], i[0]]])
def test_layouts_compute_the_same(index_map: Map) -> None:
    program = two_layers()
    sch = Schedule(program)
    sch.transform_layout(sch.block("hidden"), "hidden", index_map)
    sch.transform_layout(sch.block("y"), "act", index_map)
    check(sch, program)


def test_a_layout_after_other_primitives() -> None:
    program = conv2d(5, 2, 3)
    sch = Schedule(program)
    loops = sch.loops(sch.block("conv"))
    sch.decompose_padding(sch.block("pad"))
    sch.split(loops[3], [None, 4])
    sch.transform_layout(sch.block("conv"), "pad", lambda n, c, h, w: [n, h, w, c])
    local = sch.cache_write(sch.block("conv"), 0, "local")
    sch.transform_layout(local, next(b.name for b in _allocated(sch) if b.name != "pad"),
                         lambda n, c, h, w: [n, c // 2, h, w, c % 2])
    check(sch, program)


def _allocated(sch: Schedule) -> list[Buffer]:
    return [s.buffer for s in iterate(sch.program.body) if isinstance(s, Allocate)]


@pytest.mark.parametrize("n", [1, 4, 7])
def test_a_layout_of_symbolic_size(n: int) -> None:
    size = Var("n")
    a = placeholder((size, 6), "i32", "A")
    b = compute((size, 6), lambda i, j: a[i, j] + const(1, i32), name="B")
    c = compute((size, 6), lambda i, j: b[size - 1 - i, j] * const(2, i32), name="C")
    program = create_program("symbolic", [a], [c])
    sch = Schedule(program)
    sch.transform_layout(sch.block("B"), "B", lambda i, j: [i // 4, j, i % 4])
    assert "alloc B: i32[(n + 3) // 4, 6, 4]" in body(sch)
    check_sizes(sch, program, {"n": n})
    sch = Schedule(program)
    sch.transform_layout(sch.block("B"), "B", lambda i, j: [j, i])
    sch.compute_inline(sch.block("B"))
    check_sizes(sch, program, {"n": n})


# ---- weights -----------------------------------------------------------------------------------------------------------
def test_prepack_program() -> None:
    sch = Schedule(product(8, 6))
    sch.transform_layout(sch.block("C"), "W", lambda k, n: [n // 4, k, n % 4], 0)
    assert str(sch.prepacks["W"]).strip("\n") == """
program pack_W(source: i32[6, 8], packed: i32[2, 6, 4]) {noalias=True, weights=()}:
    for i0 in 0..6:
        for i1 in 0..8:
            block pack(v0: spatial 6 = i0, v1: spatial 8 = i1):
                packed[v1 // 4, v0, v1 % 4] = source[v0, v1]""".strip("\n")
    check_packed(sch, product(8, 6))


def test_a_weight_that_does_not_fill_its_panels_is_padded() -> None:
    program = product(7, 6)
    sch = Schedule(program)
    sch.transform_layout(sch.block("C"), "W", lambda k, n: [n // 4, k // 4, k % 4, n % 4], pad_value=9)
    w = arguments(program)[1]
    packed = pack(sch, "W", w)
    padded = np.full((8, 8), 9, np.int32)
    padded[:6, :7] = w
    assert np.array_equal(packed, padded.reshape(2, 4, 2, 4).transpose(2, 0, 1, 3))
    check_packed(sch, program)


def test_without_a_value_the_padding_is_left_alone() -> None:
    sch = Schedule(product(7, 6))
    sch.transform_layout(sch.block("C"), "W", lambda k, n: [n // 4, k, n % 4])
    assert (pack(sch, "W", np.zeros((6, 7), np.int32))[1, :, 3] == 77).all()


def test_a_weight_laid_out_twice_is_packed_once() -> None:
    program = product(7, 6)
    sch = Schedule(program)
    sch.transform_layout(sch.block("C"), "W", lambda k, n: [n // 4, k, n % 4], pad_value=5)
    sch.transform_layout(sch.block("C"), "W", lambda o, k, n: [k // 2, o, k % 2, n])
    packed = pack(sch, "W", arguments(program)[1])
    assert packed.shape == (3, 2, 2, 4) and (packed[:, 1, :, 3] == 5).all()
    check_packed(sch, program)


def test_a_weight_of_two_blocks() -> None:
    a, w = placeholder((3, 4), "i32", "A"), placeholder((4, 4), "i32", "W")
    r, q = reduce_axis(4), reduce_axis(4)
    b = compute((3, 4), lambda i, j: te.sum(a[i, r] * w[r, j], axis=[r]), name="B")
    c = compute((3, 4), lambda i, j: te.sum(b[i, q] * w[j, q], axis=[q]), name="C")
    program = create_program("twice", [a, w], [c], weights=["W"])
    sch = Schedule(program)
    sch.transform_layout(sch.block("B"), "W", lambda k, n: [n // 2, k, n % 2])
    check_packed(sch, program)


def test_a_convolution_weight_in_blocks() -> None:
    x, w = placeholder((1, 5, 4, 4), "i32", "X"), placeholder((6, 5, 3, 3), "i32", "W")
    ic, kh, kw = reduce_axis(5, "ic"), reduce_axis(3, "kh"), reduce_axis(3, "kw")
    y = compute((1, 6, 2, 2), lambda n, o, i, j: te.sum(x[n, ic, i + kh.var, j + kw.var] * w[o, ic, kh, kw],
                                                        axis=[ic, kh, kw]), name="Y")
    program = create_program("conv", [x, w], [y], weights=["W"])
    sch = Schedule(program)
    loops = sch.loops(sch.block("Y"))
    sch.transform_layout(sch.block("Y"), "W", lambda o, i, h, v: [o // 4, i // 4, h, v, i % 4, o % 4], 0)
    o0, o1 = sch.split(loops[1], [None, 4])
    sch.reorder(o0, *loops[2:], o1)
    check_packed(sch, program)


def test_the_caller_may_allow_its_interface_to_change() -> None:
    program = batched_matmul()
    sch = Schedule(program)
    with refused(sch, "A is an input or output: its layout is the caller's", "block C("):
        sch.transform_layout(sch.block("C"), "A", lambda n, i, j: [i, n, j])
    sch.transform_layout(sch.block("C"), "A", lambda n, i, j: [i, n, j], allow_interface=True)
    assert not sch.prepacks
    given = arguments(program)
    expected = results(program, given)[-1]
    got = results(sch.program, [np.ascontiguousarray(given[0].transpose(1, 0, 2)), *given[1:]])[-1]
    assert np.array_equal(got, expected)


# ---- refusals ----------------------------------------------------------------------------------------------------------
def test_transform_layout_refuses() -> None:
    sch = Schedule(matmul_relu(6, 8, 4))
    c = sch.block("C")
    with refused(sch, "block C uses no buffer 'X'", "block C("):
        sch.transform_layout(c, "X", lambda i: [i])
    for index_map in (lambda i, j: [i + j], lambda i, j: [i], lambda i, j: [i, j // 2], lambda i, j: [i * 7 + j],
                      lambda i, j: [i % 4, j]):
        with refused(sch, "is not shown to be one to one", "block C("):
            sch.transform_layout(c, "C", index_map)
    with refused(sch, "may be negative", "block C("):
        sch.transform_layout(c, "C", lambda i, j: [i - 1, j])
    with refused(sch, "the map does not take 2 indices"):
        sch.transform_layout(c, "C", lambda i, j, k: [i, j, k])
    with refused(sch, "the map must return a list of indices"):
        sch.transform_layout(c, "C", lambda i, j: i * 8 + j)  # type: ignore[arg-type,return-value]
    stray = Var("stray")
    with refused(sch, "the map uses stray, which is no index and no size of the program"):
        sch.transform_layout(c, "C", lambda i, j: [i, j + stray])
    with refused(sch, "its layout is the caller's"):
        sch.transform_layout(sch.block("D"), "D", lambda i, j: [j, i])


def test_a_weight_of_symbolic_size_cannot_be_packed() -> None:
    n = Var("n")
    a = placeholder((n,), "i32", "A")
    program = create_program("p", [a], [compute((n,), lambda i: a[i], name="B")], weights=["A"])
    sch = Schedule(program)
    with refused(sch, "the weight A has a symbolic size"):
        sch.transform_layout(sch.block("B"), "A", lambda i: [i // 2, i % 2])


# ---- maps --------------------------------------------------------------------------------------------------------------
def test_index_maps_print_and_compose() -> None:
    m = IndexMap.of(lambda n, k: [n // 16, k, n % 16], 2)
    assert repr(m) == "(n, k) -> (n // 16, k, n % 16)"
    assert repr(IndexMap.of(lambda *i: [i[1], i[0]], 2)) == "(x0, x1) -> (x1, x0)"
    then = IndexMap.of(lambda a, b, c: [b, a, c], 3)
    assert repr(m.then(then)) == "(n, k) -> (k, n // 16, n % 16)"
    i = Var("i")
    assert list(map(repr, m(i + 1, 2))) == ["(i + 1) // 16", "2", "(i + 1) % 16"]


def test_the_trace_shows_the_map_and_replays_it() -> None:
    sch = Schedule(product())
    sch.transform_layout(sch.block("C"), "W", lambda k, n: [n // 4, k, n % 4], 0)
    assert str(sch.trace).split("\n")[-1] == (
        "transform_layout(h0, 'W', (k, n) -> (n // 4, k, n % 4), pad_value=0, allow_interface=False)")
    again = replay(sch.trace, product())
    assert alpha_equal(again.program, sch.program) and alpha_equal(again.prepacks["W"], sch.prepacks["W"])


def test_the_lowered_kernel_reads_what_the_lowered_prepack_wrote() -> None:
    program = product(7, 6)
    sch = Schedule(program)
    i, j, k = sch.loops(sch.block("C"))
    sch.transform_layout(sch.block("C"), "W", lambda k, n: [n // 4, k, n % 4], pad_value=0)
    j0, j1 = sch.split(j, [None, 4])
    sch.reorder(j0, i, k, j1)
    sch.vectorize(j1)
    sch.parallel(j0)
    given = arguments(program)
    source, target = sch.prepacks["W"].params
    assert isinstance(source, Buffer) and isinstance(target, Buffer)
    packed = np.full(shape_of(target), 77, np.int32)  # type: ignore[arg-type]
    Interpreter(lower(sch.prepacks["W"])).run([given[1], packed])
    for order in ("forward", "reverse"):
        args = [given[0], packed, given[2].copy()]
        Interpreter(lower(sch.program)).run(args, order=order)  # type: ignore[arg-type]
        assert np.array_equal(args[-1], results(program, given)[-1])


def test_guards_of_a_padded_weight_are_dropped():
    """A product over 5 of 8 columns: the packed weight holds the zeros that the guard gave."""
    a, w = placeholder((3, 4), "i32", "a"), placeholder((4, 5), "i32", "w")
    k = reduce_axis(4, "k")
    c = compute((3, 2, 4), lambda i, no, ni: te.sum(
        a[i, k] * te.if_then_else(no * 4 + ni < 5, w[k.var, no * 4 + ni], 0), axis=[k]), name="c")
    program = create_program("partial", [a, w], [c], weights=["w"])
    sch = Schedule(program)
    sch.transform_layout(sch.block("c"), "w", lambda k, n: [n // 8, k, n % 8], pad_value=0)
    assert "guard" not in print_program(sch.program)
    rng = np.random.default_rng(0)
    av, wv = rng.integers(-9, 9, (3, 4), np.int32), rng.integers(-9, 9, (4, 5), np.int32)
    packed = np.full((1, 4, 8), 77, np.int32)
    Interpreter(sch.prepacks["w"]).run([wv, packed])
    out = np.zeros((3, 2, 4), np.int32)
    Interpreter(sch.program).run([av, packed, out])
    assert (out.reshape(3, 8)[:, :5] == av @ wv).all() and (out.reshape(3, 8)[:, 5:] == 0).all()


def test_a_guard_that_says_more_stays():
    a, w = placeholder((3, 4), "i32", "a"), placeholder((4, 5), "i32", "w")
    k = reduce_axis(4, "k")
    c = compute((3, 5), lambda i, n: te.sum(a[i, k] * te.if_then_else(n < 3, w[k.var, n], 0), axis=[k]), name="c")
    sch = Schedule(create_program("partial", [a, w], [c], weights=["w"]))
    sch.transform_layout(sch.block("c"), "w", lambda k, n: [n // 8, k, n % 8], pad_value=0)
    assert "guard" in print_program(sch.program)
