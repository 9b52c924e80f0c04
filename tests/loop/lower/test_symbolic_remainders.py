"""symbolic_remainders: whole tiles and a ladder; the same result at every size."""
from __future__ import annotations

import numpy as np
import pytest

from tilewright.core.node import walk
from tilewright.loop.interpret import run
from tilewright.loop.ir import For, Guard, If, Program, as_int, const
from tilewright.loop.lower import symbolic_remainders as module
from tilewright.loop.lower.symbolic_remainders import symbolic_remainders
from tilewright.loop.parser import parse_program
from tilewright.loop.simplify import simplify
from tilewright.loop.substitute import substitute
from tilewright.loop.verify import verify

SPLIT = """
program f(A: f32[n], C: f32[n], n: i64 size 0..):
    for o in 0..(n + 7) // 8{kind}:
        for i in 0..8 unrolled:
            if o * 8 + i < n:
                C[o * 8 + i] = A[o * 8 + i] * 2.0
"""
FUSED = """
program f(A: f32[5, n], C: f32[5, n], n: i64 size 1..):
    for f in 0..5 * ((n + 5) // 6) parallel:
        for i in 0..6:
            if f % ((n + 5) // 6) * 6 + i < n:
                C[f // ((n + 5) // 6), f % ((n + 5) // 6) * 6 + i] = A[f // ((n + 5) // 6), f % ((n + 5) // 6) * 6 + i] + 1.0
"""
DIGITS = """
program f(A: f32[n], C: f32[n], n: i64 size 1..):
    for o in 0..(n + 47) // 48:
        for p in 0..3 unrolled:
            for l in 0..16 vectorized:
                if o * 48 + p * 16 + l < n:
                    C[o * 48 + p * 16 + l] = A[o * 48 + p * 16 + l] * 2.0
"""
FOLDED = """
program f(A: f32[n], C: f32[n], n: i64 size 1..):
    for o in 0..(n + 15) // 16:
        for i in 0..16 vectorized:
            if o * 16 + i < n:
                C[o * 16 + i] = A[min(i % 8, n - 1)]
"""
REPEATED = """
program f(A: f32[n], C: f32[n], n: i64 size 1..):
    for o in 0..(n + 15) // 16:
        for i in 0..16 vectorized:
            if o * 16 + i < n:
                C[o * 16 + i] = A[o * 16] + f32(i)
"""
SPREAD = """
program f(A: f32[2 * n + 32], C: f32[n], n: i64 size 1..):
    for o in 0..(n + 15) // 16:
        for i in 0..16 vectorized:
            if o * 16 + i < n:
                C[o * 16 + i] = A[o * 32 + i]
"""
BORDER = """
program f(A: f32[n], C: f32[n], n: i64 size 1..):
    for i in 0..n:
        C[i] = 0.0
        for k in 0..3:
            C[i] = C[i] + guard(i + k < n, A[i + k], 0.0)
"""


def same(before: Program, after: Program, n: int) -> None:
    verify(after)
    results = []
    for p in (before, after):
        given, rows = ([as_int(simplify(substitute(d, {p.params[2]: const(n)}))) or 0  # type: ignore[dict-item]
                        for d in b.shape] for b in p.params[:2])  # type: ignore[union-attr]
        a, c = np.arange(np.prod(given), dtype=np.float32).reshape(given), np.zeros(rows, np.float32)
        run(p, [a, c, n])
        results.append(c)
    np.testing.assert_array_equal(*results)


TEXTS = [SPLIT.format(kind=""), SPLIT.format(kind=" parallel"), FUSED, DIGITS, FOLDED, REPEATED, SPREAD, BORDER]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("budget", [0, 1024])
def test_the_result_is_the_same_at_every_size(text: str, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROWTH_LIMIT", budget)
    before = parse_program(text)
    after = symbolic_remainders(before)
    for n in (1, 2, 5, 6, 7, 8, 13, 47, 48, 49, 101):
        same(before, after, n)


def test_the_hot_loop_has_no_condition_and_the_ladder_tiles_of_halves() -> None:
    after = symbolic_remainders(parse_program(SPLIT.format(kind="")))
    hot = next(n for n in walk(after.body) if isinstance(n, For) and as_int(n.extent) is None)
    assert not any(isinstance(n, If) for n in walk(hot))
    tiles = [as_int(n.extent) for n in walk(after.body) if isinstance(n, For) and n.kind == "unrolled"]
    assert tiles == [8, 4, 2]


def test_a_border_leaves_the_loop_before_it() -> None:
    after = symbolic_remainders(parse_program(BORDER))
    hot, rest = (n for n in after.body.stmts if isinstance(n, For))  # type: ignore[attr-defined]
    assert not any(isinstance(n, Guard) for n in walk(hot)) and any(isinstance(n, Guard) for n in walk(rest))


def test_programs_of_constant_extents_are_left_alone() -> None:
    p = parse_program("""
program f(C: f32[52]):
    for o in 0..4:
        for i in 0..14 unrolled:
            if o * 14 + i < 52:
                C[o * 14 + i] = 2.0
""")
    assert symbolic_remainders(p) is p
