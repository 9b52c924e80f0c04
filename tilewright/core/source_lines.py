"""Where the source of device kernels is wrong, by what a driver says of it: the line, and the loops that it is in.

In: the text of a module as a code generator wrote it (two spaces per level, one statement a line), and the driver's words,
which count lines. Out: a text for the `where` of an error.
"""
from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"(?<=[\w>]):(\d+):\d+|\((\d+)\): error")  # f.cl:22:7, wgsl:21:16, <kernel>:22:7; kernels.cu(22): error
_MODULE = re.compile(r"Shader '(\w+)'")  # where each kernel is a module, that from whose head lines are counted
_LOOP = re.compile(r"for \((?:int|long|var) (\w+)")
_BOUND = re.compile(r"(?:const int|let) (\w+).* = .*(?:get_group_id|get_local_id|blockIdx|threadIdx|tw_block|tw_thread)")


def rejected_line(text: str, words: str) -> str:
    """The line of `text` that the words of a driver count to, and the kernel's loops around it, from the outermost, those
    bound to blocks and threads among them; "" where the words count no line of it."""
    number, module = _NUMBER.search(words), _MODULE.search(words)
    lines = text.split("\n")
    if module is not None:
        head = f"// kernel {module[1]} "
        lines = lines[next((k for k, line in enumerate(lines) if line.startswith(head)), 0):]
    n = int(number[1] or number[2]) if number is not None else 0
    if not 0 < n <= len(lines):
        return ""
    return f"line {n}{_around(lines[:n - 1], _depth(lines[n - 1]))}: {lines[n - 1].strip()}"


def _around(before: Sequence[str], depth: int) -> str:
    """The loops and the function around a line at some depth, from the lines before it."""
    loops: list[str] = []
    for line in reversed(before):
        here = _depth(line)
        if not line.strip() or here > depth:
            continue
        if here == 0 and depth > 0:
            name = re.search(r"(\w+)\(", line)
            inside = f", in the loops {', '.join(loops)}" if loops else ""
            return f"{inside} of {name[1]}" if name is not None else inside
        loop = (_BOUND if here == depth else _LOOP).match(line.strip())
        depth = here
        if loop is not None:
            loops.insert(0, loop[1])
    return ""


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
