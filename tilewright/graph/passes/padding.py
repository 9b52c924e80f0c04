"""Padding folding: zeros around a tensor in front of a convolution or pooling go into its `pads`.

In: a graph before layouts are decided. Out: the same graph with fewer `pad` operations. Legal where the pad is constant,
touches spatial axes only, and holds what the operator pads with (zeros; -inf for max_pool).
"""
from __future__ import annotations

from collections.abc import Sequence

from tilewright.graph.ir import Graph, Operation
from tilewright.graph.passes.match import Result, Rule, Walk, apply
from tilewright.loop.ir import as_int


def fold_padding(graph: Graph) -> Graph:
    """Put explicit borders into the pads of convolutions and poolings."""
    return apply(graph, _RULES)


def _fold(op: Operation, w: Walk) -> Result:
    pad = w.producer(op.inputs[0], "pad")
    if pad is None or pad.attrs["mode"] != "constant":
        return None
    if pad.attrs["value"] != (float("-inf") if op.op == "max_pool" else op.attrs.get("fill", 0)):
        return None
    if op.op == "avg_pool" and not (op.attrs["count_include_pad"] and not op.attrs["ceil_mode"]):
        # what a window counts would change, unless borders count
        return None
    if op.attrs.get("ceil_mode") or op.attrs["layout"] != "NCHW" or op.attrs.get("in_layout", "NCHW") != "NCHW":
        return None
    before, after = [as_int(d) for d in pad.attrs["before"]], [as_int(d) for d in pad.attrs["after"]]
    amounts = [*before, *after]
    if any(n is None or n < 0 for n in amounts) or any((*before[:2], *after[:2])):
        return None
    pads = tuple([p + (n or 0) for p, n in zip(op.attrs["pads"], [*before[2:], *after[2:]], strict=True)])
    return w.b.add(op.op, [pad.inputs[0], *op.inputs[1:]], {**op.attrs, "pads": pads}, name=op.output.name)


_RULES: dict[str, Sequence[Rule]] = {"conv": [_fold], "max_pool": [_fold], "avg_pool": [_fold]}
