"""unroll: copies, shared addresses, fresh definitions; always the same result."""
from __future__ import annotations

from tests.loop.lower.nests import same
from tilewright.core.node import walk
from tilewright.loop.ir import Allocate, For, If, Let, Load, Program, Store
from tilewright.loop.lower.unroll import unroll
from tilewright.loop.parser import parse_program
from tilewright.loop.printer import print_program
from tilewright.loop.verify import verify


def unrolled(text: str) -> Program:
    p = parse_program(text)
    out = unroll(p)
    same(p, out)
    verify(out)
    assert not any(isinstance(n, For) and n.kind == "unrolled" for n in walk(out))
    return out


def test_nested_loops_become_statements_with_constant_indices() -> None:
    out = unrolled("""
program f(A: f32[16], C: f32[2, 2]):
    for i in 0..4:
        for a in 0..2 unrolled:
            for b in 1..+2 unrolled:
                C[a, b - 1] = C[a, b - 1] + A[i * 4 + a * 2 + (b - 1)]
""")
    assert print_program(out).strip() == """
program f(A: f32[16], C: f32[2, 2]):
    for i in 0..4:
        C[0, 0] = C[0, 0] + A[i * 4]
        C[0, 1] = C[0, 1] + A[i * 4 + 1]
        C[1, 0] = C[1, 0] + A[i * 4 + 2]
        C[1, 1] = C[1, 1] + A[i * 4 + 3]
""".strip()


def test_copies_share_what_is_equal() -> None:
    out = unrolled("""
program f(A: f32[4, 3], B: f32[4], C: f32[3]):
    for k in 0..4:
        for u in 0..3 unrolled:
            C[u] = C[u] + A[k, u] * B[k]
""")
    loads = [n for n in walk(out) if isinstance(n, Load) and n.buffer.name == "B"]
    assert len(loads) == 3 and len({id(n) for n in loads}) == 1


def test_each_copy_has_its_own_definitions() -> None:
    out = unrolled("""
program f(A: f32[3, 4], C: f32[3, 4]):
    for u in 0..3 unrolled:
        alloc t: f32[4] local:
            for j in u..+1:
                t[j] = A[u, j] + 1.0
            let x = t[u] * 2.0
            let y = u * 2 % 3
            C[u, y] = x + A[u, y]
""")
    for cls, count in ((Allocate, 3), (Let, 6), (For, 3)):
        found = [n for n in walk(out) if isinstance(n, cls)]
        assert len(found) == count
        assert len({id(n.buffer if isinstance(n, Allocate) else n.var) for n in found}) == count


def test_conditions_that_are_decided_go_away() -> None:
    out = unrolled("""
program f(C: f32[8]):
    for i in 0..2:
        for u in 0..4 unrolled:
            if u % 2 == 0:
                C[i * 4 + u] = guard(u < 2, 1.0, 2.0)
            else:
                C[i * 4 + u // 2 * 2 + 1] = 3.0
""")
    assert not any(isinstance(n, If) for n in walk(out))
    assert sum(isinstance(n, Store) for n in walk(out)) == 4


def test_starts_that_are_not_constant_and_extents_that_are_not() -> None:
    unrolled("""
program f(A: f32[12], C: f32[12]):
    for i in 0..3:
        for u in i * 4..+4 unrolled:
            C[u] = A[u] + f32(u)
""")
    p = parse_program("program f(n: i64, C: f32[n]):\n    for u in 0..n unrolled:\n        C[u] = 1.0\n")
    assert [n.kind for n in walk(unroll(p)) if isinstance(n, For)] == ["serial"]


def test_vectors_in_unrolled_loops() -> None:
    out = unrolled("""
program f(A: f32[4, 8], C: f32[4, 8]):
    for u in 0..4 unrolled:
        C[u, ramp(0, 1, 8)] = A[u, ramp(u - u, 1, 8)] + broadcast(A[u, u * 2 % 8], 8)
""")
    assert not any(isinstance(n, For) for n in walk(out))
