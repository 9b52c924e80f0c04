"""What the kernels of a cubin take of a multiprocessor, read from the cubin itself.

In: the bytes of a cubin, an ELF file. Out: per kernel its registers, its bytes on the stack and its shared memory. What
finds no register is spilled to the stack, where indexed private arrays are too: a stack of zero bytes says there is neither.

Section ".nv.info" is a sequence of attributes, (format, number, length or value) of 1, 1 and 2 bytes, then `length` bytes
where the format is 4; of those about kernels these are the kernel's symbol and a value. The numbers are what NVIDIA's own
`cuobjdump -elf` names EIATTR_FRAME_SIZE and EIATTR_REGCOUNT.
"""
from __future__ import annotations

import struct
from typing import NamedTuple

FRAME_SIZE, REGISTERS = 0x11, 0x2F
SIZED = 4
"""The format of attributes that are followed by bytes."""


class Usage(NamedTuple):
    """Registers of a thread, bytes of a thread's stack, bytes of a block's static shared memory."""
    registers: int
    stack: int
    shared: int


def resource_usage(cubin: bytes) -> dict[str, Usage]:
    """By kernel, in the order of the file."""
    table, sections = _sections(cubin)
    symbols = [_text(cubin, table[s[6]], struct.unpack_from("<I", cubin, at)[0])
               for s in table if s[1] == 2 for at in range(s[4], s[4] + s[5], 24)]
    facts: dict[tuple[str, int], int] = {}
    _, _, _, _, begin, size, *_ = sections[".nv.info"]
    at = begin
    while at < begin + size:
        form, number, length = struct.unpack_from("<BBH", cubin, at)
        at += 4
        if form == SIZED:
            if number in (FRAME_SIZE, REGISTERS):
                symbol, value = struct.unpack_from("<II", cubin, at)
                facts[symbols[symbol], number] = value
            at += length
    kernels = [name.removeprefix(".text.") for name in sections if name.startswith(".text.")]
    return {k: Usage(facts[k, REGISTERS], facts[k, FRAME_SIZE],
                     sections[f".nv.shared.{k}"][5] if f".nv.shared.{k}" in sections else 0)
            for k in kernels if (k, REGISTERS) in facts}


def _sections(elf: bytes) -> tuple[list[tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """The table of sections (System V ABI, chapter 4), and the same by name."""
    start = struct.unpack_from("<Q", elf, 40)[0]
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    table = [struct.unpack_from("<IIQQQQIIQQ", elf, start + i * size) for i in range(count)]
    return table, {_text(elf, table[names], s[0]): s for s in table}


def _text(elf: bytes, strings: tuple[int, ...], at: int) -> str:
    begin = strings[4] + at
    return elf[begin:elf.index(b"\0", begin)].decode()
