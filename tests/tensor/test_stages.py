"""The stage style of scheduling: what it collects, in which order it becomes primitives, and what it says of mistakes."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.test_opencl import needs_opencl
from tilewright import te
from tilewright.core.errors import UserError
from tilewright.loop.interpret import run
from tilewright.loop.ir import Program
from tilewright.tensor.schedule.schedule import Schedule, replay
from tilewright.tensor.schedule.state import ScheduleError


class Depthwise:
    """Depthwise convolution with a padded input, then scale and ReLU."""

    def __init__(self, channels: int = 2, size: int = 16) -> None:
        self.channels, self.size = c, n = channels, size
        self.x, self.w = te.placeholder((c, n, n), name="x"), te.placeholder((c, 3, 3), name="w")
        self.scale = te.placeholder((c,), name="scale")
        inside = lambda i: (i >= 1) & (i < n + 1)  # noqa: E731
        self.padded = te.compute((c, n + 2, n + 2), lambda c, i, j: te.if_then_else(
            inside(i) & inside(j), self.x[c, i - 1, j - 1], 0.0), "padded")
        di, dj = te.reduce_axis(3, "di"), te.reduce_axis(3, "dj")
        self.conv = te.compute((c, n, n), lambda c, i, j: te.sum(
            self.padded[c, i + di, j + dj] * self.w[c, di, dj], [di, dj]), "conv")
        self.scaled = te.compute((c, n, n), lambda c, i, j: self.conv[c, i, j] * self.scale[c], "scaled")
        self.out = te.compute((c, n, n), lambda c, i, j: te.select(self.scaled[c, i, j] > 0.0, self.scaled[c, i, j], 0.0),
                              "out")
        self.args = [self.x, self.w, self.scale, self.out]

    def arrays(self) -> list[Any]:
        rng = np.random.default_rng(0)
        c, n = self.channels, self.size
        return [rng.integers(-4, 5, s).astype(np.float32) for s in ((c, n, n), (c, 3, 3), (c,))]

    def expected(self) -> Any:
        x, w, scale = self.arrays()
        p = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        n = x.shape[1]
        out = sum(p[:, a:a + n, b:b + n] * w[:, a, b, None, None] for a in range(3) for b in range(3))
        return np.maximum(out * scale[:, None, None], 0)


def device_schedule(d: Depthwise, side: int = 4) -> te.StageSchedule:
    """The walk-through's last step: shared input and filter, a block per tile, virtual threads, everything fused."""
    s = te.create_schedule(d.out.op)
    s[d.padded].compute_inline()
    s[d.scaled].compute_inline()
    s[d.conv].set_scope("local")
    window = s.cache_read(d.padded, "shared", [d.conv])
    weights = s.cache_read(d.w, "shared", [d.conv])
    c, h, w = s[d.out].op.axis
    by, y = s[d.out].split(h, 8)
    vy, y = s[d.out].split(y, nparts=2)
    ty, y = s[d.out].split(y, nparts=2)
    bx, x = s[d.out].split(w, 16)
    tx, x = s[d.out].split(x, nparts=side)
    s[d.out].reorder(c, by, bx, vy, ty, tx, y, x)
    for axis, tag in ((c, "blockIdx.z"), (by, "blockIdx.y"), (bx, "blockIdx.x"), (vy, "vthread"), (ty, "threadIdx.y")):
        s[d.out].bind(axis, te.thread_axis(tag))
    s[d.out].bind(tx, te.thread_axis((0, side), "threadIdx.x"))
    s[d.conv].compute_at(s[d.out], tx)
    s[window].compute_at(s[d.out], bx)
    s[weights].compute_at(s[d.out], bx)
    wy, y = s[window].split(window.op.axis[1], nparts=2)
    wx, x = s[window].split(window.op.axis[2], nparts=side)
    s[window].reorder(wy, wx, y, x)
    s[window].bind(wy, "threadIdx.y")
    s[window].bind(wx, "threadIdx.x")
    all_ = s[weights].fuse(*weights.op.axis[1:])
    _, ty = s[weights].split(all_, 2 * side)
    ty, tx = s[weights].split(ty, side)
    s[weights].bind(ty, "threadIdx.y")
    s[weights].bind(tx, "threadIdx.x")
    return s


def check(program: Program, d: Depthwise) -> None:
    out = np.zeros(d.expected().shape, np.float32)
    run(program, [*d.arrays(), out])
    np.testing.assert_array_equal(out, d.expected())


