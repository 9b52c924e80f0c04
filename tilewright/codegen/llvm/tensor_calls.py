"""LLVM code generation, tensor intrinsics: the instructions of a TensorCall, from its template, in place of its body.

In: a TensorCall whose intrinsic has a template for "llvm". Out: the template's lines, `$operands` replaced by pointers and
strides (i64), `%names` by fresh ones; declarations are the module's.
"""
from __future__ import annotations

import re

from tilewright.codegen.llvm import address
from tilewright.codegen.llvm.function import Function
from tilewright.codegen.llvm.memory import locate, memory_of
from tilewright.core.errors import UserError
from tilewright.loop import ir
from tilewright.loop.tensor_intrinsics import fill, template_for, tensor_intrinsic_named

_NAME = re.compile(r"%([A-Za-z_]\w*)")


def tensor_call(f: Function, s: ir.TensorCall) -> None:
    intrinsic = tensor_intrinsic_named(s.name)
    template = template_for(intrinsic, ("llvm",))
    if intrinsic.requires and not f.target.has(intrinsic.requires):
        raise UserError("intrinsic-target", f"{f.target.name} has no {intrinsic.requires}, which the tensor intrinsic "
                        f"{intrinsic.name} is", hint="choose a target that has it, or a schedule without it")
    places = iter(s.tiles)
    words = {}
    for operand in intrinsic.operands:
        first, *further = [next(places) for _ in range(1 + operand.rank)]
        memory_of(f, first.buffer)
        base = locate(f, first.buffer, first.indices, 1).base
        steps = [address.add(locate(f, p.buffer, p.indices, 1).base, base, -1) for p in further]
        for d, want in enumerate(operand.strides or ()):
            if ir.as_int(want) and steps[d] != {(): ir.as_int(want)} and ir.as_int(operand.shape[d]) != 1:
                raise UserError("intrinsic-layout", f"the tensor intrinsic {s.name} wants the elements of "
                                f"{first.buffer.name} {ir.as_int(want)} apart along dimension {d} of its operand "
                                f"{operand.name}", where=str(s),
                                hint="transform_layout the buffer, or cache_read it into one that lies so")
        at = address.address(f, first.buffer, first.indices)
        sizes = [address.materialize(f, p) for p in steps]
        words[operand.name] = lambda d, at=at, sizes=sizes: at if d is None else sizes[d]
    own: dict[str, str] = {}
    for line in map(str.strip, template.splitlines()):
        if line.startswith("declare "):
            f.module.declare(line.split("@", 1)[1].split("(", 1)[0], line)
        elif line:
            for name in _NAME.findall(line):
                own[name] = own.get(name) or f.fresh()
            f.line(fill(_NAME.sub(lambda m: own[m.group(1)], line), words))
