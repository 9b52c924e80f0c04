"""The lowering pipeline: one scheduled program in, a module of flat loops that code generators print out.

The list below is the order; the comments say which invariant begins and ends where.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilewright.core.node import Node
from tilewright.loop.ir import Module, Program
from tilewright.loop.lower.compact_storage import compact_storage
from tilewright.loop.lower.flatten_blocks import flatten_blocks
from tilewright.loop.lower.legalize_math import legalize_math
from tilewright.loop.lower.parallel_regions import parallel_regions
from tilewright.loop.lower.partition_loops import partition_loops
from tilewright.loop.lower.unroll import unroll
from tilewright.loop.lower.vectorize import vectorize
from tilewright.loop.simplify import simplify

Observer = Callable[[str, Node], None]

PASSES: tuple[tuple[str, Callable[[Program], Program]], ...] = (
    # In: a nest of Blocks; loops of any kind; allocations where the schedule left them.
    ("flatten_blocks", flatten_blocks),
    # No Blocks from here on. `reduces` marks say which loops carry a reduction.
    ("simplify", simplify),
    ("compact_storage", compact_storage),
    # Local buffers have the size of what is live and sit next to their uses; the marks are gone.
    ("partition_loops", partition_loops),
    # Affine conditions are out of the hot loops; a variable of a loop with one iteration is gone.
    ("simplify", simplify),  # again: pieces of one iteration have put constants into indices
    ("vectorize", vectorize),
    # No loop is "vectorized"; expressions may be vectors.
    ("legalize_math", legalize_math),
    # No f32, f16 or bf16 call that has a polynomial form.
    ("unroll", unroll),
    # No loop is "unrolled"; local buffers of unrolled nests are indexed by constants.
)
"""Passes from program to program, before `parallel_regions` makes the module."""


def lower(program: Program, facts: Any = None, observe: Observer | None = None) -> Module:
    """The module for a scheduled program: itself, flat, and its parallel regions.

    `facts`: the target's (`target.target`); none of today's passes asks for them. `observe(pass name, result)` is called after each pass.
    """
    for name, run in PASSES:
        program = run(program)
        if observe is not None:
            observe(name, program)
    module = parallel_regions(program)
    # "parallel" loops are gone: the outermost became regions, inner ones serial.
    if observe is not None:
        observe("parallel_regions", module)
    return module