def test_the_depthwise_walk_through() -> None:
    d = Depthwise()
    sch = device_schedule(d).schedule(d.args)
    check(sch.program, d)
    text = str(sch.program)
    assert "alloc conv: f32[2, 16, 16] local" in text and "block conv_init" in text and "block padded(" not in text
    made = te.create_program("out", d.args[:3], [d.out])
    assert str(replay(sch.trace, made).program) == text


def test_a_stage_schedule_is_built_for_devices_and_the_cpu() -> None:
    d = Depthwise()
    on_device = te.build(device_schedule(d), "sm_80", args=d.args)
    assert "float padded_shared[180]" in on_device.source and "blockIdx.z" in on_device.source
    s = te.create_schedule(d.out)
    s[d.padded].compute_at(s[d.out], d.out.op.axis[0])
    s[d.conv].compute_at(s[d.out], d.out.op.axis[1])
    s[d.scaled].compute_inline()
    s[d.out].parallel(d.out.op.axis[0])
    s[d.out].vectorize(s[d.out].split(d.out.op.axis[2], 8)[1])
    built = te.build(s, args=d.args)
    np.testing.assert_array_equal(built(*d.arrays()), d.expected())
    assert "define" in built.source and "compute_inline" in str(built.schedule.trace)


@needs_opencl
def test_a_stage_schedule_runs_on_a_device() -> None:
    d = Depthwise()
    np.testing.assert_array_equal(te.build(device_schedule(d), "opencl", args=d.args)(*d.arrays()), d.expected())


def matmul(n: int = 8) -> tuple[te.Tensor, te.Tensor, te.Tensor, te.ReduceAxis]:
    a, b, k = te.placeholder((n, n), name="A"), te.placeholder((n, n), name="B"), te.reduce_axis(n, "k")
    return a, b, te.compute((n, n), lambda i, j: te.sum(a[i, k] * b[k, j], axis=[k]), name="C"), k


def check_product(sch: Schedule, n: int = 8) -> None:
    x, y, out = np.arange(n * n, dtype=np.float32).reshape(n, n) % 7, np.eye(n, dtype=np.float32) * 2, np.zeros(
        (n, n), np.float32)
    run(sch.program, [x, y, out])
    np.testing.assert_array_equal(out, x @ y)


def test_cache_write_gives_the_computation_another_stage() -> None:
    a, b, c, k = matmul()
    s = te.create_schedule(c.op)
    local = s.cache_write(c, "local")
    i, j = s[c].op.axis
    _, jo, ii, _ = s[c].tile(c.op.axis[0], c.op.axis[1], 4, 4)
    s[local].compute_at(s[c], jo)
    ko, ki = s[local].split(local.op.reduce_axis[0], 4)
    s[local].reorder(ko, *local.op.axis, ki)
    s[local].unroll(ki)
    s[c].unroll(ii)
    sch = s.schedule([a, b, c])
    check_product(sch)
    text = str(sch.program)
    assert "alloc C_local" in text and "block C_store" in text and text.count("unrolled") == 2
    assert s[local].op.reduce_axis == (s[local].leaf(ki) and local.op.reduce_axis) and i in s[c].op.axis and j != i
    with pytest.raises(UserError, match="k is not one of its axes"):
        s[c].split(k, 2)


def test_copies_may_have_several_readers() -> None:
    a = te.placeholder((8,), name="A")
    b = te.compute((8,), lambda i: a[i] * 2.0, "B")
    c = te.compute((8,), lambda i: a[i] + b[i], "C")
    s = te.create_schedule(c)
    copy = s.cache_read(a, "local", [b, c])
    s[copy].vectorize(copy.op.axis[0])
    sch = s.schedule()
    out = np.zeros(8, np.float32)
    run(sch.program, [np.arange(8, dtype=np.float32), out])
    np.testing.assert_array_equal(out, 3 * np.arange(8))
    assert str(sch.program).count("A_local[") == 3 and "cache_read(h0, 'A', 'local', [h1])" in str(sch.trace)


