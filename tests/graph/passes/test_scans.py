"""Scans as loops, and reshapes that could undo each other: the same results, and the passes come to an end."""
from __future__ import annotations

import pytest

from tests.graph.passes.passcheck import Net, same
from tilewright.graph.ir import Graph
from tilewright.graph.passes.scans import scans_to_loops
from tilewright.graph.passes.sink import sink_reshapes


def running(in_axis: int, out_axis: int, in_reverse: int, out_reverse: int) -> Graph:
    """state = state + x[t]; the states are stacked."""
    b = Net()
    state, x = b.x(2), b.x(*((2, 5) if in_axis else (5, 2)))
    body = Net()
    before, step = body.x(2), body.x(2)
    after = body.op("add", before, step)
    outs = b.add_all("scan", [state, x], {
        "sequences": 1, "in_axes": (in_axis,), "out_axes": (out_axis,), "in_reverse": (in_reverse,),
        "out_reverse": (out_reverse,)}, regions=[body.finish([after, body.op("mul", after, step)])])
    return b.finish(outs)


@pytest.mark.parametrize("axes", [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("reverse", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_scan_becomes_a_loop(axes: tuple[int, int], reverse: tuple[int, int]) -> None:
    graph = running(*axes, *reverse)
    assert "scan" not in {op.op for op in same(graph, scans_to_loops(graph)).operations}


def test_two_reshapes_of_opposite_directions_settle() -> None:
    b = Net()
    wide, flat = b.x(3, 1, 4), b.x(3, 4)
    squeezed = b.reshape(b.op("neg", wide), (3, 4))
    graph = b.finish([b.op("mul", squeezed, b.op("abs", flat))])
    same(graph, sink_reshapes(graph))
