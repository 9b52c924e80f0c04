"""tensorize: a nest that does what a tensor intrinsic does becomes that instruction.

    tensorize(ii, DOT)
        for ii in 0..16: for ki in 0..4:                       block C(vio = io, vko: reduce = ko) {intrinsic="dot"}:
          block C(…): C[…] += i32(A[…]) * i32(B[…])     →        for ii in 0..16: for ki in 0..4: C[…] += …

The loops stay what the block means; lowering puts the instruction in their place. An intrinsic is a value
(`loop/tensor_intrinsics.py`): its program says what it does, its templates how code generators write it.
"""
from __future__ import annotations

from tilewright.loop.ir import Block, Program, Var
from tilewright.loop.match_tensor import match_tensor, wrong_strides
from tilewright.loop.tensor_intrinsics import KEY, TensorIntrinsic, tensor_intrinsic_named
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef, ScheduleError, edit, find_block, is_parameter, loops_around
from tilewright.tensor.schedule.trace import primitive

NAME = "tensorize"


@primitive
def tensorize(sch: Schedule, place: Var | BlockRef, intrinsic: TensorIntrinsic | str, allow: str = "") -> BlockRef:
    """Let an intrinsic compute the tile that `place` does: a block that is a tile, or a loop, which is blockized first. The
    intrinsic is a value or the name of one that was declared. Returns the block.

    Legal if the tile equals the intrinsic's program, up to names, buffers, places and strides (see
    `loop/match_tensor.py`); an initialisation of the tile stays as it is, before the instruction. `allow`: the type to which
    an intrinsic may round its operands ("tf32"), where it does. Raises ScheduleError.
    """
    if isinstance(intrinsic, str):
        intrinsic = tensor_intrinsic_named(intrinsic)
    ref = place if isinstance(place, BlockRef) else sch.blockize(place)
    block = find_block(sch.program, ref)
    if KEY in dict(block.attrs):
        raise ScheduleError(NAME, f"block {block.name} is {dict(block.attrs)[KEY]} already", sch.program, ref)
    why = mismatch(sch.program, block, intrinsic)
    if why is not None:
        raise ScheduleError(NAME, f"block {block.name} is not {intrinsic.name}: {why}", sch.program, ref,
                            hint=f"the intrinsic does this:\n{intrinsic.body}")
    if intrinsic.rounds != allow and intrinsic.rounds:
        raise ScheduleError(NAME, f"{intrinsic.name} rounds its operands to {intrinsic.rounds}", sch.program, ref,
                            hint=f"say that this is meant: allow={intrinsic.rounds!r}")
    for f in loops_around(sch.program, block):
        if f.kind == "vectorized" or intrinsic.threads > 1 and f.kind == "threadIdx.x":
            raise ScheduleError(NAME, f"loop {f.var.name} is {f.kind}: {intrinsic.name} takes "
                                f"{'all threads along it' if f.kind != 'vectorized' else 'whole vectors itself'}",
                                sch.program, f.var)
    if intrinsic.threads > 1 and block.init is not None:
        raise ScheduleError(NAME, f"one thread would initialise what {intrinsic.threads} hold together", sch.program, ref,
                            hint="decompose_reduction, and tensorize its initialisation, too")
    sch.program = edit(sch.program, block, block.replace(attrs=(*block.attrs, (KEY, intrinsic.name))))
    return ref


def mismatch(program: Program, block: Block, intrinsic: TensorIntrinsic) -> str | None:
    """Why a block is not an intrinsic, or None."""
    tiles = match_tensor(block.body, intrinsic)
    if isinstance(tiles, str):
        return tiles
    final = [t.buffer.strides is not None or is_parameter(program, t.buffer) for t in tiles]
    fixed = [(o, t) for o, t, known in zip(intrinsic.operands, tiles, final, strict=True) if known]
    return wrong_strides([o for o, _ in fixed], [t for _, t in fixed])
