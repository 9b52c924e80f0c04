"""Which instruction a target has for sums of products of small integers, four bytes or two 16-bit numbers at a time.

In: a Target and the types of the operands. Out: the tensor intrinsic, or None where it has none.
"""
from __future__ import annotations

from tilewright.core.dtype import DType, i8
from tilewright.loop.instructions.arm import SDOT
from tilewright.loop.instructions.x86 import PMADDWD, PMADDWD_256, PMADDWD_512, VPDPBUSD, VPDPBUSD_256
from tilewright.loop.ir import as_int
from tilewright.loop.tensor_intrinsics import TensorIntrinsic
from tilewright.target.target import Target

DOT_PRODUCTS = (VPDPBUSD, VPDPBUSD_256, PMADDWD_512, PMADDWD_256, PMADDWD, SDOT)
"""The best first. Each is c[lane] += sum over k of a[k] * b[lane, k] in i32, with b as [lanes, steps]."""


def lanes(dot: TensorIntrinsic) -> int:
    """How many sums the instruction has."""
    return as_int(dot.operands[0].shape[0]) or 0


def steps(dot: TensorIntrinsic) -> int:
    """How many products it adds to each."""
    return as_int(dot.operands[1].shape[0]) or 0


def available(target: Target) -> list[TensorIntrinsic]:
    """Those of a target that fill its vectors, the best first."""
    if target.is_gpu:
        return []
    return [d for d in DOT_PRODUCTS if target.has(d.requires) and lanes(d) == target.lanes(32)]


def dot_product(target: Target, a: DType, b: DType) -> TensorIntrinsic | None:
    """The instruction for operands of two types: `a`, whose elements are shared by all sums, and `b`."""
    return next((d for d in available(target) if d.operands[1].dtype is a and d.operands[2].dtype is b), None)


def shared_type(target: Target) -> DType | None:
    """The type that operand `a` should have for the target's best instruction with `b` in i8; None if it does not matter."""
    found = available(target)
    return next((d.operands[1].dtype for d in found if d.operands[2].dtype is i8),
                found[0].operands[1].dtype if found else None)


def multiplies_bytes(target: Target) -> bool:
    """Whether products of bytes are several times as fast as those of f32: pmaddwd, whose products are added by another
    instruction, is not."""
    return any(d.operands[2].dtype.nbytes == 1 for d in available(target))