def test_tiles_in_turn_for_an_instruction() -> None:
    dot = te.tensor_intrinsic("""
        program test_stage_dot(c: f32[4], a: f32[4, 8], b: f32[8]):
            for i in 0..4:
                for k in 0..8:
                    c[i] = c[i] + a[i, k] * b[k]
    """, emit={})
    a, b, k = te.placeholder((16, 64), name="A"), te.placeholder((64,), name="B"), te.reduce_axis(64, "k")
    c = te.compute((16,), lambda i: te.sum(a[i, k] * b[k], axis=[k]), name="C")
    s = te.create_schedule(c.op)
    io, ii = s[c].split(c.op.axis[0], 4)
    ko, ki = s[c].split(k, 8)
    s[c].reorder(io, ko, ii, ki)
    copy = s.cache_read(a, "shared", [c])
    s[copy].compute_at(s[c], ko)
    s[copy].double_buffer()
    s[c].tensorize(ii, dot)
    sch = s.schedule([a, b, c])
    assert 'intrinsic="test_stage_dot"' in str(sch.program) and "A_shared[ko % 2, " in str(sch.program)
    rng = np.random.default_rng(0)
    x, y = (rng.integers(-9, 9, n).astype(np.float32) for n in ((16, 64), 64))
    out = np.zeros(16, np.float32)
    run(sch.program, [x, y, out])
    np.testing.assert_array_equal(out, x @ y)


def test_the_order_of_calls_does_not_matter() -> None:
    texts = []
    for turn in (False, True):
        _, _, c, _ = matmul()
        d = te.compute((8, 8), lambda i, j, c=c: c[i, j] + 1.0, "D")
        s = te.create_schedule(d)
        i, j = d.op.axis

        def producer(s: te.StageSchedule = s, c: te.Tensor = c, d: te.Tensor = d, i: Any = i) -> None:
            s[c].compute_at(s[d], i)
            s[c].unroll(s[c].split(c.op.axis[1], 4)[1])
        if turn:
            producer()
        s[d].vectorize(j)
        if not turn:
            producer()
        texts.append(str(s))
    assert texts[0] == texts[1] and "vectorized" in texts[0]


def test_what_is_wrong_is_said_at_once() -> None:
    a, b, c, _ = matmul()
    s = te.create_schedule(c.op)
    i, j = c.op.axis
    _, ii = s[c].split(i, 4)
    for call, why in (
            (lambda: s[c].split(i, 2), "i0 was split or fused already"),
            (lambda: s[c].split(j), "either factor or nparts"),
            (lambda: s[c].fuse(j, ii), "do not follow each other"),
            (lambda: s[c].reorder(ii, ii), "names an axis twice"),
            (lambda: s[a], "A is no stage"),
            (lambda: s[c].compute_at(s[c], ii), "loop of its own"),
            (lambda: s.cache_write(c, "local"), "scheduled already"),
            (lambda: s.cache_read(a, "shared", []), "name the stages"),
            (lambda: s.schedule([a, b]), "the result C is not among"),
            (lambda: te.thread_axis("threadIdx.w"), "no thread axis"),
            (lambda: te.thread_axis((1, 4), "threadIdx.x"), "do not begin at 0"),
            (lambda: te.create_schedule(a), "nothing computes A"),
            (lambda: a.op, "it has no op")):
        with pytest.raises(UserError, match=why):
            call()


def test_what_is_not_legal_is_refused_by_the_primitive() -> None:
    a, b, c, k = matmul()
    s = te.create_schedule(c.op)
    s[c].bind(k, "threadIdx.x")
    with pytest.raises(ScheduleError, match="reduces over loop k"):
        s.schedule([a, b, c])
    s = te.create_schedule(c.op)
    s[c].bind(c.op.axis[0], te.thread_axis((0, 4), "threadIdx.x"))
    with pytest.raises(UserError, match=r"has 8 steps, but threadIdx\.x has 4 threads"):
        s.schedule([a, b, c])


def test_build_refuses_what_is_none() -> None:
    a, b, c, _ = matmul()
    s = te.create_schedule(c)
    for call, why in ((lambda: te.build(3), "no schedule and no program"),  # type: ignore[arg-type]
                      (lambda: te.build(s.schedule(), args=[a, b, c]), "only a stage schedule takes arguments")):
        with pytest.raises(UserError, match=why):
            call()


