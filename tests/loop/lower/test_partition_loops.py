"""partition_loops: pieces, versions of parallel bodies, vector remainders, limits of growth; always the same result."""
from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from tests.loop.lower.nests import conv, matmul, same
from tilewright.core.node import walk
from tilewright.loop.ir import Compare, For, Guard, If, Program, as_int
from tilewright.loop.lower import partition_loops as module
from tilewright.loop.lower.flatten_blocks import flatten_blocks
from tilewright.loop.lower.partition_loops import partition_loops
from tilewright.loop.parser import parse_program
from tilewright.loop.printer import print_program


def partitioned(text: str) -> Program:
    p = parse_program(text)
    out = partition_loops(p)
    same(p, out)
    return out


def conditions(p: Program) -> int:
    return sum(isinstance(n, If | Guard) for n in walk(p))


def test_a_remainder_becomes_a_loop_of_its_own() -> None:
    out = partitioned("""
program f(A: f32[52], C: f32[52]):
    for o in 0..4:
        for i in 0..14 unrolled:
            if o * 14 + i < 52:
                C[o * 14 + i] = A[o * 14 + i] * 2.0
""")
    assert print_program(out).strip() == """
program f(A: f32[52], C: f32[52]):
    for o in 0..3:
        for i in 0..14 unrolled:
            C[o * 14 + i] = A[o * 14 + i] * 2.0
    for i_1 in 0..10 unrolled:
        C[3 * 14 + i_1] = A[3 * 14 + i_1] * 2.0
""".strip()


def test_borders_of_a_window() -> None:
    out = partitioned("""
program f(A: f32[9], C: f32[9]):
    for i in 0..9:
        C[i] = 0.0
        for k in 0..3:
            C[i] = C[i] + guard(0 <= i + k - 1 and i + k - 1 < 9, A[i + k - 1], 0.0)
""")
    assert conditions(out) == 0
    assert max(as_int(n.extent) or 0 for n in walk(out) if isinstance(n, For)) == 7


def test_a_parallel_body_has_a_hot_version() -> None:
    out = partitioned("""
program f(A: f32[30], C: f32[30]):
    for o in 0..4 parallel:
        for i in 0..8:
            if o * 8 + i < 30:
                C[o * 8 + i] = A[o * 8 + i] + 1.0
""")
    loops = [n for n in walk(out) if isinstance(n, For)]
    assert [n.kind for n in loops].count("parallel") == 1
    assert conditions(out) == 1 and isinstance(loops[0].body, If)
    assert sorted(as_int(n.extent) or 0 for n in loops[1:]) == [6, 8]


def test_quotients_and_remainders_of_a_fused_loop_are_versioned() -> None:
    out = partitioned("""
program f(A: f32[3, 30], C: f32[3, 30]):
    for f in 0..12 parallel:
        for i in 0..8:
            if f % 4 * 8 + i < 30:
                C[f // 4, f % 4 * 8 + i] = A[f // 4, f % 4 * 8 + i] + 1.0
""")
    assert conditions(out) == 1


def test_the_quotient_of_a_loop_of_symbolic_extent_is_versioned() -> None:
    out = partition_loops(parse_program("""
program f(A: f32[n, 30], C: f32[n, 30], n: i64 size 1..16):
    for f in 0..n * 4 parallel:
        for i in 0..8 vectorized:
            if f // n * 8 + i < 30:
                C[f % n, f // n * 8 + i] = A[f % n, f // n * 8 + i] + 1.0
"""))
    assert conditions(out) == 1
    vectors = [n for n in walk(out) if isinstance(n, For) and n.kind == "vectorized"]
    assert [as_int(n.extent) for n in vectors] == [8, 4, 2] and not any(isinstance(x, If) for n in vectors for x in walk(n))


def test_several_functions_of_a_fused_loop_are_versioned_one_in_the_other() -> None:
    out = partitioned("""
program f(A: f32[5, 5], C: f32[5, 5]):
    for f in 0..25 parallel:
        C[f // 5, f % 5] = 0.0
        for i in 0..3:
            for j in 0..3:
                if 1 <= f // 5 + i and f // 5 + i < 6 and 1 <= f % 5 + j and f % 5 + j < 6:
                    C[f // 5, f % 5] = C[f // 5, f % 5] + A[f // 5 + i - 1, f % 5 + j - 1]
""")
    inner = [n for n in walk(out) if isinstance(n, For) and n.kind == "serial"]
    assert inner and not any(isinstance(x, If) for n in inner for x in walk(n))


