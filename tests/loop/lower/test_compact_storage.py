"""compact_storage: where allocations go and how small they get; what must stay outside a loop."""
from __future__ import annotations

import pytest

from tests.loop.lower.nests import conv, matmul, same
from tilewright.core.node import walk
from tilewright.loop.ir import Allocate, For, Program, Stmt, as_int
from tilewright.loop.lower.compact_storage import compact_storage
from tilewright.loop.lower.flatten_blocks import flatten_blocks
from tilewright.loop.parser import parse_program
from tilewright.loop.simplify import simplify


def allocation(p: Program) -> tuple[list[str], list[int | None]]:
    """The loops around the only allocation, and its shape."""
    found = []

    def visit(s: Stmt, around: list[str]) -> None:
        if isinstance(s, Allocate):
            found.append((around, [as_int(e) for e in s.buffer.shape]))
        for c in s.children():
            if isinstance(c, Stmt):
                visit(c, [*around, s.var.name] if isinstance(s, For) else around)

    visit(p.body, [])
    assert len(found) == 1
    return found[0]


def compacted(text: str) -> Program:
    p = parse_program(text)
    out = compact_storage(flatten_blocks(p))
    same(p, out)
    return out


def test_an_accumulator_shrinks_to_its_tile_outside_the_reduction() -> None:
    for decomposed in (True, False):
        p = matmul(9, 24, 6, 4, 16, 2, 8, decomposed)
        out = compact_storage(simplify(flatten_blocks(p)))
        same(p, out)
        assert allocation(out) == (["no", "mo"], [4, 16])
        assert not any(n.attrs for n in walk(out) if isinstance(n, For))


def test_a_convolution_keeps_one_tile_of_its_output() -> None:
    p = conv(5, 3)
    out = compact_storage(simplify(flatten_blocks(p)))
    same(p, out)
    assert allocation(out) == (["oc", "oh", "owo"], [1, 1, 3, 8])


def test_a_producer_keeps_the_window_that_its_consumer_reads() -> None:
    out = compacted("""
program f(A: f32[10], C: f32[8]):
    alloc t: f32[10] local
    for i in 0..4:
        for j in 0..4:
            t[i * 2 + j] = A[i * 2 + j] * 2.0
        for j2 in 0..2:
            for k in 0..3:
                C[i * 2 + j2] = t[i * 2 + j2] + t[i * 2 + j2 + k]
""")
    assert allocation(out) == (["i"], [4])


def test_a_value_carried_from_one_iteration_to_the_next_stays_outside() -> None:
    out = compacted("""
program f(A: f32[8], C: f32[8]):
    alloc t: f32[9] local
    t[0] = 1.0
    for i in 0..8:
        t[i + 1] = t[i] + A[i]
        C[i] = t[i + 1]
""")
    assert allocation(out) == ([], [9])
    out = compacted("""
program f(A: f32[4, 8], C: f32[4, 8]):
    alloc t: f32[4, 8] local
    for b in 0..4:
        for i in 0..8:
            if i == 0:
                t[b, 0] = 1.0
            if i > 0:
                t[b, i] = t[b, i - 1] + A[b, i]
            C[b, i] = t[b, i]
""".replace("i > 0", "0 < i"))
    assert allocation(out) == (["b"], [1, 8])


def test_a_reduction_whose_only_uses_are_inside_its_loop_is_not_reset() -> None:
    out = compacted("""
program f(A: f32[8], C: f32[8]):
    alloc t: f32[1] local
    for k in 0..8:
        block sum(y: spatial 1 = 0, r: reduce 8 = k):
            init:
                t[y] = 0.0
            body:
                t[y] = t[y] + A[r]
        C[k] = t[0]
""")
    assert allocation(out) == ([], [1])


def test_global_memory_moves_but_not_into_a_parallel_loop() -> None:
    out = compacted("""
program f(A: f32[4, 6], C: f32[4, 6]):
    alloc t: f32[4, 6] global
    for n in 0..1:
        for i in 0..4 parallel:
            for j in 0..6:
                t[i, j] = A[i, j] * 2.0
            for j2 in 0..6:
                C[i, j2] = t[i, j2]
""")
    assert allocation(out) == (["n"], [4, 6])


def test_shared_memory_stays_outside_the_threads_that_share_it() -> None:
    out = compacted("""
program f(A: f32[4, 6], C: f32[4, 6]):
    alloc t: f32[4, 6] shared
    for i in 0..4 blockIdx.x:
        for j in 0..6 threadIdx.x:
            t[i, j] = A[i, j] * 2.0
            C[i, j] = t[i, j]
""")
    assert allocation(out) == (["i"], [1, 6])


def test_indices_by_quotient_and_remainder() -> None:
    out = compacted("""
program f(A: f32[6, 10], C: f32[6, 10]):
    alloc t: f32[6, 10] local
    for f in 0..12:
        for j in 0..5:
            t[f // 2, f % 2 * 5 + j] = A[f // 2, f % 2 * 5 + j]
        for j2 in 0..5:
            C[f // 2, f % 2 * 5 + j2] = t[f // 2, f % 2 * 5 + j2]
""")
    assert allocation(out) == (["f"], [1, 5])


SYMBOLIC = """
program f(A: f32[m, n], C: f32[m, n], m: i64 size 1.., n: i64 size 2..):
    alloc t: f32[m, {size}] local
    for i in 0..m parallel:
        for o in 0..{tiles}:
            for l in 0..4:
                if o * 4 + l < {end}:
                    t[i, {index}] = A[i, o * 4 + l] * 2.0
        for o2 in 0..(n + 3) // 4:
            for l2 in 0..4:
                if o2 * 4 + l2 < {read}:
                    C[i, o2 * 4 + l2] = t[i, {index2}]
"""
ROW = {"size": "n", "tiles": "(n + 3) // 4", "end": "n", "index": "o * 4 + l", "read": "n", "index2": "o2 * 4 + l2"}


@pytest.mark.parametrize("change", [{}, {"size": "(n + 3) // 4, 4", "index": "(o * 4 + l) // 4, l", "index2": "o2, l2"}],
                         ids=["row", "panels"])
def test_a_row_of_symbolic_length_that_is_written_whole_is_private(change: dict[str, str]) -> None:
    text = SYMBOLIC.format(**{**ROW, **change})
    out = compact_storage(simplify(flatten_blocks(parse_program(text))))
    around, shape = allocation(out)
    assert around == ["i"] and shape[:2] == [1, None]


@pytest.mark.parametrize("change", [{"end": "n // 2"}, {"end": "n - 1"}, {"tiles": "n // 4"}, {"end": "n - l"}],
                         ids=lambda c: "-".join(c.values()))
def test_a_row_of_symbolic_length_that_is_written_in_part_stays_outside(change: dict[str, str]) -> None:
    text = SYMBOLIC.format(**{**ROW, **change})
    assert allocation(compact_storage(simplify(flatten_blocks(parse_program(text))))) == ([], [None, None])


def test_an_unused_allocation_goes_away() -> None:
    p = parse_program("program f(C: f32[1]):\n    alloc t: f32[4] local\n    C[0] = 1.0\n")
    assert not any(isinstance(n, Allocate) for n in walk(compact_storage(p)))
