"""The graph passes in order: what happens to a model between the frontend and the kernels.

In: a Graph as imported. Out: a Graph in which every operation is a kernel's part or a view, ready for `passes/fuse.py`.
"""
from __future__ import annotations

import functools

from tilewright.core.passes import Pipeline
from tilewright.graph.ir import Graph
from tilewright.graph.passes.cse import merge_equal
from tilewright.graph.passes.dce import remove_dead
from tilewright.graph.passes.fold import fold_constants
from tilewright.graph.passes.halo import share_borders
from tilewright.graph.passes.layouts import blocked_layouts
from tilewright.graph.passes.simplify import simplify_operations
from tilewright.graph.passes.views import simplify_views
from tilewright.target.target import Target


def graph_pipeline(target: Target, numerics: str) -> Pipeline[Graph]:
    """The passes for a target; `numerics` "strict" keeps the rounding of every operation as the model writes it."""
    exact = numerics == "strict"
    return Pipeline("graph", [
        remove_dead,                                         # frontends leave what nobody asked for
        fold_constants,                                      # shape arithmetic ends here: its results are constants
        functools.partial(simplify_operations, exact=exact),
        simplify_views,
        merge_equal,
        functools.partial(blocked_layouts, target=target),   # from here on, convolutions work on channel blocks
        share_borders,                                       # from here on, producers write the borders of their readers
        simplify_views,
        merge_equal,
        remove_dead,
    ])
