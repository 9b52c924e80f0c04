"""A depthwise convolution on a GPU, made fast step by step.

Run it:  python docs/tutorials/depthwise_conv.py                    (all devices that are here; programs, sources, times)
         python docs/tutorials/depthwise_conv.py --quiet            (only what was measured)
         python docs/tutorials/depthwise_conv.py --html steps.html  (the last schedule as a page, primitive by primitive)

A depthwise convolution filters every channel by itself: out of x[channels, height, width] and a small filter for each
channel it makes y of the same size. A result takes 9 multiply-adds for a 3×3 filter, on numbers of which almost all are
read for its neighbours, too. So there is little to compute and much to move: 18 floating-point operations for 8 bytes
that have to cross the memory bus (one number in, one out), where a GPU has time for ten or twenty operations per byte.
The best that can be hoped for is to move these 8 bytes at the speed of the memory; all steps below are ways to get
there: to read nothing twice from far away, to have enough threads under way, and to let neighbouring threads read
neighbouring addresses.

What is computed is written once, as tensors. How it is computed is a schedule, another one in every step, of a few
lines. The compiler proves that every line keeps the meaning, or refuses it; each step's result is compared with NumPy
all the same.

The steps are those of a published walk-through: Y. Hu, "Optimize Deep Learning GPU Operators with TVM: A Depthwise
Convolution Example", 2017. This file prints the times of whatever device is here. PoCL is one, too: it runs a block's
threads one after another on a core of the CPU, where what is slow on a GPU need not be slow and shared memory is a
detour. There the counts that are printed beside the times (how often each kernel touches which memory) are the better
guide.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from steps import SHOWN, Walk, chosen, options

import tilewright
from tilewright import te
from tilewright.target.presets import get_target
from tilewright.target.target import Target

TILE = 32
"""Results along each axis that a block computes, from "Tiles of 32×32" on."""


# ---- what is computed -------------------------------------------------------------------------------------------------
class Depthwise:
    """The tensors. `padded` is x with a border of zeros, so that a window at the edge has something to read; it is a stage
    like any other, and a schedule decides whether it is ever stored. `y` is the convolution, `scaled` and `out` are what
    follows it in a network: a factor and a shift for each channel, and ReLU."""

    def __init__(self, channels: int, size: int, kernel: int, multiplier: int = 1) -> None:
        c, m, n, k = channels, multiplier, size, kernel
        p = k // 2
        self.shape, self.kernel, self.tile = (1, c * m, n, n), k, min(TILE, 1 << (n - 1).bit_length())
        self.x = te.placeholder((1, c, n, n), name="x")
        self.w = te.placeholder((c, m, k, k), name="w")
        self.scale, self.shift = (te.placeholder((c * m,), name=name) for name in ("scale", "shift"))
        self.padded = te.compute((1, c, n + 2 * p, n + 2 * p), lambda b, ch, i, j: te.if_then_else(
            (i >= p) & (i < n + p) & (j >= p) & (j < n + p), self.x[b, ch, i - p, j - p], 0.0), name="padded")
        di, dj = te.reduce_axis(k, "di"), te.reduce_axis(k, "dj")
        self.y = te.compute(self.shape, lambda b, ch, i, j: te.sum(
            self.padded[b, ch // m, i + di, j + dj] * self.w[ch // m, ch % m, di, dj], axis=[di, dj]), name="y")
        self.scaled = te.compute(self.shape, lambda b, ch, i, j: self.y[b, ch, i, j] * self.scale[ch] + self.shift[ch],
                                 name="scaled")
        self.out = te.compute(self.shape, lambda b, ch, i, j: te.maximum(self.scaled[b, ch, i, j], 0.0), name="out")
        self.args, self.fused_args = [self.x, self.w, self.y], [self.x, self.w, self.scale, self.shift, self.out]

    def inputs(self) -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        _, c, n, _ = (int(d.value) for d in self.x.shape)
        m = self.shape[1] // c
        shapes = [(1, c, n, n), (c, m, self.kernel, self.kernel), (c * m,), (c * m,)]
        return [rng.standard_normal(s).astype(np.float32) for s in shapes]

    def expected(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        """The convolution by NumPy in float64."""
        p, n, k = self.kernel // 2, x.shape[-1], self.kernel
        m = w.shape[1]
        padded = np.repeat(np.pad(x.astype(np.float64), ((0, 0), (0, 0), (p, p), (p, p))), m, axis=1)
        filters = w.reshape(-1, k, k)
        return sum(padded[:, :, a:a + n, b:b + n] * filters[:, a, b, None, None] for a in range(k) for b in range(k))


# ---- how: one schedule after another -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Threads:
    """Threads of a block along y and x, and the virtual threads along each. This alone differs between devices."""
    y: int
    x: int
    virtual_y: int = 1
    virtual_x: int = 1


def one_per_result(target: Target) -> Threads:
    """A warp along x, so that 32 neighbouring threads write 32 neighbouring results."""
    return Threads(min(8, target.max_threads // target.warp), target.warp)


def bind(stage: te.Stage, **axes: tuple[te.Axis, ...]) -> None:
    """Loops become blocks and threads, the last of each along x, the one before along y."""
    for kind, loops in axes.items():
        for loop, letter in zip(loops, "zyx"[-len(loops):], strict=True):
            stage.bind(loop, te.thread_axis(f"{kind}.{letter}"))


def threads_over(s: te.StageSchedule, tensor: te.Tensor, threads: Threads) -> te.Stage:
    """Blocks of `threads`, each thread one element of a tensor."""
    stage = s[tensor]
    batch, channel, i, j = tensor.op.axis
    plane = stage.fuse(batch, channel)
    (by, ty), (bx, tx) = stage.split(i, threads.y), stage.split(j, threads.x)
    stage.reorder(plane, by, bx, ty, tx)
    bind(stage, blockIdx=(plane, by, bx), threadIdx=(ty, tx))
    return bx


def load_together(s: te.StageSchedule, stage: te.Stage, threads: Threads) -> None:
    """All threads of a block load a stage's part: neighbours neighbouring elements, then as many further on."""
    _, mine = stage.split(stage.fuse(*stage.op.axis), threads.y * threads.x)
    ty, tx = stage.split(mine, threads.x)
    stage.bind(ty, "threadIdx.y")
    stage.bind(tx, "threadIdx.x")


