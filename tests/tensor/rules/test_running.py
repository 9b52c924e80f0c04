"""Running sums as compiled code: in one pass, along any axis, the order along the axis kept, what is outside in parallel."""
from __future__ import annotations

import numpy as np
import pytest

from tests.codegen.native import native
from tilewright.core.dtype import f32
from tilewright.core.node import walk
from tilewright.loop.ir import Expr, For, as_int, const
from tilewright.loop.lower.pipeline import lower
from tilewright.target.presets import get_target
from tilewright.tensor.compute import create_program, placeholder
from tilewright.tensor.rules.dispatch import schedule_program
from tilewright.tensor.running import running, running_axis
from tilewright.tensor.schedule import state

AVX512 = get_target("x86-64-v4")


@pytest.mark.parametrize(("shape", "axis"), [((37,), 0), ((5, 40), 1), ((6, 130), 0), ((3, 20, 33), 1), ((2, 9, 3), 2),
                                             ((70, 256), 0), ((70, 256), 1), ((1, 50), 1), ((9, 1), 0)])
def test_sums(shape: tuple[int, ...], axis: int) -> None:
    x = placeholder(shape, "f32", "x")
    y = running(shape, axis, lambda *i: x[i] * 2.0, lambda s, v: s + v, const(1, f32), "y")
    program = create_program("sums", [x], [y])
    sch = schedule_program(program, get_target("native"))
    assert not sch.fallback
    data = np.random.default_rng(0).integers(-9, 9, shape).astype(np.float32)
    got = np.zeros(shape, np.float32)
    assert native(lower(sch.program), [data, got]) == 0
    np.testing.assert_array_equal(got, 1 + np.cumsum(2 * data, axis))
    wide = schedule_program(program, AVX512).program
    assert any(isinstance(n, For) and n.kind == "parallel" for n in walk(wide)) == (data.size >= 16384)


def test_the_order_along_the_axis_is_held() -> None:
    x = placeholder((4, 8), "f32", "x")

    def product(total: Expr, v: Expr) -> Expr:
        return total * v
    program = create_program("products", [x], [running((4, 8), 1, lambda *i: x[i], product, const(1, f32), "y")])
    (block,) = state.blocks(program)
    axis = running_axis(block)
    assert axis is not None and [as_int(it.extent) for it in block.iters if it.var is axis] == [8]
    assert running_axis(block.replace(body=block.body.replace(value=const(0, f32)))) is None  # type: ignore[attr-defined]