def shared_product(n: int = 32) -> tuple[te.StageSchedule, list[te.Tensor]]:
    """A product whose operands are loaded together, step by step, in a loop that is written inside the threads' own."""
    a, b, c, k = matmul(n)
    s = te.create_schedule(c.op)
    shared = [s.cache_read(x, "shared", [c]) for x in (a, b)]
    mine = [s.cache_read(x, "local", [c]) for x in shared]
    sums = s.cache_write(c, "local")
    y, x = s[c].op.axis
    by, y = s[c].split(y, 16)
    bx, x = s[c].split(x, 16)
    vy, y = s[c].split(y, nparts=2)
    vx, x = s[c].split(x, nparts=2)
    ty, y = s[c].split(y, nparts=2)
    tx, x = s[c].split(x, nparts=4)
    s[c].reorder(by, bx, vy, vx, ty, tx, y, x)
    for axis, tag in ((by, "blockIdx.y"), (bx, "blockIdx.x"), (vy, "vthread"), (vx, "vthread"), (ty, "threadIdx.y"),
                      (tx, "threadIdx.x")):
        s[c].bind(axis, tag)
    s[sums].compute_at(s[c], tx)
    ko, ki = s[sums].split(k, 8)
    s[sums].reorder(ko, ki, *sums.op.axis)
    for copy in shared:
        s[copy].compute_at(s[sums], ko)
        turn, lane = s[copy].split(s[copy].fuse(*copy.op.axis), 8)
        ly, lx = s[copy].split(lane, 4)
        s[copy].reorder(ly, lx, turn)
        s[copy].bind(ly, "threadIdx.y")
        s[copy].bind(lx, "threadIdx.x")
    for copy in mine:
        s[copy].compute_at(s[sums], ki)
    return s, [a, b, c]


def test_what_a_block_shares_is_made_outside_of_its_threads() -> None:
    s, args = shared_product()
    sch = s.schedule(args)
    check_product(sch, 32)
    source = te.build(sch, "sm_80").source
    loop = source[source.index("for (int k_0"):]
    assert loop.count("__syncthreads()") == 2 and "A_shared_local" in loop and source.count("__global__") == 1
    loads = [line.strip() for line in loop.split("\n") if "] = A_shared[" in line or "] = B_shared[" in line]
    assert len(loads) == 4, loads  # of A, a row for each virtual row: it serves both virtual columns


@needs_opencl
def test_a_shared_product_runs() -> None:
    s, args = shared_product()
    x = np.arange(1024, dtype=np.float32).reshape(32, 32) % 5
    np.testing.assert_array_equal(te.build(s, "opencl", args=args)(x, x), x @ x)


def row_sums(n: int = 4, m: int = 512, lanes: int = 64) -> tuple[te.StageSchedule, list[te.Tensor]]:
    """Sums of rows by the threads of a block, two rows to a block."""
    a, k = te.placeholder((n, m), name="A"), te.reduce_axis(m, "k")
    b = te.compute((n,), lambda i: te.sum(a[i, k], axis=[k]), name="B")
    s = te.create_schedule(b.op)
    lane = s[b].split(k, lanes)[1]
    partial = s.rfactor(b, lane)
    outer, inner = s[b].split(b.op.axis[0], 2)
    s[b].bind(outer, "blockIdx.x")
    s[b].bind(inner, "threadIdx.y")
    s[b].bind(s[b].op.reduce_axis[0], te.thread_axis("threadIdx.x"))
    s[partial].compute_at(s[b], s[b].op.reduce_axis[0])
    return s, [a, b]


def test_rfactor_makes_two_stages() -> None:
    a, k = te.placeholder((4, 6), name="A"), te.reduce_axis(6, "k")
    b = te.compute((4,), lambda i: te.sum(a[i, k], axis=[k]), name="B")
    s = te.create_schedule(b.op)
    partial = s.rfactor(b, s[b].split(k, 2)[1])
    assert [x.name for x in partial.op.axis] == ["k.inner", "i0"] and len(s[b].op.reduce_axis) == 1
    s[partial].unroll(partial.op.axis[0])
    s[b].vectorize(b.op.axis[0])
    sch = s.schedule([a, b])
    x, out = np.arange(24, dtype=np.float32).reshape(4, 6), np.zeros(4, np.float32)
    run(sch.program, [x, out])
    np.testing.assert_array_equal(out, x.sum(1))
    text = str(sch.program)
    assert "in 0..2 unrolled" in text and "in 0..4 vectorized" in text and "alloc B_rf: f32[2, 4]" in text
    for call, why in ((lambda: s.rfactor(b, b.op.axis[0]), "scheduled already"),
                      (lambda: s.rfactor(b, k), "not one of its axes")):
        with pytest.raises(UserError, match=why):
            call()