def naive(d: Depthwise, target: Target) -> te.StageSchedule:
    """A thread for each element.

    Both stages as they stand, each a kernel of its own: the first writes x with its border to memory, the second reads
    it back, nine times for each result, and keeps its sum in memory, too: the program says y[…] = y[…] + …, and means
    it. What limits it: loads and stores. Every multiply-add touches memory four times. Caches catch most of that, but a
    load that hits a cache takes its turn as well, and there are 27 of them, and 10 stores, for 9 multiply-adds. What no
    cache catches is `padded`, as large as x: 8 more bytes for each result, as many as the convolution itself has to
    move.
    """
    s = te.create_schedule(d.y.op)
    threads_over(s, d.padded, one_per_result(target))
    threads_over(s, d.y, one_per_result(target))
    return s


def padding_inlined(d: Depthwise, target: Target) -> te.StageSchedule:
    """The border computed where it is read.

    `compute_inline` puts the expression of `padded` in the place of its reads: one kernel, and x is read where it is.
    The price is a condition at every read, (i >= 1) & …, nine of them for each result; the gain is that nothing of the
    size of x is written and read again. What limits it now: the same nine reads of x, nine of the filter and nine
    updates of y for each result, each with the arithmetic of its address and its condition.
    """
    s = te.create_schedule(d.y.op)
    s[d.padded].compute_inline()
    threads_over(s, d.y, one_per_result(target))
    return s


def shared_memory(d: Depthwise, target: Target) -> te.StageSchedule:
    """Window and filter in shared memory.

    A block of 8×32 results needs a window of 10×34 elements of x, each of which up to nine of its threads read. So the
    block fetches the window once into shared memory, all threads together, and the conditions of the border are asked
    once for each element that is fetched. `cache_read` makes that copy, `compute_at` says for which loop (what is
    needed there follows from the indices), and the barrier between fetching and using is placed by the compiler, where
    the dependence is and nowhere else (`tilewright inspect --barriers` says which two accesses ask for one).
    `cache_write` keeps the sum in a register. What limits it now: shared memory, read twice for each multiply-add; and
    a third more is fetched than there are results, 340 elements for 256, since the borders of neighbouring windows
    overlap.
    """
    s = te.create_schedule(d.y.op)
    threads = one_per_result(target)
    s[d.padded].compute_inline()
    window, weights = s.cache_read(d.padded, "shared", [d.y]), s.cache_read(d.w, "shared", [d.y])
    total = s.cache_write(d.y, "local")
    block = threads_over(s, d.y, threads)
    for stage in (window, weights):
        s[stage].compute_at(s[d.y], block)
        load_together(s, s[stage], threads)
    s[total].compute_at(s[d.y], s[d.y].leaves[-1])
    return s


