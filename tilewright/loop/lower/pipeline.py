"""The lowering pipeline: one scheduled program in, a module of flat loops that code generators print out.

The list below is the order; the comments say which invariant begins and ends where.
"""
from __future__ import annotations

import functools
from collections.abc import Sequence

from tilewright.core.config import config
from tilewright.core.passes import Observer, Pipeline, Verify
from tilewright.loop.ir import Module, Program
from tilewright.loop.lower.compact_storage import compact_storage
from tilewright.loop.lower.flatten_blocks import flatten_blocks
from tilewright.loop.lower.legalize_math import legalize_math
from tilewright.loop.lower.parallel_regions import parallel_regions
from tilewright.loop.lower.partition_loops import partition_loops
from tilewright.loop.lower.split_pipelines import split_pipelines
from tilewright.loop.lower.symbolic_remainders import symbolic_remainders
from tilewright.loop.lower.unroll import unroll
from tilewright.loop.lower.vectorize import vectorize
from tilewright.loop.lower.workspaces import workspaces
from tilewright.loop.simplify import simplify
from tilewright.loop.verify import verify
from tilewright.target.target import Target


def pipeline(target: Target | None) -> Pipeline[Program]:
    """The passes for a target (None: any)."""
    return Pipeline("lower", [
        # In: a nest of Blocks; loops of any kind; allocations where the schedule left them.
        flatten_blocks,
        split_pipelines,
        # No Blocks from here on. `reduces` marks say which loops carry a reduction.
        simplify,
        compact_storage,
        # Local buffers have the size of what is live and sit next to their uses; the marks are gone.
        workspaces,
        # What remains allocated fits the stack; parameters do not change any more.
        symbolic_remainders,
        partition_loops,
        # Affine conditions are out of the hot loops.
        simplify,  # again: loops of one iteration have become constants in indices
        vectorize,
        # No loop is "vectorized"; expressions may be vectors.
        functools.partial(legalize_math, target=target),
        # No f32, f16 or bf16 call that has a polynomial form.
        unroll,
        # No loop is "unrolled"; local buffers of unrolled nests are indexed by constants.
    ])


def lower(program: Program, target: Target | None = None, observers: Sequence[Observer] = ()) -> Module:
    """The emitted module of a scheduled program: itself, flat, and its parallel regions.

    `target` says which instructions there are; without one, code for any CPU results. With `config.debug` the program is
    verified after every pass.
    """
    if config.debug:
        observers = [*observers, Verify(verify)]
    module = parallel_regions(pipeline(target).run(program, observers))
    # "parallel" loops are gone: the outermost became regions, inner ones serial.
    if config.debug:
        verify(module, "emitted")
    return module
