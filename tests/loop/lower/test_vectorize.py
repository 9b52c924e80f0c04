"""vectorize: ramps and broadcasts, what stays scalar, what stays a loop; always the same result."""
from __future__ import annotations

import random

import numpy as np
import pytest

from tests.loop.lower.nests import same
from tilewright.core.node import walk
from tilewright.loop.interpret import run
from tilewright.loop.ir import Allocate, Broadcast, Call, For, Guard, Program, Ramp, Select, as_int
from tilewright.loop.lower.vectorize import vectorize
from tilewright.loop.parser import parse_program
from tilewright.loop.printer import print_program


def vectorized(text: str) -> Program:
    p = parse_program(text)
    out = vectorize(p)
    same(p, out)
    assert not any(isinstance(n, For) and n.kind == "vectorized" for n in walk(out))
    return out


def loops(p: Program) -> int:
    return sum(isinstance(n, For) for n in walk(p))


def test_strides_and_scalars() -> None:
    out = vectorized("""
program f(A: f32[4], B: f32[16], C: f32[4, 8]):
    for i in 0..4:
        for v in 0..8 vectorized:
            C[i, v] = A[i] * B[v * 2 + 1] + A[i] * A[i]
""")
    assert print_program(out).strip() == """
program f(A: f32[4], B: f32[16], C: f32[4, 8]):
    for i in 0..4:
        C[i, ramp(0, 1, 8)] = broadcast(A[i], 8) * B[ramp(1, 2, 8)] + broadcast(A[i] * A[i], 8)
""".strip()


def test_a_value_equal_in_all_lanes_is_broadcast_once_stored() -> None:
    out = vectorized("program f(A: f32[1], C: f32[8]):\n    for v in 0..8 vectorized:\n        C[v] = A[0] + 1.0\n")
    assert sum(isinstance(n, Broadcast) for n in walk(out)) == 1


def test_start_and_reversed_order() -> None:
    out = vectorized("program f(A: f32[9], C: f32[9]):\n    for v in 3..+6 vectorized:\n        C[v] = A[8 - v]\n")
    assert loops(out) == 0
    assert [as_int(n.stride) for n in walk(out) if isinstance(n, Ramp)] == [1, -1]


def test_gathers_lets_and_casts() -> None:
    out = vectorized("""
program f(A: f32[4, 8], I: i32[8], C: f32[8], D: i32[8]):
    for v in 0..8 vectorized:
        let k = i64(I[v]) % 8
        let s = A[1, 2]
        C[v] = A[v // 2, k] + s
        D[v] = i32(v * v) + I[v]
""")
    assert loops(out) == 0


def test_loops_inside_stay_around_vectors() -> None:
    out = vectorized("""
program f(A: f32[5, 8], C: f32[8]):
    for v in 0..8 vectorized:
        C[v] = 0.0
        for k in 0..5:
            C[v] = C[v] + A[k, v]
""")
    assert loops(out) == 1


def test_buffers_inside_get_an_element_per_lane() -> None:
    out = vectorized("""
program f(A: f32[5, 8], C: f32[8]):
    for v in 0..8 vectorized:
        alloc t: f32[2] local
        t[0] = A[0, v]
        t[1] = 2.0
        for k in 0..5:
            t[0] = t[0] + A[k, v] * t[1]
        if A[0, v] < 1.0:
            t[0] = t[0] + 1.0
        C[v] = t[0]
""")
    (a,) = [n for n in walk(out) if isinstance(n, Allocate)]
    assert [as_int(e) for e in a.buffer.shape] == [2, 8]
    assert loops(out) == 2  # k, and the branch lane by lane


def test_a_branch_on_the_lane_and_a_product_over_lanes_stay_serial() -> None:
    out = vectorized("""
program f(A: f32[8], C: f32[8], D: f32[1]):
    for v in 0..8 vectorized:
        if v < 5:
            C[v] = A[v]
        D[0] = D[0] * A[v]
        C[v] = C[v] + 1.0
""")
    assert loops(out) == 2


def test_sums_and_extremes_over_lanes_are_horizontal() -> None:
    out = vectorized("""
program f(A: f32[8], D: f32[3]):
    for v in 0..8 vectorized:
        D[0] = D[0] + A[v]
        D[1] = max(A[v] * 2.0, D[1])
        D[2] = min(D[2], A[v])
""")
    assert loops(out) == 0
    assert [n.name for n in walk(out) if isinstance(n, Call)] == ["reduce_add", "reduce_max", "reduce_min"]