def test_threads_share_a_reduction() -> None:
    s, args = row_sums()
    sch = s.schedule(args)
    x, out = np.arange(2048, dtype=np.float32).reshape(4, 512) % 7, np.zeros(4, np.float32)
    run(sch.program, [x, out], order="random", seed=3)
    np.testing.assert_array_equal(out, x.sum(1))
    text = str(sch.program)
    assert "in 0..64 threadIdx.x" in text and "in 0..16 threadIdx.x" in text and text.count("shared") == 2


@needs_opencl
def test_a_shared_reduction_runs() -> None:
    s, args = row_sums()
    x = np.arange(2048, dtype=np.float32).reshape(4, 512) % 7
    np.testing.assert_array_equal(te.build(s, "opencl", args=args)(x), x.sum(1))


def test_double_buffer_in_the_stage_style() -> None:
    """Copies of both operands for each step of the sum, in two places that steps use in turn."""
    a, b, c, k = matmul()
    s = te.create_schedule(c)
    outer, inner = s[c].split(k, 2)
    i, j = c.op.axis
    s[c].reorder(outer, i, j, inner)
    for x in (a, b):
        copy = s.cache_read(x, "local", [c])
        s[copy].compute_at(s[c], outer)
        s[copy].double_buffer()
    sch = s.schedule([a, b, c])
    x, y = (np.random.default_rng(n).integers(-3, 4, (8, 8)).astype(np.float32) for n in (0, 1))
    out = np.zeros((8, 8), np.float32)
    run(sch.program, [x, y, out])
    np.testing.assert_array_equal(out, x @ y)
    assert str(sch.trace).count("double_buffer") == 2
    text = str(sch.program)
    assert "alloc A_local: f32[2, 8, 2] local" in text and "alloc B_local: f32[2, 2, 8] local" in text
    np.testing.assert_array_equal(te.build(sch)(x, y), x @ y)
    assert str(replay(sch.trace, te.create_program("C", [a, b], [c])).program) == text


def test_double_buffer_of_what_stays_is_refused() -> None:
    a, _, c, _ = matmul()
    s = te.create_schedule(c)
    copy = s.cache_read(a, "local", [c])
    s[copy].double_buffer()  # computed by itself: no loop holds the copy and its reader
    with pytest.raises(ScheduleError, match="double_buffer: no serial loop holds all users of A_local"):
        s.schedule()


DOT8 = te.tensor_intrinsic("""
    program stage_dot8(c: f32[1], a: f32[8], b: f32[8]):
        for i in 0..8:
            c[0] = c[0] + a[i] * b[i]
""", emit={"llvm": """
    %row = load <8 x float>, ptr $a, align 4
    %column = load <8 x float>, ptr $b, align 4
    %both = fmul <8 x float> %row, %column
    %sum = call reassoc float @llvm.vector.reduce.fadd.v8f32(float 0.0, <8 x float> %both)
    %old = load float, ptr $c, align 4
    %new = fadd float %old, %sum
    store float %new, ptr $c, align 4
    declare float @llvm.vector.reduce.fadd.v8f32(float, <8 x float>)
"""})


def test_tensorize_in_the_stage_style() -> None:
    a, b, k = te.placeholder((4, 8), name="A"), te.placeholder((6, 8), name="B"), te.reduce_axis(8, "k")
    c = te.compute((4, 6), lambda i, j: te.sum(a[i, k] * b[j, k], [k]), "C")
    s = te.create_schedule(c)
    s[c].tensorize(k, DOT8)
    sch = s.schedule([a, b, c])
    assert 'intrinsic="stage_dot8"' in str(sch.program) and "tensorize(" in str(sch.trace)
    x, y = (np.random.default_rng(n).integers(-3, 4, size).astype(np.float32) for n, size in ((0, (4, 8)), (1, (6, 8))))
    out = np.zeros((4, 6), np.float32)
    run(sch.program, [x, y, out])
    np.testing.assert_array_equal(out, x @ y.T)
    built = te.build(sch)
    np.testing.assert_array_equal(built(x, y), x @ y.T)
    assert "llvm.vector.reduce.fadd" in built.source


def test_tensorize_of_another_loop_is_refused() -> None:
    a = te.placeholder((8, 8), name="A")
    c = te.compute((8, 8), lambda i, j: a[i, j] * 2.0, "C")
    s = te.create_schedule(c)
    s[c].tensorize(c.op.axis[1], DOT8)
    with pytest.raises(ScheduleError, match="tensorize: block C is not stage_dot8"):
        s.schedule([a, c])
    with pytest.raises(UserError, match="is not one of its axes"):
        s[c].tensorize(te.reduce_axis(8), DOT8)
