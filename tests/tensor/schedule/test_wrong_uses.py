"""Wrong uses of every primitive, three at least of each: an error says why and shows the program, and nothing changes."""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.tensor.schedule.refusals import refused
from tests.tensor.schedule.test_online_softmax import attention
from tests.tensor.schedule.test_pipelines import tiled
from tilewright import te
from tilewright.core.dtype import i64
from tilewright.loop.ir import Le, Span, Var, const
from tilewright.loop.tensor_intrinsics import tensor_intrinsic
from tilewright.tensor.schedule.primitives import WHERE
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef
from tilewright.tensor.schedule.trace import Trace

COPY8 = tensor_intrinsic("""
    program wrong_uses_copy8(c: f32[8], a: f32[8]):
        for i in 0..8:
            c[i] = a[i]
""", emit={})
N = Var("n", i64, Span(1))


class Product:
    """C = A · B, then D = C + 1: `s` and the handles of its loops and blocks."""

    def __init__(self, n: Any = 8) -> None:
        a, b, k = te.placeholder((n, n), name="A"), te.placeholder((n, n), name="B"), te.reduce_axis(n, "k")
        c = te.compute((n, n), lambda i, j: te.sum(a[i, k] * b[k, j], axis=[k]), "C")
        d = te.compute((n, n), lambda i, j: c[i, j] + 1.0, "D")
        self.s = Schedule(te.create_program("product", [a, b], [d]))
        self.c, self.d = self.s.block("C"), self.s.block("D")
        self.i, self.j, self.k = self.s.loops(self.c)
        self.x, self.y = self.s.loops(self.d)

    def also(self, *steps: Callable[[Product], object]) -> Product:
        for step in steps:
            step(self)
        return self


def split_away(p: Product) -> None:
    """Loop i is two loops now."""
    p.s.split(p.i, [None, 2])


def in_parallel(p: Product) -> None:
    p.s.parallel(p.i)


def in_lanes(p: Product) -> None:
    p.s.vectorize(p.j)


def outside(p: Product) -> None:
    """The sum runs around the rows."""
    p.s.reorder(p.k, p.i)


def bound(p: Product) -> None:
    p.s.bind(p.i, "threadIdx.x")


def started(p: Product) -> None:
    p.s.decompose_reduction(p.c, p.k)


def followed(p: Product) -> None:
    """D is computed in loop i of C."""
    p.s.reverse_compute_at(p.d, p.i)


def merged() -> Product:
    """D is in C: the sum starts at 1."""
    return Product().also(lambda p: p.s.reverse_compute_inline(p.d))


def symbolic() -> Product:
    return Product(N)


