"""flatten_blocks: bindings, predicates, init, and the marks of reductions."""
from __future__ import annotations

from tests.loop.lower.nests import conv, matmul, same
from tilewright.core.node import walk
from tilewright.loop.ir import Block, For
from tilewright.loop.lower.flatten_blocks import REDUCES, flatten_blocks
from tilewright.loop.parser import parse_program
from tilewright.loop.printer import print_program


def test_a_reduction_becomes_loops_with_a_conditional_start() -> None:
    p = parse_program("""
program f(A: f32[4, 8], C: f32[4]):
    for i in 0..4:
        for ko in 0..2:
            for ki in 0..5:
                block sum(y: spatial 4 = i, r: reduce 8 = ko * 5 + ki) if ko * 5 + ki < 8:
                    init:
                        C[y] = 0.0
                    body:
                        C[y] = C[y] + A[y, r]
""")
    out = flatten_blocks(p)
    assert print_program(out).strip() == """
program f(A: f32[4, 8], C: f32[4]):
    for i in 0..4:
        for ko in 0..2 {reduces=("C",)}:
            for ki in 0..5 {reduces=("C",)}:
                if ko * 5 + ki < 8:
                    if ko * 5 + ki == 0:
                        C[i] = 0.0
                    C[i] = C[i] + A[i, ko * 5 + ki]
""".strip()
    same(p, out)


def test_meaning_is_kept_and_no_block_remains() -> None:
    for p in (matmul(5, 12, 3, 2, 8, 2, 4), matmul(5, 12, 3, 2, 8, 2, 4, decomposed=False), conv(4, 3)):
        out = flatten_blocks(p)
        assert not any(isinstance(n, Block) for n in walk(out))
        same(p, out)


def test_loops_of_spatial_variables_are_not_marked() -> None:
    out = flatten_blocks(matmul(4, 8, 4, 2, 8, 2, 4))
    marked = {n.var.name for n in walk(out) if isinstance(n, For) and REDUCES in dict(n.attrs)}
    assert marked == {"ko", "ki"}
