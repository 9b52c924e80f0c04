"""Transposes and layout changes as compiled code: right for any shape, tiled along both axes, copied where lines collide."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tilewright.core.config import config
from tilewright.core.node import walk
from tilewright.driver import Stages, build
from tilewright.graph.builder import GraphBuilder
from tilewright.graph.interpret import run as interpret
from tilewright.graph.ir import Value, tensor_type
from tilewright.loop.ir import Allocate, For, as_int
from tilewright.loop.lower.pipeline import lower
from tilewright.target.presets import get_target
from tilewright.tensor.compute import Tensor, compute, create_program, placeholder
from tilewright.tensor.rules.dispatch import schedule_program
from tilewright.tensor.rules.transpose import find_crossing
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule

AVX512 = get_target("x86-64-v4")


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with config.override(cache_dir=tmp_path_factory.mktemp("cache"), compile_workers=1):
        yield


def check(define: Callable[[GraphBuilder], Value], target: str = "native", threads: int = 1) -> None:
    """The compiled graph moves and computes exactly what the interpreter does."""
    b = GraphBuilder("moved")
    g = b.finish([define(b)])
    rng = np.random.default_rng(0)
    feeds = {v.name: rng.integers(-99, 99, v.type.sizes()).astype(v.dtype.numpy()) for v in g.inputs}
    with build(Stages(optimized=g), get_target(target), "default", threads, lambda done, total: None) as model:
        np.testing.assert_array_equal(np.array(model.run(feeds)[0]), interpret(g, feeds)[0])


def moved(op: str, shape: tuple[int, ...], type: str = "f32", **attrs: object) -> Callable[[GraphBuilder], Value]:
    return lambda b: b.add(op, [b.input("x", tensor_type(type, shape))], attrs)


TRANSPOSES = [((64, 1024), (1, 0)), ((37, 1024), (1, 0)), ((33, 2048), (1, 0)), ((70, 101), (1, 0)), ((130, 5), (1, 0)),
              ((5, 130), (1, 0)), ((17, 1), (1, 0)), ((1, 17), (1, 0)), ((3, 40, 33), (0, 2, 1)), ((9, 40, 33), (2, 1, 0)),
              ((1, 13, 13, 50), (0, 3, 1, 2)), ((1, 50, 13, 13), (0, 2, 3, 1)), ((5, 3, 1024), (2, 0, 1)),
              ((35, 4, 256), (2, 1, 0)), ((2, 3, 4, 5), (3, 2, 1, 0))]


@pytest.mark.parametrize("shape,perm", TRANSPOSES, ids=str)
def test_transpose(shape, perm):
    check(moved("transpose", shape, perm=perm))


@pytest.mark.parametrize("type", ["i8", "bool", "f16", "bf16", "i64", "f64"])
def test_transpose_of_other_types(type):
    for shape in ((70, 101), (67, 4096)):
        check(moved("transpose", shape, type, perm=(1, 0)))


def test_transpose_by_several_threads():
    for shape in ((200, 1024), (201, 203)):
        check(moved("transpose", shape, perm=(1, 0)), threads=2)


BLOCKED = [((1, 2, 9, 11, 16), 32), ((1, 2, 9, 11, 16), 20), ((2, 4, 5, 40, 8), 30), ((1, 1, 3, 7, 16), 3),
           ((1, 8, 32, 32, 16), 128)]


@pytest.mark.parametrize("shape,channels", BLOCKED, ids=str)
def test_from_blocked_layout(shape, channels):
    check(moved("from_blocked", shape, channels=channels))


@pytest.mark.parametrize("shape", [(1, 32, 9, 11), (1, 20, 9, 11), (1, 32, 32, 32), (2, 40, 64, 64)], ids=str)
def test_to_blocked_layout(shape):
    check(moved("to_blocked", shape, block=16))


@pytest.mark.parametrize("shape", [(70, 101), (67, 1024), (1024, 1024)], ids=str)
def test_transpose_within_arithmetic(shape):
    def define(b: GraphBuilder) -> Value:
        turned = b.add("transpose", [b.input("x", tensor_type("f32", shape))], {"perm": (1, 0)})
        return b.add("add", [b.add("relu", [turned]), b.input("y", tensor_type("f32", shape[::-1]))])
    check(define)


def test_sum_with_own_transpose():
    def define(b: GraphBuilder) -> Value:
        x = b.input("x", tensor_type("f32", (1024, 1024)))
        return b.add("add", [x, b.add("transpose", [x], {"perm": (1, 0)})])
    check(define)


# ---- the schedule ----------------------------------------------------------------------------------------------------
def scheduled(x: Tensor, y: Tensor) -> Schedule:
    made = schedule_program(create_program("move", [x], [y]), AVX512)
    assert not made.fallback
    return made


def tile(sch: Schedule) -> list[tuple[int | None, str]]:
    """Extents and kinds of the two innermost loops around the block that stores the result."""
    block = state.blocks(sch.program)[-1]
    return [(as_int(f.extent), f.kind) for f in state.loops_around(sch.program, block)[-2:]]


def test_lines_are_used_whole():
    x = placeholder((300, 200), "f32", "x")
    sch = scheduled(x, compute((200, 300), lambda i, j: x[j, i], name="y"))
    assert tile(sch) == [(16, "serial"), (16, "vectorized")]
    assert not any(isinstance(n, Allocate) for n in walk(sch.program))
    assert any(isinstance(n, For) and n.kind == "parallel" for n in walk(sch.program))


def test_lines_that_collide_are_copied():
    x = placeholder((512, 1024), "f32", "x")
    sch = scheduled(x, compute((1024, 512), lambda i, j: x[j, i], name="y"))
    lowered = lower(sch.program, AVX512)
    copies = [n.buffer for n in walk(lowered) if isinstance(n, Allocate)]
    assert [[as_int(n) for n in b.shape] for b in copies] == [[32, 32]]
    assert any(isinstance(n, For) and n.kind == "parallel" for n in walk(sch.program))


def test_blocked_channels_are_the_tile():
    x = placeholder((1, 4, 20, 20, 8), "f32", "x")
    sch = scheduled(x, compute((1, 32, 20, 20), lambda n, c, h, w: x[n, c // 8, h, w, c % 8], name="y"))
    assert tile(sch) == [(8, "serial"), (16, "vectorized")]


def test_what_crosses():
    """A load crosses if it is contiguous along an output axis, but not along the innermost."""
    x = placeholder((64, 64), "f32", "x")
    places = {"turned": lambda i, j: (j, i), "straight": lambda i, j: (i, j), "diagonal": lambda i, j: (i, i + j),
              "row": lambda i, j: (i, 0), "stepped": lambda i, j: (j, i * 2)}
    found = {}
    for name, place in places.items():
        n = 32 if name != "turned" else 64
        y = compute((n, n), lambda i, j, place=place: x[place(i, j)], name="y")
        crossing = find_crossing(state.blocks(create_program("p", [x], [y]))[0])
        found[name] = crossing is not None
    assert found == {"turned": True, "straight": False, "diagonal": False, "row": False, "stepped": False}