class Weighted:
    """C = A + W, a weight."""

    def __init__(self) -> None:
        a, w = te.placeholder((8,), name="A"), te.placeholder((8,), name="W")
        c = te.compute((8,), lambda i: a[i] + w[i], "C")
        self.program = te.create_program("weighted", [a, w], [c], weights={"W"})
        self.s = Schedule(self.program)

    def laid_out(self) -> Trace:
        other = Schedule(self.program)
        other.transform_layout(other.block("C"), "W", lambda i: [i // 2, i % 2])
        return other.trace


class Padded:
    """P = A with a border, C its rows' sums with the one before, of weight W in a table beside it."""

    def __init__(self) -> None:
        a = te.placeholder((8,), name="A")
        p = te.compute((8,), lambda i: te.if_then_else((i >= 1) & (i < 7), a[i], 0.0), "P")
        r = te.reduce_axis(2, "r")
        q = te.compute((7,), lambda i: te.sum(p[i + r.var], axis=[r]), "Q")
        e = te.compute((7,), lambda i: te.if_then_else(i.eq(3), q[i], 0.0), "E")
        f = te.compute((7,), lambda i: te.if_then_else((i >= 5) & (i < 3), q[i], 0.0), "F")
        self.s = Schedule(te.create_program("padded", [a], [e, f]))
        self.p, self.q, self.e, self.f = (self.s.block(n) for n in "PQEF")


class Several:
    """B is read by a gather, by its mirror image and by half; B itself is a table of places that data name."""

    def __init__(self) -> None:
        a, at = te.placeholder((8,), name="A"), te.placeholder((8,), "i64", "at")
        b = te.compute((8,), lambda i: a[i] * 2.0, "B")
        g = te.compute((8,), lambda i: b[at[i]], "G")
        m = te.compute((4,), lambda i: b[i] + b[7 - i], "M")
        self.s = Schedule(te.create_program("several", [a, at], [g, m]))
        self.b, self.g, self.m = (self.s.block(n) for n in "BGM")


class Attention:
    """A softmax of rows times V, with variations that are none."""

    def __init__(self, **kinds: str) -> None:
        self.s = Schedule(attention(**kinds))
        self.o = self.s.block("O")


class Diagonal:
    """A recurrence that reads across its columns."""

    def __init__(self) -> None:
        h0 = te.placeholder((4,), name="h0")

        def step(t: Any, h: Any) -> Any:
            return te.compute((4,), lambda i: te.if_then_else(i < 3, h[te.minimum(i + 1, 3)], 0.0), name="y")
        self.s = Schedule(te.create_program("diagonal", [h0], [te.scan(4, [h0], step, "y")]))
        self.t, self.i = self.s.loops(self.s.block("y"))


class Steps:
    """A recurrence of two stages: each step reads what the one before has made."""

    def __init__(self) -> None:
        h0 = te.placeholder((4,), name="h0")

        def step(t: Any, h: Any) -> Any:
            twice = te.compute((4,), lambda i: h[i] * 2.0, name="twice")
            return te.compute((4,), lambda i: twice[i] + 1.0, name="y")
        self.s = Schedule(te.create_program("steps", [h0], [te.scan(4, [h0], step, "y")]))
        self.t = self.s.loops(self.s.block("y"))[0]


class Tiled:
    """A product whose operands are copied in each step of its reduction's outer loop."""

    def __init__(self) -> None:
        self.s, self.k, (self.a, self.b) = tiled(Product().s.program)
        self.c, self.d = self.s.block("C"), self.s.block("D")


def twice_cut(p: Product) -> None:
    """The rows of C in tiles that do not divide them."""
    p.s.split(p.i, [None, 3])


Case = tuple[str, Callable[[], Any], Callable[[Any], object], str]
CASES: list[Case] = [
    # ---- looking
    ("block", Product, lambda p: p.s.block("X"), "no block 'X'"),
    ("block", Product, lambda p: p.s.block(""), "no block ''"),
    ("block", merged,
     lambda p: p.s.block("D"), "no block 'D'"),
    ("loops", Product, lambda p: p.s.loops(BlockRef("X")), "no block 'X'"),
    ("loops", Product, lambda p: p.s.loops(BlockRef("c")), "no block 'c'"),
    ("loops", merged, lambda p: p.s.loops(p.d), "no block 'D'"),
    # ---- loops
    ("split", Product, lambda p: p.s.split(p.i, [2, 3]), "do not cover"),
    ("split", Product, lambda p: p.s.split(p.i, [None, None]), "at most one of them None"),
    ("split", Product, lambda p: p.s.split(p.i, [None, 0]), "is not positive"),
    ("split", Product, lambda p: p.s.split(p.i, [None, p.j]), "uses j1"),
    ("split", lambda: Product().also(in_parallel), lambda p: p.s.split(p.i, [None, 2]), "is parallel: split before"),
    ("split", lambda: Product().also(split_away), lambda p: p.s.split(p.i, [None, 2]), "no longer in the program"),
    ("fuse", Product, lambda p: p.s.fuse(p.j, p.i), "is not directly inside"),
    ("fuse", Product, lambda p: p.s.fuse(), "at least one loop"),
    ("fuse", Product, lambda p: p.s.fuse(p.i, p.k), "is not directly inside"),
    ("fuse", lambda: Product().also(in_parallel), lambda p: p.s.fuse(p.i, p.j), "is parallel: fuse before"),
    ("reorder", Product, lambda p: p.s.reorder(p.i, p.i), "name each loop once"),
    ("reorder", Product, lambda p: p.s.reorder(p.i, p.x), "is not inside loop"),
    ("reorder", lambda: Product().also(followed), lambda p: p.s.reorder(p.j, p.i), "not perfectly nested"),
    ("reorder", Diagonal, lambda p: p.s.reorder(p.i, p.t), "other instances of it write"),
    ("tile", lambda: Product().also(split_away), lambda p: p.s.tile(p.i, p.j, 2, 2), "no longer in the program"),
    ("tile", Product, lambda p: p.s.tile(p.i, p.x, 2, 2), "is not inside loop"),
    ("tile", Product, lambda p: p.s.tile(p.i, p.j, 0, 2), "is not positive"),
    ("reschedule", Product, lambda p: p.s.reschedule([p.i, p.j], lambda i, j: [i, i + 1]), "does not tell"),
    ("reschedule", Product, lambda p: p.s.reschedule([p.i, p.j], lambda i, j: [i + j, i - j]), "one-to-one"),
    ("reschedule", Product, lambda p: p.s.reschedule([p.i, p.j], lambda i: [i]), "does not take 2"),
    ("reschedule", Diagonal, lambda p: p.s.reschedule([p.t, p.i], lambda t, i: [i, t]), "would come second"),
    ("loop_partition", Product, lambda p: p.s.loop_partition(p.i, []), "a point at least"),
    ("loop_partition", Product, lambda p: p.s.loop_partition(p.i, [6, 2]), "not in order"),
    ("loop_partition", Product, lambda p: p.s.loop_partition(p.i, [9]), "not in order"),
    ("loop_partition", lambda: Product().also(in_parallel), lambda p: p.s.loop_partition(p.i, [2]), "partition before"),
    ("distribute", Product, lambda p: p.s.distribute(p.i), "single statement"),
    ("distribute", Product, lambda p: p.s.distribute(p.x), "single statement"),
    ("distribute", Steps, lambda p: p.s.distribute(p.t), "other steps of block twice may touch"),
    ("add_unit_loop", Product, lambda p: p.s.add_unit_loop(BlockRef("X")), "no block 'X'"),
    ("add_unit_loop", merged, lambda p: p.s.add_unit_loop(p.d), "no block 'D'"),
    ("add_unit_loop", Product, lambda p: p.s.add_unit_loop(BlockRef("A")), "no block 'A'"),
    # ---- kinds
    ("unroll", symbolic, lambda p: p.s.unroll(p.i), "no constant"),
    ("unroll", lambda: Product(2048), lambda p: p.s.unroll(p.i), "no constant up to 1024"),
    ("unroll", lambda: Product().also(in_parallel), lambda p: p.s.unroll(p.i), "is parallel already"),
    ("vectorize", symbolic, lambda p: p.s.vectorize(p.j), "no constant"),
    ("vectorize", Product, lambda p: p.s.vectorize(p.k), "reduces over loop k"),
    ("vectorize", lambda: Product().also(in_lanes), lambda p: p.s.vectorize(p.i), "inside it is vectorized"),
    ("parallel", Product, lambda p: p.s.parallel(p.k), "reduces over loop k"),
    ("parallel", lambda: Product().also(in_parallel), lambda p: p.s.parallel(p.i), "is parallel already"),
    ("parallel", lambda: Product().also(lambda p: p.s.vectorize(p.x)), lambda p: p.s.parallel(p.y), "inside a vectorized"),
    ("parallel", Diagonal, lambda p: p.s.parallel(p.t), "may touch the same elements of y"),
    ("unsafe_parallel", Product, lambda p: p.s.unsafe_parallel(p.i), "are proved to be independent"),
    ("unsafe_parallel", lambda: Product().also(in_parallel), lambda p: p.s.unsafe_parallel(p.i), "is parallel already"),
    ("unsafe_parallel", lambda: Product().also(split_away), lambda p: p.s.unsafe_parallel(p.i), "no longer"),
    ("annotate", Product, lambda p: p.s.annotate(p.i, "x", [1]), "is no plain data"),
    ("annotate", Product, lambda p: p.s.annotate(p.c, "x", {}), "is no plain data"),
    ("annotate", lambda: Product().also(split_away), lambda p: p.s.annotate(p.i, "x", 1), "no longer"),
    ("bind", Product, lambda p: p.s.bind(p.i, "threadIdx.w"), "no thread axis"),
    ("bind", Product, lambda p: p.s.bind(p.k, "threadIdx.x"), "reduces over loop k"),
    ("bind", lambda: Product().also(bound), lambda p: p.s.bind(p.j, "threadIdx.x"), "is bound to threadIdx.x already"),
    ("bind", lambda: Product().also(bound), lambda p: p.s.bind(p.j, "blockIdx.x"), "blocks start together"),
    ("unsafe_bind", Product, lambda p: p.s.unsafe_bind(p.i, "threadIdx.x"), "are proved to be independent"),
    ("unsafe_bind", Product, lambda p: p.s.unsafe_bind(p.k, "threadIdx.w"), "no thread axis"),
    ("unsafe_bind", lambda: Product().also(bound), lambda p: p.s.unsafe_bind(p.i, "threadIdx.y"), "is threadIdx.x already"),
    # ---- blocks
    ("compute_at", Product, lambda p: p.s.compute_at(p.d, p.i), "no block reads"),
    ("compute_at", Product, lambda p: p.s.compute_at(p.c, p.i), "no consumer of it is under"),
    ("compute_at", Several, lambda p: p.s.compute_at(p.b, p.s.loops(p.m)[0]), "is not under loop"),
    ("reverse_compute_at", Product, lambda p: p.s.reverse_compute_at(p.c, p.x), "nothing under loop"),
    ("reverse_compute_at", Product, lambda p: p.s.reverse_compute_at(p.d, p.k), "reduces over loop k"),
    ("reverse_compute_at", Several, lambda p: p.s.reverse_compute_at(p.m, p.s.loops(p.b)[0]), "may not have computed"),
    ("compute_inline", Product, lambda p: p.s.compute_inline(p.c), "is not a single store"),
    ("compute_inline", Product, lambda p: p.s.compute_inline(p.d), "is a parameter"),
    ("compute_inline", Diagonal, lambda p: p.s.compute_inline(BlockRef("y")), "reads what it writes"),
    ("reverse_compute_inline", Product, lambda p: p.s.reverse_compute_inline(p.c), "is not a single store"),
    ("reverse_compute_inline", Several, lambda p: p.s.reverse_compute_inline(p.m), "other writers or readers"),
    ("reverse_compute_inline", Several, lambda p: p.s.reverse_compute_inline(p.b), "reads nothing that another"),
    ("cache_read", Product, lambda p: p.s.cache_read(p.c, "X", "local"), "no single buffer 'X'"),
    ("cache_read", Product, lambda p: p.s.cache_read(p.c, 2, "local"), "no single buffer 2"),
    ("cache_read", Product, lambda p: p.s.cache_read(p.c, "A", "tape"), "no memory 'tape'"),
    ("cache_write", Product, lambda p: p.s.cache_write(p.c, 1, "local"), "no single buffer 1"),
    ("cache_write", Product, lambda p: p.s.cache_write(p.c, 0, "tape"), "no memory 'tape'"),
    ("cache_write", lambda: Product().also(started), lambda p: p.s.cache_write(p.c, 0, "local"), "block initialises"),
    ("set_scope", Product, lambda p: p.s.set_scope(p.d, 0, "local"), "is a parameter"),
    ("set_scope", Product, lambda p: p.s.set_scope(p.c, 1, "local"), "no single buffer 1"),
    ("set_scope", Product, lambda p: p.s.set_scope(p.c, 0, "tape"), "no memory 'tape'"),
    ("decompose_reduction", Product, lambda p: p.s.decompose_reduction(p.d, p.x), "no initialisation"),
    ("decompose_reduction", Product, lambda p: p.s.decompose_reduction(p.c, p.x), "is not around block C"),
    ("decompose_reduction", lambda: Product().also(outside), lambda p: p.s.decompose_reduction(p.c, p.i), "outside of loop"),
    ("decompose_padding", Padded, lambda p: p.s.decompose_padding(p.q), "is not a single store"),
    ("decompose_padding", Padded, lambda p: p.s.decompose_padding(p.e), "is no comparison"),
    ("decompose_padding", Padded, lambda p: p.s.decompose_padding(p.f), "may be empty"),
    ("decompose_padding", Several, lambda p: p.s.decompose_padding(p.b), "is not a choice"),
    ("rfactor", Product, lambda p: p.s.rfactor(p.c, p.i), "does not reduce over loop"),
    ("rfactor", Product, lambda p: p.s.rfactor(p.c, p.k, 3), "axis 3 is not in"),
    ("rfactor", Product, lambda p: p.s.rfactor(p.d, p.x), "is no reduction"),
    ("rfactor", lambda: Product().also(started), lambda p: p.s.rfactor(p.c, p.k), "was it decomposed?"),
    ("split_axis", Product, lambda p: p.s.apply("split_axis", p.c, 0, 3), "does not divide"),
    ("split_axis", Product, lambda p: p.s.apply("split_axis", p.c, 3, 2), "none is number 3"),
    ("split_axis", symbolic, lambda p: p.s.apply("split_axis", p.c, 0, 2), "does not divide"),
    ("reindex", Product, lambda p: p.s.reindex(p.c, "X", [0, 2]), "does not read X at one place"),
    ("reindex", Product, lambda p: p.s.reindex(p.c, "A", [0, 1]), "in terms of the variables [0, 2], not [0, 1]"),
    ("reindex", lambda: Product().also(twice_cut), lambda p: p.s.reindex(p.c, "A", [0, 2]), "reads A under a condition"),
    ("reindex", lambda: Product().also(followed), lambda p: p.s.reindex(p.d, "C", [0, 1]), "it shares a loop with what"),
    ("pad_einsum", Product, lambda p: p.s.apply("pad_einsum", p.c, [4, 4]), "a positive multiple for each"),
    ("pad_einsum", Product, lambda p: p.s.apply("pad_einsum", p.c, [4, 4, 4]), "such multiples already"),
    ("pad_einsum", Product, lambda p: p.s.apply("pad_einsum", p.d, [3, 3]), "is no reduction"),
    ("pad_einsum", lambda: Product().also(split_away), lambda p: p.s.apply("pad_einsum", p.c, [3, 3, 3]), "pad before"),
    ("online_softmax", Product, lambda p: p.s.online_softmax(p.c, 2, 2), "weights of a softmax"),
    ("online_softmax", Product, lambda p: p.s.online_softmax(p.d, 2, 2), "no sum of products"),
    ("online_softmax", Attention, lambda p: p.s.online_softmax(p.o, 0, 4), "no tile has 0 rows"),
    ("online_softmax", lambda: Attention(top="X"), lambda p: p.s.online_softmax(p.o, 2, 4), "a row less its maximum"),
    ("online_softmax", lambda: Attention(also="E"), lambda p: p.s.online_softmax(p.o, 2, 4), "is read elsewhere"),
    # ---- memory
    ("prefetch", Product, lambda p: p.s.apply("prefetch", p.c, "X", p.k, p.k), "reads no buffer 'X'"),
    ("prefetch", Product, lambda p: p.s.apply("prefetch", p.c, "A", p.x, p.x), "is not around block C"),
    ("prefetch", Product, lambda p: p.s.apply("prefetch", p.c, "A", p.i, p.k), "is not around loop i0"),
    ("prefetch", Product, lambda p: p.s.apply("prefetch", p.c, "B", p.j, p.j), "is no single row"),
    ("prefetch_next", Product, lambda p: p.s.apply("prefetch_next", p.c, "X", p.k, p.i), "reads no buffer 'X'"),
    ("prefetch_next", Product, lambda p: p.s.apply("prefetch_next", p.c, "A", p.i, p.k), "is not around loop i0"),
    ("prefetch_next", Product, lambda p: p.s.apply("prefetch_next", p.c, "A", p.k, p.k), "no piece of memory"),
    ("transform_layout", Product, lambda p: p.s.transform_layout(p.c, "A", lambda i, j: [j, i]), "is an input or output"),
    ("transform_layout", Product, lambda p: p.s.transform_layout(p.c, "C", lambda i, j: [i]), "one to one"),
    ("transform_layout", Product, lambda p: p.s.transform_layout(p.c, "X", lambda i, j: [j, i]), "uses no buffer"),
    ("transform_layout", Product, lambda p: p.s.transform_layout(p.c, "C", lambda i, j: [i - 4, j]), "may be negative"),
    ("storage_align", Product, lambda p: p.s.storage_align(p.d, 0, 0, 8, 1), "is a parameter"),
    ("storage_align", Product, lambda p: p.s.storage_align(p.c, 0, 1, 8, 1), "the last dimension"),
    ("storage_align", Product, lambda p: p.s.storage_align(p.c, 0, 0, 8, 8), "no stride is 8 modulo 8"),
    ("storage_align", Product, lambda p: p.s.storage_align(p.c, 1, 0, 8, 1), "no output 1"),
    ("cooperative_fetch", Product, lambda p: p.s.apply("cooperative_fetch", p.d, [], 1), "no threads"),
    ("cooperative_fetch", Product, lambda p: p.s.apply("cooperative_fetch", p.d, [("threadIdx.x", 4)], 3), "whole number"),
    ("cooperative_fetch", lambda: Product().also(followed),
     lambda p: p.s.apply("cooperative_fetch", p.c, [("threadIdx.x", 4)], 0), "shares its loops"),
    ("double_buffer", Product, lambda p: p.s.apply("double_buffer", p.c, p.i, 1), "no output 1"),
    ("double_buffer", Product, lambda p: p.s.apply("double_buffer", p.d, p.x), "is a parameter"),
    ("double_buffer", Product, lambda p: p.s.apply("double_buffer", p.c, p.x), "is no serial loop around block C"),
    ("double_buffer", Product, lambda p: p.s.apply("double_buffer", p.c), "no serial loop holds all users"),
    ("software_pipeline", Tiled, lambda p: p.s.apply("software_pipeline", p.k, 1), "not between 2 and"),
    ("software_pipeline", Product, lambda p: p.s.apply("software_pipeline", p.i), "loads nothing"),
    ("software_pipeline", lambda: Product().also(in_parallel), lambda p: p.s.apply("software_pipeline", p.i), "is parallel"),
    ("software_pipeline", Product, lambda p: p.s.apply("software_pipeline", p.x, 9), "not between 2 and"),
    # ---- instructions
    ("blockize", lambda: Product().also(followed), lambda p: p.s.apply("blockize", p.i), "does not hold one block"),
    ("blockize", symbolic, lambda p: p.s.apply("blockize", p.j), "no constant extent"),
    ("blockize", lambda: Product().also(twice_cut), lambda p: p.s.apply("blockize", p.s.loops(p.c)[1]), "do not fit its"),
    ("blockize", lambda: Product().also(in_parallel), lambda p: p.s.apply("blockize", p.i), "is parallel"),
    ("tensorize", Product, lambda p: p.s.apply("tensorize", p.k, COPY8), "is not wrong_uses_copy8"),
    ("tensorize", Product, lambda p: p.s.apply("tensorize", p.y, COPY8), "is not wrong_uses_copy8"),
    ("tensorize", lambda: Product().also(followed), lambda p: p.s.apply("tensorize", p.i, COPY8), "does not hold one block"),
    # ---- two schedules
    ("alternative", symbolic, lambda p: p.s.alternative(Var("m", i64) < 4, p.s.trace), "no condition on the program"),
    ("alternative", symbolic, lambda p: p.s.alternative(p.s.trace.sizes[0] + 1, p.s.trace), "on the program's sizes"),
    ("alternative", Weighted, lambda p: p.s.alternative(Le(const(1), const(2)), p.laid_out()), "lay W out differently"),
    # ---- decisions
    ("sample_tile", Product, lambda p: p.s.sample_tile(p.i, [], 4), "no list of positive sizes"),
    ("sample_tile", Product, lambda p: p.s.sample_tile(p.i, [0, 4], 4), "no list of positive sizes"),
    ("sample_tile", Product, lambda p: p.s.sample_tile(p.i, [2, 4], 8), "is none of the candidates"),
    ("sample_choice", Product, lambda p: p.s.sample_choice([1, 2], 3), "is none of the candidates"),
    ("sample_choice", Product, lambda p: p.s.sample_choice([], 1), "is none of the candidates"),
    ("sample_choice", Product, lambda p: p.s.sample_choice(["a"], "b"), "is none of the candidates"),
    ("sample_perfect_tile", symbolic, lambda p: p.s.apply("sample_perfect_tile", p.i, 2), "no positive constant"),
    ("sample_perfect_tile", Product, lambda p: p.s.apply("sample_perfect_tile", p.i, 0), "must be positive"),
    ("sample_perfect_tile", Product, lambda p: p.s.apply("sample_perfect_tile", p.i, 2, 64, [3, 3]), "are not 2 factors"),
    ("sample_compute_location", Product, lambda p: p.s.apply("sample_compute_location", p.c, 2), "none of the 2 loops"),
    ("sample_compute_location", Product, lambda p: p.s.apply("sample_compute_location", p.d, 0), "none of the 0 loops"),
    ("sample_compute_location", Several, lambda p: p.s.apply("sample_compute_location", p.b, -2), "and not -1"),
]


def test_every_primitive_has_three() -> None:
    count = Counter(name for name, *_ in CASES)
    assert set(count) == set(WHERE)
    assert not [name for name in WHERE if count[name] < 3]
    assert len({(name, why) for name, _, _, why in CASES}) > 2 * len(WHERE), "cases are wrong in different ways"


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{name}-{k}" for k, (name, *_) in enumerate(CASES)])
def test_wrong_use(number: int) -> None:
    _, make, use, why = CASES[number]
    p = make()
    with refused(p.s, why):
        use(p)
