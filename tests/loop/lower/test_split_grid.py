"""Grids beyond an axis's limit: every block runs once."""
from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tilewright.core.node import walk
from tilewright.loop.interpret import run
from tilewright.loop.ir import For, If, Program, as_int
from tilewright.loop.lower.split_grid import split_grid
from tilewright.target.presets import get_target
from tilewright.tensor import compute as te
from tilewright.tensor.schedule.schedule import Schedule


def bound(n: int) -> Program:
    a = te.placeholder((n,), name="A")
    sch = Schedule(te.create_program("f", [a], [te.compute((n,), lambda i: a[i] + 1.0, name="B")]))
    sch.bind(sch.loops(sch.block("B"))[0], "blockIdx.x")
    return sch.program


@pytest.mark.parametrize("n, shape, guarded", [(6, None, False), (8, (2, 4), False), (13, (3, 5), True), (7, (2, 4), True)])
def test_blocks_in_two_axes(n: int, shape: tuple[int, int] | None, guarded: bool) -> None:
    target = dataclasses.replace(get_target("opencl"), max_grid=(6, 100, 100))
    program = split_grid(bound(n), target)
    loops = {s.kind: as_int(s.extent) for s in walk(program.body) if isinstance(s, For)}
    assert loops == ({"blockIdx.x": n} if shape is None else {"blockIdx.y": shape[0], "blockIdx.x": shape[1]})
    assert any(isinstance(s, If) for s in walk(program.body)) is guarded
    x, y = np.arange(n, dtype=np.float32), np.zeros(n, np.float32)
    run(program, [x, y])
    np.testing.assert_array_equal(y, x + 1)