def test_a_vector_remainder_is_cut_into_powers_of_two() -> None:
    out = partitioned("""
program f(A: f32[45], C: f32[45]):
    for o in 0..3:
        for v in 0..16 vectorized:
            if o * 16 + v < 45:
                C[o * 16 + v] = A[o * 16 + v] + 1.0
""")
    assert conditions(out) == 0
    assert [as_int(n.extent) for n in walk(out) if isinstance(n, For) and n.kind == "vectorized"] == [16, 8, 4]


def test_the_first_turn_of_a_reduction_is_peeled() -> None:
    out = partitioned("""
program f(A: f32[4, 8], C: f32[4]):
    for i in 0..4:
        for k in 0..8:
            if k == 0:
                C[i] = 0.0
            C[i] = C[i] + A[i, k]
""")
    assert conditions(out) == 0


def test_what_is_always_false_goes_away() -> None:
    out = partitioned("""
program f(C: f32[4]):
    for i in 0..4:
        C[i] = 1.0
        for j in 0..3:
            if i + j < 0:
                C[i] = 2.0
""")
    assert sum(isinstance(n, For) for n in walk(out)) == 1


def test_negated_and_alternative_conditions() -> None:
    out = partitioned("""
program f(C: f32[12]):
    for i in 0..12:
        if not (i < 3) and (i < 5 or 9 <= i):
            C[i] = 1.0
        else:
            C[i] = 2.0
""")
    assert conditions(out) == 0


def test_growth_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    p = flatten_blocks(conv(7, 4))
    counts = []
    for limit in (0, 64, 4096):
        monkeypatch.setattr(module, "GROWTH_LIMIT", limit)
        out = partition_loops(p)
        same(p, out)
        counts.append(sum(1 for n in walk(out) if isinstance(n, For)))
    assert counts[0] <= counts[1] < counts[2]


def test_kernels_have_no_condition_in_their_hot_part() -> None:
    for p in (matmul(30, 40, 10, 14, 32), matmul(9, 24, 6, 4, 16, 2, 8, decomposed=False), conv(6, 4)):
        flat = flatten_blocks(p)
        out = partition_loops(flat)
        same(p, out)
        data = [n for n in walk(out) if isinstance(n, Guard)]
        hot = [n for n in walk(out) if isinstance(n, For) and n.kind == "vectorized"]
        assert not any(isinstance(x, If) for n in hot for x in walk(n))
        assert all(isinstance(n.cond, Compare) and n.cond.a.dtype.is_float for n in data)


@pytest.mark.parametrize("seed", range(60))
def test_random_nests(seed: int) -> None:
    rng = random.Random(seed)
    extents = [rng.randint(1, 6) for _ in range(3)]
    steps = [rng.choice([-2, -1, 1, 2, 3, 4]) for _ in range(3)]
    kinds = [rng.choice(["", " parallel"]), rng.choice(["", " unrolled"]), rng.choice(["", " unrolled", " vectorized"])]

    def comparison(c: Sequence[str] = ()) -> str:
        names = rng.sample(["a * {}", "b * {}", "a % 2 * {}", "a // 2 * {}", *c], rng.randint(1, 3))
        total = " + ".join(n.format(rng.choice(steps)) for n in names)
        return f"{total} {rng.choice(['<', '<=', '==', '!='])} {rng.randint(-6, 12)}"

    c = ["c * {}", "(c + 1) // 2 * {}"]
    cond = f"{comparison(c)} {rng.choice(['and', 'or'])} {comparison(c)}"
    guard = f"guard({comparison()}, 2.0, select({comparison()}, 3.0, 4.0))"
    p = parse_program(f"""
program f(C: f32[6, 6, 6]):
    for a in 0..{extents[0]}{kinds[0]}:
        for b in 0..{extents[1]}{kinds[1]}:
            C[a, b, 0] = C[a, b, 0] + {guard}
            for c in 0..{extents[2]}{kinds[2]}:
                if {cond}:
                    C[a, b, c] = C[a, b, c] * {guard}
                else:
                    if {comparison(c)}:
                        C[a, b, c] = 7.0
""")
    same(p, partition_loops(p))
