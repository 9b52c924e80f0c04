"""The whole lowering: meaning is kept, the result is what code generators accept, and little work."""
from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from tests.loop.lower.nests import conv, matmul, same
from tilewright.core.config import config
from tilewright.core.node import walk
from tilewright.loop.interpret import run
from tilewright.loop.ir import Allocate, For, If, Program, as_int
from tilewright.loop.lower.pipeline import lower
from tilewright.loop.lower.workspaces import workspaces
from tilewright.loop.parser import parse_program
from tilewright.loop.verify import verify


@pytest.mark.parametrize("program", [
    matmul(30, 40, 10, 14, 32), matmul(8, 32, 8, 4, 32), matmul(9, 24, 6, 4, 16, 2, 8, decomposed=False),
    matmul(7, 13, 5, 3, 8, 2, 8), conv(5, 3), conv(6, 4), conv(4, 2)], ids=lambda p: p.name)
def test_meaning_is_kept(program: Program) -> None:
    with config.override(debug=True):
        same(program, lower(program))


def test_accumulators_are_registers_and_the_hot_loop_has_no_branch() -> None:
    m = lower(matmul(56, 64, 512, 14, 32))
    assert verify(m, "emitted") == []
    (k,) = [n for n in walk(m) if isinstance(n, For) and as_int(n.extent) == 128]
    assert not any(isinstance(n, If | For) for n in walk(k.body))
    assert [as_int(e) for n in walk(m) if isinstance(n, Allocate) for e in n.buffer.shape] == [14, 32]


def calls_of_lowering(p: Program) -> int:
    """How many calls of Python functions lowering takes: its work, the same on every machine."""
    count = 0

    def profile(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        lower(p)
    finally:
        sys.setprofile(before)
    return count


def test_the_work_of_lowering_grows_with_the_code_not_with_the_loops() -> None:
    lower(matmul(56, 64, 512, 14, 32))  # what is remembered between runs
    small, large = matmul(56, 64, 512, 14, 32), matmul(560, 640, 5120, 14, 32)
    work = calls_of_lowering(small)
    nodes = sum(1 for _ in walk(lower(small)))
    assert work < 25 * nodes
    assert calls_of_lowering(large) < 1.1 * work


def test_what_does_not_fit_the_stack_becomes_a_workspace() -> None:
    p = parse_program("""
program f(A: f32[3, 20000], C: f32[3, 20000]):
    alloc g: f32[3, 20000] global
    for i in 0..3 parallel:
        alloc t: f32[20000] local
        for j in 0..20000:
            t[j] = A[i, j] + 1.0
        for j in 0..20000:
            g[i, j] = t[19999 - j]
    for i in 0..3:
        for j in 0..20000:
            C[i, j] = g[i, j]
""")
    out = workspaces(p)
    assert out.attr("workspaces") == 2
    assert [[as_int(d) for d in b.shape] for b in out.params[2:]] == [[3, 20000], [3, 20000]]  # type: ignore[union-attr]
    small: Any = parse_program(str(p).replace("20000", "20").replace("19999", "19"))
    x = np.arange(60, dtype=np.float32).reshape(3, 20)
    y, z, g = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
    run(small, [x, y])
    moved = workspaces(small)
    assert moved.attr("workspaces") == 1
    run(moved, [x, z, g], order="random")
    np.testing.assert_array_equal(y, z)
    m = lower(p)
    assert m.programs[0].attr("workspaces") == 2
    assert not any(isinstance(n, Allocate) for n in walk(m))


def test_a_buffer_of_a_bounded_symbolic_size_is_as_large_as_it_may_be() -> None:
    """Also where no other buffer becomes a workspace."""
    p = parse_program("""
program f(A: f32[3, n], C: f32[3, n], n: i64 size 1..8):
    for t in 0..3:
        alloc row: f32[n] local
        for j in 0..n:
            row[j] = A[t, j] + 1.0
        for j in 0..n:
            C[t, j] = row[n - 1 - j]
""")
    out = workspaces(p)
    (row,) = [n.buffer for n in walk(out.body) if isinstance(n, Allocate)]
    assert [as_int(d) for d in row.shape] == [8] and len(out.params) == 3
    x = np.arange(15, dtype=np.float32).reshape(3, 5)
    y = np.zeros_like(x)
    run(out, [x, y, 5])
    np.testing.assert_array_equal(y, x[:, ::-1] + 1)