def tiled(s: te.StageSchedule, d: Depthwise, result: te.Tensor, threads: Threads,
          tile: int | None) -> te.StageSchedule:
    """The form of all further steps: a block computes a tile of one channel (the whole channel without `tile`), each thread
    a part of it.

        channel, tile y, tile x | virtual y, virtual x | thread y, thread x | y, x of a thread
    """
    s[d.padded].compute_inline()
    total = d.y
    if result is d.y:
        total = s.cache_write(d.y, "local")
    else:  # what follows the convolution takes its sums from registers
        s[d.scaled].compute_inline()
        s[d.y].set_scope("local")
    window, weights = s.cache_read(d.padded, "shared", [total]), s.cache_read(d.w, "shared", [total])
    out = s[result]
    batch, channel, i, j = out.op.axis
    plane = out.fuse(batch, channel)
    (by, i), (bx, j) = (out.split(a, nparts=1) if tile is None else out.split(a, tile) for a in (i, j))
    (vy, i), (vx, j) = out.split(i, nparts=threads.virtual_y), out.split(j, nparts=threads.virtual_x)
    (ty, i), (tx, j) = out.split(i, nparts=threads.y), out.split(j, nparts=threads.x)
    out.reorder(plane, by, bx, vy, vx, ty, tx, i, j)
    bind(out, blockIdx=(plane, by, bx), threadIdx=(ty, tx))
    for axis in (vy, vx):
        out.bind(axis, te.thread_axis("vthread"))
    for stage in (window, weights):
        s[stage].compute_at(out, bx)
        load_together(s, s[stage], threads)
    s[total].compute_at(out, tx if tile is not None else j)  # a whole channel: one result after another
    return s


def block_per_channel(d: Depthwise, target: Target, threads: Threads) -> te.StageSchedule:
    """One block per channel.

    If the window is the whole channel, nothing is fetched twice: the border is fetched once for 9216 results instead of
    once for 256. Each thread computes a part of the channel one result after another. There are as many blocks as
    channels, and they are large: a channel of 96×96 with its border takes 37.5 KiB of shared memory, so that only a few
    blocks, of few threads, fit onto a processor of the device at once (and none at all where a block may have 32 KiB:
    the compiler says so below, in bytes). What limits it: occupancy. While a block fetches its channel, its processor
    has little else to do.
    """
    return tiled(te.create_schedule(d.y.op), d, d.y, threads, None)


def blocked(d: Depthwise, target: Target, threads: Threads) -> te.StageSchedule:
    """Tiles of 32×32.

    Between these two: a block computes 32×32 results of a channel, out of a window of 34×34, 4.5 KiB. Of what is
    fetched, 13 % more than there are results, little is fetched twice; and many blocks fit onto a processor, so that some
    fetch while others compute. What limits it now is how the 1024 results are shared out among the threads.
    """
    return tiled(te.create_schedule(d.y.op), d, d.y, threads, d.tile)


def thread_tiles(d: Depthwise, target: Target, threads: Threads) -> te.StageSchedule:
    """The best number of threads.

    More threads hide the latency of memory better; fewer do more each, so that what neighbouring results share is read
    from shared memory once and kept in registers, and the arithmetic of addresses is done once. No formula says what is
    best on a device: all divisions of the tile into num_thread_y × num_thread_x are tried. The schedule is the same,
    but for these two numbers.
    """
    return tiled(te.create_schedule(d.y.op), d, d.y, threads, d.tile)


def virtual_threads(d: Depthwise, target: Target, threads: Threads) -> te.StageSchedule:
    """Virtual threads and strided access.

    With 8 threads along x, each computes 4 results side by side: at one moment, thread t reads column 4·t of the window
    and writes column 4·t of y. Such strided accesses fall onto few banks of shared memory (a conflict makes them wait
    for each other), and the writes of a warp spread over four times as many lines of memory as they fill at once.
    Virtual threads turn this around: the tile is first cut into `virtual_x` stripes, and in each of them the threads
    take neighbouring columns. A thread works on all stripes, interleaved. The loops over virtual threads are bound like
    others, and disappear.
    """
    return tiled(te.create_schedule(d.y.op), d, d.y, threads, d.tile)


