"""storage_align: one dimension of a block's own buffer gets a stride that keeps threads out of each other's memory banks.

    storage_align(A_shared, 0, axis=0, factor=32, offset=1)
        A_shared[64, 32], rows 32 elements apart      →      rows 33 elements apart

Rows that are a multiple of 32 words apart put a column into one bank of shared memory; an odd stride spreads it over all.
"""
from __future__ import annotations

from tilewright.tensor.regions import outputs
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef, ScheduleError, find_block, is_parameter
from tilewright.tensor.schedule.trace import primitive

ALIGN = "storage_align"
"""The program's attribute: (name of a buffer, axis, factor, offset), read when the buffer has its final shape."""


@primitive
def storage_align(sch: Schedule, block: BlockRef, index: int, axis: int, factor: int, offset: int) -> None:
    """Let the stride of dimension `axis` of the `index`-th output of `block` be the least s with s mod factor == offset
    that is large enough, once lowering has given the buffer its shape. Raises ScheduleError for a parameter, the last
    dimension or numbers that make no sense."""
    program = sch.program
    b = find_block(program, block)
    made = outputs(b)
    if not 0 <= index < len(made):
        raise ScheduleError(ALIGN, f"the block has no output {index}", program, block)
    buffer = made[index]
    if is_parameter(program, buffer):
        raise ScheduleError(ALIGN, f"{buffer.name} is a parameter of the program: the caller decides how it lies", program,
                            block)
    if not 0 <= axis < buffer.rank - 1:
        raise ScheduleError(ALIGN, f"axis {axis} of {buffer.name} is not in [0, {buffer.rank - 1}): the last dimension "
                            "stays dense", program, block)
    if factor < 1 or not 0 <= offset < factor:
        raise ScheduleError(ALIGN, f"no stride is {offset} modulo {factor}", program, block)
    old = [row for row in program.attr(ALIGN, ()) if row[:2] != (buffer.name, axis)]
    attrs = [(k, v) for k, v in program.attrs if k != ALIGN]
    sch.program = program.replace(attrs=(*attrs, (ALIGN, (*old, (buffer.name, axis, factor, offset)))))
