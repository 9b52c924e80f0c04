"""parallel_regions: outlining, what is captured, nesting."""
from __future__ import annotations

import numpy as np
import pytest

from tests.loop.lower.nests import same
from tilewright.core.node import walk
from tilewright.loop.interpret import run
from tilewright.loop.ir import Buffer, For, Launch, Module
from tilewright.loop.lower.parallel_regions import parallel_regions
from tilewright.loop.parser import parse_program
from tilewright.loop.verify import verify


def outlined(text: str) -> Module:
    p = parse_program(text)
    m = parallel_regions(p)
    verify(m, "emitted")
    if all(isinstance(b, Buffer) for b in p.params):
        same(p, m)
    return m


def test_buffers_and_scalars_are_captured() -> None:
    m = outlined("""
program f(A: f32[6, 4], C: f32[6, 4], D: f32[1]):
    alloc t: f32[4] local
    for j in 0..4:
        t[j] = A[0, j]
    for n in 0..2:
        let s = D[0] + 1.0
        for i in 2..+4 parallel:
            alloc u: f32[4] local
            for j in 0..4 parallel:
                u[j] = A[i, j] * s + t[j]
            for j in 0..4:
                C[i, j] = u[3 - j] + f32(n)
    for i in 0..6 parallel:
        C[i, 0] = 1.0
""")
    assert [p.name for p in m.programs] == ["f", "f__region0", "f__region1"]
    region = m.programs[1]
    assert [p.name for p in region.params] == ["begin", "end", "A", "C", "t", "s", "n"]
    assert not any(isinstance(n, For) and n.kind == "parallel" for n in walk(m))


def test_dimensions_of_captured_buffers_are_captured() -> None:
    m = outlined("""
program f(n: i64, k: i64, A: f32[n, k], C: f32[n, k]):
    for i in 0..n parallel:
        C[i, 1] = A[i, 1]
""")
    assert [p.name for p in m.programs[1].params[:2]] == ["begin", "end"]
    assert {p.name for p in m.programs[1].params[2:]} == {"A", "C", "n", "k"}
    a, c = np.arange(6, dtype=np.float32).reshape(3, 2), np.zeros((3, 2), np.float32)
    run(m, [3, 2, a, c])
    assert c.tolist() == [[0, 1], [0, 3], [0, 5]]


@pytest.mark.parametrize("begin, end", [(0, 3), (1, 2), (2, 2)])
def test_a_region_runs_a_range(begin: int, end: int) -> None:
    m = outlined("program f(C: f32[3]):\n    for i in 0..3 parallel:\n        C[i] = 1.0\n")
    c = np.zeros(3, np.float32)
    run(m, [begin, end, c], entry="f__region0")
    assert c.tolist() == [float(begin <= i < end) for i in range(3)]


def test_a_single_iteration_needs_no_region() -> None:
    m = outlined("program f(C: f32[3]):\n    for i in 1..+1 parallel:\n        C[i] = 1.0\n")
    assert len(m.programs) == 1 and not any(isinstance(n, Launch) for n in walk(m))