def unfused(d: Depthwise, target: Target, threads: Threads) -> te.StageSchedule:
    """Scale, shift and ReLU in kernels of their own.

    A network goes on with a scale and a shift for each channel, and ReLU. As kernels of their own they do next to
    nothing: two operations for 8 bytes, twice. Each takes about as long as the convolution, since all of them just move
    bytes.
    """
    s = tiled(te.create_schedule(d.out.op), d, d.y, threads, d.tile)
    for tensor in (d.scaled, d.out):
        threads_over(s, tensor, one_per_result(target))
    return s


def fused(d: Depthwise, target: Target, threads: Threads) -> te.StageSchedule:
    """Scale, shift and ReLU fused.

    The same schedule, with one other line: the sums of the convolution stay in registers, and the stage that is written
    to memory is the last one, ReLU, into which scale and shift are inlined. What came after the convolution is now
    free: three arithmetic instructions on a number that a thread holds anyway, and 16 bytes less to move for each
    result.
    """
    return tiled(te.create_schedule(d.out.op), d, d.out, threads, d.tile)


# ---- the walk ------------------------------------------------------------------------------------------------------------
def search(walk: Walk, d: Depthwise) -> dict[str, Threads]:
    """For each device the best division of a tile among threads, by trying all."""
    best: dict[str, Threads] = {}
    for target in walk.devices:
        found: list[tuple[float, Threads]] = []
        for threads in divisions(d.tile, target):
            f = te.build(tiled(te.create_schedule(d.y.op), d, d.y, threads, d.tile), target, args=d.args)
            found.append((f.benchmark(*walk.inputs[:2], runs=5, seconds=0.1).minimum, threads))
            f.close()
        best[target.name] = min(found, key=lambda pair: pair[0])[1]
        print(f"\nnum_thread_y × num_thread_x on {target.name}, µs: "
              + ", ".join([f"{t.y}×{t.x} {ms * 1e3:.0f}" for ms, t in found]))
    return best


def divisions(tile: int, target: Target) -> list[Threads]:
    """All powers of two along y and x that divide a tile and make at least a warp, as far as the device has threads."""
    sides = [n for n in (1, 2, 4, 8, 16, 32) if n <= tile]
    return [Threads(y, x) for y in sides for x in sides if min(target.warp, tile * tile) <= y * x <= target.max_threads]


def main() -> None:
    given = options(__doc__.partition("\n")[0], channels=256, size=96, kernel=3, multiplier=1)
    d = Depthwise(given.channels, given.size, given.kernel, given.multiplier)
    x, w, scale, shift = d.inputs()
    plain = d.expected(x, w)
    final = np.maximum(plain * scale[:, None, None] + shift[:, None, None], 0)
    walk = Walk((x, w), chosen(given.devices), not given.quiet)
    start = Threads(min(8, d.tile), min(8, d.tile))

    walk.step(naive, lambda t: naive(d, t), d.args, plain)
    walk.step(padding_inlined, lambda t: padding_inlined(d, t), d.args, plain)
    walk.step(shared_memory, lambda t: shared_memory(d, t), d.args, plain)
    walk.step(block_per_channel, lambda t: block_per_channel(d, t, start), d.args, plain)
    walk.step(blocked, lambda t: blocked(d, t, start), d.args, plain)
    best = search(walk, d)
    walk.step(thread_tiles, lambda t: thread_tiles(d, t, best.get(t.name, start)), d.args, plain)
    strided = {t: replace(best.get(t, start), virtual_x=d.tile // best.get(t, start).x) for t in [*best, *SHOWN]}
    walk.step(virtual_threads, lambda t: virtual_threads(d, t, strided[t.name]), d.args, plain)
    walk.inputs = (x, w, scale, shift)
    walk.step(unfused, lambda t: unfused(d, t, strided[t.name]), d.fused_args, final)
    walk.step(fused, lambda t: fused(d, t, strided[t.name]), d.fused_args, final)
    walk.summary(flops=2 * plain.size * given.kernel**2, nbytes=4 * (x.size + plain.size))
    if given.html:
        Path(given.html).write_text(tilewright.schedule_html(fused(d, get_target(SHOWN[0]), strided[SHOWN[0]])), "utf-8")


if __name__ == "__main__":
    main()