def test_a_sum_whose_term_reads_the_sum_stays_serial() -> None:
    assert loops(vectorized("""
program f(A: f32[8], D: f32[1]):
    for v in 0..8 vectorized:
        D[0] = D[0] + A[v] * D[0]
""")) == 1


def test_guards_become_selects_where_both_sides_are_safe() -> None:
    out = vectorized("program f(C: f32[8]):\n    for v in 0..8 vectorized:\n        C[v] = guard(v < 3, 1.0, 2.0)\n")
    assert any(isinstance(n, Select) for n in walk(out)) and not any(isinstance(n, Guard) for n in walk(out))
    out = vectorized("""
program f(A: f32[3], C: f32[8]):
    for v in 0..8 vectorized:
        C[v] = guard(v < 3, A[v], 2.0)
""")
    assert loops(out) == 1  # A[v] is out of bounds in the other lanes
    out = vectorized("""
program f(A: f32[3], C: f32[2, 8]):
    for i in 0..2:
        for v in 0..8 vectorized:
            C[i, v] = guard(i < 1, A[i], 2.0) + guard(1 <= i, C[i, v], 0.0)
""")
    assert loops(out) == 1 and sum(isinstance(n, Guard) for n in walk(out)) == 2


def test_calls_take_vectors() -> None:
    p = parse_program("""
program f(A: f32[8], B: f32[1], C: f32[8]):
    for v in 0..8 vectorized:
        C[v] = fma(A[v], B[0], exp(A[v]))
""")
    out = vectorize(p)
    assert loops(out) == 0
    a, b = np.linspace(-2, 2, 8).astype(np.float32), np.array([3], np.float32)
    c, d = np.zeros(8, np.float32), np.zeros(8, np.float32)
    run(p, [a, b, c])
    run(out, [a, b, d])
    np.testing.assert_array_equal(c, d)


def test_a_branch_under_a_vector_let_keeps_the_let_scalar() -> None:
    out = vectorized("""
program f(A: f32[8], C: f32[8]):
    for v in 0..8 vectorized:
        let x = A[v] * 2.0
        if x < 1.0:
            C[v] = x
""")
    assert loops(out) == 1


def test_one_lane_and_unknown_lanes() -> None:
    assert loops(vectorized("program f(C: f32[8]):\n    for v in 5..+1 vectorized:\n        C[v] = 1.0\n")) == 0
    p = parse_program("program f(n: i64, C: f32[n]):\n    for v in 0..n vectorized:\n        C[v] = 1.0\n")
    assert [n.kind for n in walk(vectorize(p)) if isinstance(n, For)] == ["serial"]


@pytest.mark.parametrize("seed", range(40))
def test_random_statements(seed: int) -> None:
    rng = random.Random(seed)

    def index(limit: int) -> str:
        e = rng.choice(["v", "k", "v + k", "v * 3 + k", "7 - v", "v // 2", "v % 3 * k", "i", "k * i"])
        return f"({e}) % {limit}"

    def value(depth: int = 2) -> str:
        if depth == 0:
            return rng.choice([f"A[{index(8)}, {index(5)}]", f"B[{index(6)}]", "1.5", f"f32({index(9)})"])
        a, b = value(depth - 1), value(depth - 1)
        return rng.choice([f"{a} + {b}", f"({a}) * ({b})", f"min({a}, {b})",
                           f"select({index(4)} < {index(4)}, {a}, {b})",
                           f"guard({index(4)} < {rng.choice(['2', 'k'])}, {a}, {b})", f"max({a}, {b})"])

    p = parse_program(f"""
program f(A: f32[8, 5], B: f32[6], C: f32[8, 3], D: f32[8]):
    for i in 0..2:
        for v in 0..8 vectorized:
            alloc t: f32[3] local
            t[0] = {value().replace('k', 'i')}
            for k in 0..3:
                t[k] = {value()}
                if {index(4)} < {rng.choice(['k', 'v', '2'])}:
                    C[v, k] = {value()}
                let x = {value(1)}
                C[v, (k + i) % 3] = C[v, (k + i) % 3] + x * t[k]
            let k = i + 1
            D[v] = {value()} + t[{rng.choice(['0', 'i', 'i + 1'])}]
""")
    same(p, vectorize(p))
