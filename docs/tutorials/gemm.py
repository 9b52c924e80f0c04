"""A product of matrices on a GPU, made fast step by step.

Run it:  python docs/tutorials/gemm.py                    (all devices that are here; programs, sources, times)
         python docs/tutorials/gemm.py --quiet            (only what was measured)
         python docs/tutorials/gemm.py --html steps.html  (the last schedule as a page, primitive by primitive)

C = A·B of n×n matrices takes 2n³ operations on 3n² numbers. For n = 512 that is 85 operations for each byte that must cross
the memory bus: enough to be limited by arithmetic, if every number that has been fetched is used often enough while it is
near. There are three places to be near in: the caches, which take care of themselves; shared memory, which a block fills by
its own loads; and registers. Each step below moves reuse one place closer, because each place has a limit of its own: a
multiply-add that takes both operands from shared memory waits for shared memory, not for the multiplier.

Sizes are multiples of the tile here, so that the programs stay free of conditions; the compiler writes those where they are
needed, as the tutorial on depthwise convolutions shows.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from steps import SHOWN, Walk, chosen, options

import tilewright
from tilewright import te
from tilewright.loop.instructions import nvidia
from tilewright.loop.ir import Var
from tilewright.target.presets import get_target
from tilewright.target.target import Target


# ---- what is computed -------------------------------------------------------------------------------------------------
class Product:
    """C[i, j] = Σ A[i, k] · B[k, j]"""

    def __init__(self, n: int, dtype: str = "f32") -> None:
        self.a, self.b = te.placeholder((n, n), dtype, "A"), te.placeholder((n, n), dtype, "B")
        k = te.reduce_axis(n, "k")
        self.c = te.compute((n, n), lambda i, j: te.sum(self.a[i, k].cast("f32") * self.b[k, j].cast("f32"), axis=[k]),
                            name="C")
        self.args = [self.a, self.b, self.c]


# ---- how: one schedule after another -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Tile:
    """Results of a block along each axis, threads along each axis, whether a thread's columns lie apart, elements of k per
    step, and elements per load."""
    side: int
    threads: int
    apart: bool = False
    step: int = 16
    wide: int = 1


def square(target: Target) -> int:
    """Threads along each axis of a square block: 16, if the device has 256 threads for a block."""
    return 16 if target.max_threads >= 256 else 8


def naive(p: Product, target: Target) -> te.StageSchedule:
    """A thread for each result.

    Rows of threads: a block computes a piece of one row of C. In each step of the loop over k its threads read one element
    of A, the same for all, and neighbouring elements of a row of B; and they read and write their sum, which the program
    keeps in memory. What limits it: loads and stores, three and one for each multiply-add.
    """
    s = te.create_schedule(p.c.op)
    i, j = p.c.op.axis
    block, thread = s[p.c].split(j, min(target.max_threads, 64))
    s[p.c].bind(i, "blockIdx.y")
    s[p.c].bind(block, "blockIdx.x")
    s[p.c].bind(thread, "threadIdx.x")
    return s


def blocked(p: Product, target: Target) -> te.StageSchedule:
    """Square blocks, sums in registers.

    A block computes 16×16 results. In each step over k it reads 16 elements of A and 16 of B for 256 multiply-adds, where a
    row of 64 threads read 65 elements for 64: the same loads, but the caches find 8 in 9 of them close by. The sum is a
    stage of its own in a register (`cache_write`), stored once. What limits it now: two loads for each multiply-add, that
    have to go through the cache.
    """
    s = te.create_schedule(p.c.op)
    total = s.cache_write(p.c, "local")
    side = square(target)
    by, bx, ty, tx = s[p.c].tile(*s[p.c].op.axis, side, side)
    for axis, name in ((by, "blockIdx.y"), (bx, "blockIdx.x"), (ty, "threadIdx.y"), (tx, "threadIdx.x")):
        s[p.c].bind(axis, name)
    s[total].compute_at(s[p.c], tx)
    return s


def tiled(p: Product, tile: Tile) -> te.Schedule:
    """The form of all further steps: in each step over k all threads of a block load a tile of A and one of B. It is written
    in the other style of schedules, where each primitive is applied to the program at once.

        tile y, tile x | k outer: load A, load B | thread y, thread x | k inner | y, x of a thread
    """
    sch = te.Schedule(te.create_program("C", [p.a, p.b], [p.c]))
    block = sch.block("C")
    store = sch.cache_write(block, 0, "local")  # the sums in registers; this block copies them to C
    i, j, k = sch.loops(block)
    (by, i), (bx, j), (outer, inner) = (sch.split(v, [None, n]) for v, n in ((i, tile.side), (j, tile.side), (k, tile.step)))
    ty, i, tx, j = threads(sch, i, j, tile)
    sch.reorder(by, bx, outer, ty, tx, inner, i, j)
    sch.reverse_compute_at(store, bx)
    zero = sch.decompose_reduction(block, outer)
    copies = [sch.cache_read(block, name, "shared") for name in "AB"]
    for copy in copies:
        sch.compute_at(copy, outer)
    sch.bind(by, "blockIdx.y")
    sch.bind(bx, "blockIdx.x")
    for copy in copies:  # neighbours load neighbouring elements, `wide` of them at once
        sch.cooperative_fetch(copy, [("threadIdx.y", tile.threads), ("threadIdx.x", tile.threads)], tile.wide)
    *_, u, v = sch.loops(store)
    own, _, across, _ = threads(sch, u, v, tile)
    for y, x in ((ty, tx), sch.loops(zero)[2:4], (own, across)):
        sch.bind(y, "threadIdx.y")
        sch.bind(x, "threadIdx.x")
    return sch


def threads(sch: te.Schedule, i: Var, j: Var, tile: Tile) -> tuple[Var, Var, Var, Var]:
    """The rows and columns of a tile shared out: (thread y, its rows, thread x, its columns)."""
    ty, rows = sch.split(i, [tile.threads, None])
    if tile.apart:
        columns, tx = sch.split(j, [None, tile.threads])
    else:
        tx, columns = sch.split(j, [tile.threads, None])
    sch.reorder(ty, tx, rows, columns)
    return ty, rows, tx, columns


def shared_memory(p: Product, target: Target) -> te.Schedule:
    """Tiles of both operands in shared memory.

    The loop over k goes in steps of 16. In each of them the 256 threads load 16×16 elements of A and as many of B, one each,
    and then take their operands from shared memory: one load from afar for 16 multiply-adds. Two barriers stand in each
    step: the tile must be complete before it is read, and read before it is overwritten. What limits it now: shared memory,
    from which each multiply-add reads two numbers.
    """
    return tiled(p, Tile(square(target), square(target)))


def register_tile(p: Product, target: Target) -> te.Schedule:
    """Sixteen results for each thread.

    A thread computes 4×4 results of a tile of 64×64. In each step of k it reads 4 elements of A and 4 of B for 16
    multiply-adds: half a read each, instead of two, once the compiler of the device keeps them in registers. What limits it
    now: the banks of shared memory. Threads side by side read elements of B that are 4 apart, and store results 4 apart.
    """
    return tiled(p, Tile(4 * square(target), square(target)))


def strided(p: Product, target: Target) -> te.Schedule:
    """Columns that lie apart.

    The columns are shared out the other way round: threads side by side have columns side by side, and those of one thread
    lie 16 apart. Neighbours read from, and write to, the next bank and the next address. (Virtual threads, as in the
    tutorial on depthwise convolutions, are another way to say this.) What limits it now: the multipliers, where there are
    enough threads to wait for the loads; and the instructions that load the tiles one number at a time.
    """
    return tiled(p, Tile(4 * square(target), square(target), apart=True))


def wide_loads(p: Product, target: Target) -> te.Schedule:
    """Four numbers for each load.

    A quarter of the instructions that fetch the tiles, each of 16 bytes: the innermost loop of the copies is
    vectorized. That asks for places in memory that are multiples of 16 bytes apart, which the sizes here are.
    """
    return tiled(p, Tile(4 * square(target), square(target), apart=True, wide=4))


def load_ahead(p: Product, target: Target) -> te.Schedule:
    """The next tiles on their way while this one is used.

    So far each step waits: for the loads, then for the slowest thread to have used them. A pipelined loop over k loads the
    tiles of its next step while it computes with those of this one, into a second place in shared memory: one barrier for
    each step instead of two, and the loads have the time of a whole step to arrive.
    What limits it now: nothing but the multipliers, if the compiler of the device keeps sums and operands in registers.
    """
    sch = wide_loads(p, target)
    _, _, outer, *_ = sch.loops(sch.block("C"))
    sch.software_pipeline(outer, 2)
    return sch


WARPS, FRAGMENTS, DEPTH = (2, 2), (2, 4), 2
"""Of the next step: warps of a block, 16×8 tiles of a warp, and steps of 16 along k for which tiles are loaded at once."""


def tensor_cores(p: Product, target: Target) -> te.Schedule | None:
    """Tensor cores.

    For 16-bit floats there are instructions by which a warp multiplies small matrices at once: 16×16 by 16×8 here, 2048
    multiply-adds. The matrices lie in the registers of the warp's threads, in an order that the instruction prescribes; in
    the program they are plain buffers of scope "warp". `tensorize` replaces a nest of loops by an instruction after proving
    that the nest does what the instruction does: filling, loading from shared memory, multiplying, storing. The sums are
    f32. The instructions are library values (tilewright/loop/instructions/nvidia.py), so other hardware adds its own there.
    Only CUDA has them, from compute capability 8.0 on. The tiles' rows are padded in shared memory (`storage_align`), so
    that the eight rows which a load reads at once lie in different banks. The compiler's own rule for such products, with
    tiles chosen by size, copies on their way during the product, and any size and layout, is
    tilewright/tensor/rules/gpu_tensor_cores.py.
    """
    if target.language != "cuda" or not target.has("mma"):
        return None
    sch = te.Schedule(te.create_program("product", [p.a, p.b], [p.c]))
    block = sch.block("C")
    store = sch.cache_write(block, 0, "warp")
    i, j, k = sch.loops(block)
    i0, i1, i2, i3 = sch.split(i, [None, WARPS[0], FRAGMENTS[0], 16])  # block, warp, tile, row of the tile
    j0, j1, j2, j3 = sch.split(j, [None, WARPS[1], FRAGMENTS[1], 8])
    k0, k1, k2 = sch.split(k, [None, DEPTH, 16])
    sch.reorder(i0, j0, k0, i1, j1, k1, i2, j2, i3, j3, k2)
    sch.reverse_compute_at(store, j0)
    init = sch.decompose_reduction(block, k0)
    copies = [sch.cache_read(block, name, "shared") for name in "AB"]
    loads = [sch.cache_read(block, name, "warp") for name in ("A_shared", "B_shared")]
    for load in loads:
        sch.compute_at(load, k1)
    for copy in copies:
        sch.compute_at(copy, k0)
    sch.bind(i0, "blockIdx.y")
    sch.bind(j0, "blockIdx.x")
    for copy in copies:
        sch.cooperative_fetch(copy, [("threadIdx.z", WARPS[0]), ("threadIdx.y", WARPS[1]), ("threadIdx.x", 32)], 4)
        sch.storage_align(copy, 0, 0, 16, 8)
    for load, (rows, columns), intrinsic in zip(loads, ((16, 16), (16, 8)), (nvidia.LDMATRIX_A_F16, nvidia.LDMATRIX_B_F16),
                                                strict=True):
        *_, r, c = sch.loops(load)
        (r0, r1), (c0, c1) = sch.split(r, [None, rows]), sch.split(c, [None, columns])
        sch.reorder(r0, c0, r1, c1)
        for loop in (r0, c0):
            sch.unroll(loop)
        sch.tensorize(r1, intrinsic)
    for loop in (i2, j2):
        sch.unroll(loop)
    sch.tensorize(i3, nvidia.MMA_F16)
    *_, z, y, u, v, r, _ = sch.loops(init)
    sch.tensorize(r, nvidia.MMA_FILL)
    *_, r, c = sch.loops(store)
    (r0, r1, r2), (c0, c1, c2) = sch.split(r, [WARPS[0], None, 16]), sch.split(c, [WARPS[1], None, 8])
    sch.reorder(r0, c0, r1, c1, r2, c2)
    sch.tensorize(r2, nvidia.MMA_STORE)
    for loop in (u, v, r1, c1):
        sch.unroll(loop)
    for down, across in ((i1, j1), (z, y), (r0, c0)):
        sch.bind(down, "threadIdx.z")
        sch.bind(across, "threadIdx.y")
    return sch


# ---- the walk ------------------------------------------------------------------------------------------------------------
def main() -> None:
    given = options(__doc__.partition("\n")[0], size=512)
    if given.size % 64:
        raise SystemExit("--size must be a multiple of 64, the side of a tile")
    p = Product(given.size)
    a, b = (np.random.default_rng(k).standard_normal((given.size, given.size)).astype(np.float32) for k in (0, 1))
    want = a.astype(np.float64) @ b
    walk = Walk((a, b), chosen(given.devices), not given.quiet)
    for step in (naive, blocked, shared_memory, register_tile, strided, wide_loads, load_ahead):
        walk.step(step, lambda t, step=step: step(p, t), p.args, want)
    half = Product(given.size, "f16")
    walk.inputs = a, b = a.astype(np.float16), b.astype(np.float16)
    walk.step(tensor_cores, lambda t: tensor_cores(half, t), half.args, a.astype(np.float64) @ b.astype(np.float64))
    walk.summary(flops=2 * given.size**3, nbytes=4 * 3 * given.size**2)
    if given.html:
        Path(given.html).write_text(tilewright.schedule_html(load_ahead(p, get_target(SHOWN[0]))), "utf-8")


if __name__ == "__main__":
    main()
