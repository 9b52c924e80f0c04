"""The graph passes in order: what happens to a model between the frontend and the kernels.

In: a Graph as imported. Out: a Graph in which every operation is a kernel's part or a view, ready for `passes/fuse.py`.
"""
from __future__ import annotations

import functools

from tilewright.core.passes import Pass, Pipeline
from tilewright.graph.ir import Graph
from tilewright.graph.passes.algorithms import choose_algorithms
from tilewright.graph.passes.cse import merge_equal
from tilewright.graph.passes.data_sizes import bind_sizes
from tilewright.graph.passes.dce import remove_dead
from tilewright.graph.passes.dequantized import dequantized_operands
from tilewright.graph.passes.fold import fold_constants
from tilewright.graph.passes.half import widen_half
from tilewright.graph.passes.halo import share_borders
from tilewright.graph.passes.idioms import recover_idioms
from tilewright.graph.passes.integer_products import integer_products
from tilewright.graph.passes.layouts import blocked_layouts
from tilewright.graph.passes.packed import expand_weights, pack_weights
from tilewright.graph.passes.padding import fold_padding
from tilewright.graph.passes.products import combine_products, simplify_products
from tilewright.graph.passes.scale import fold_scales
from tilewright.graph.passes.scans import scans_to_loops
from tilewright.graph.passes.selection import select_before_ordering
from tilewright.graph.passes.simplify import simplify_operations
from tilewright.graph.passes.sink import sink_reshapes
from tilewright.graph.passes.taps import drop_dead_taps
from tilewright.graph.passes.transposed import transposed_to_phases
from tilewright.graph.passes.views import simplify_views
from tilewright.target.target import Target


def graph_pipeline(target: Target, numerics: str, combine: bool = True) -> Pipeline[Graph]:
    """The passes for a target. `numerics` "strict" keeps the rounding of every operation as the model writes it, except
    for named operators and folded scales; `combine` does parallel products of one operand as one."""
    exact = numerics == "strict"
    passes: list[Pass[Graph]] = [
        remove_dead,                                         # frontends leave what nobody asked for
        bind_sizes,                                          # from here on, each size comes from a shape or a `sizes`
        scans_to_loops,                                      # from here on, the only regions are those of if_ and loop
        functools.partial(dequantized_operands, target=target, exact=exact),  # before folding: weights are codes
        simplify_products,                                   # before folding: a transposed weight needs no copy
        functools.partial(pack_weights, target=target, exact=exact),  # before it is lost that they are small integers
        functools.partial(expand_weights, target=target, exact=exact),  # those that no product streams
        fold_constants,                                      # shape arithmetic ends here: its results are constants
        select_before_ordering,                              # as many are ordered as are asked for
        functools.partial(simplify_operations, exact=exact),
        simplify_views,
        merge_equal,                                         # formulas are recognised by shared values
        recover_idioms,
        fold_constants,                                      # what the simplifications made constant
        fold_scales,                                         # BatchNorm and scales go into weights
        fold_padding,
        drop_dead_taps,                                      # of windows wider than their image
        functools.partial(integer_products, target=target),  # borders of zeros become borders of zero points
        functools.partial(simplify_operations, exact=exact),
        simplify_products,                                   # products over two axes …
        sink_reshapes,                                       # … so reshapes go behind what can be an epilogue
        simplify_views,
        combine_products,                                    # queries, keys and values: one product
        simplify_views,                                      # its slices go behind the reshapes into heads
        merge_equal,
        functools.partial(transposed_to_phases, exact=exact),  # after scales went into its weights
        widen_half,                                          # what follows knows f32
        functools.partial(simplify_operations, exact=exact),  # divisions that are in f32 now
        fold_constants,
        functools.partial(blocked_layouts, target=target, exact=exact),  # now convolutions work on channel blocks
        functools.partial(choose_algorithms, target=target, numerics=numerics),  # before borders get their widths
        share_borders,                                       # from here on, producers write the borders of their readers
        simplify_views,
        merge_equal,
        remove_dead,
    ]
    left_out = [*([] if combine else [combine_products]),  # a thread that reads beyond a border has its own condition
                *([share_borders, select_before_ordering,  # and compares with all at once
                   widen_half] if target.is_gpu else [])]  # and multiplies half floats
    return Pipeline("graph", [p for p in passes if p not in left_out])
