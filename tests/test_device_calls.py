"""What the host program of a model asks of a device in a run: inputs in, kernels, outputs out, and nothing between."""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import onnx
import pytest

import tilewright
from tests import small_models
from tilewright.core.node import walk
from tilewright.driver import Stages
from tilewright.loop.ir import Allocate, Call, Launch, Program, as_int
from tilewright.loop.lower.host_for_device import host_for_device
from tilewright.target.presets import get_target


def host_program(m: onnx.ModelProto) -> tuple[tilewright.Model, Program, int]:
    """A model for a device that need not be here, the program that runs it, and the bytes of the device's arena."""
    made = tilewright.compile(m, target="hip")
    assert isinstance(made.stages, Stages) and made.stages.plan is not None
    main, arena = host_for_device(made.stages.plan.main, len(made.inputs), made.stages.plan.arena_bytes,
                                  get_target("hip"))
    return made, main, arena


@pytest.mark.parametrize("build, checks", [
    (small_models.mlp, 0), (small_models.convnet, 0),
    (small_models.attention, 2)])  # the least and the greatest of the indices that it gathers at: the host compares them
def test_no_copies_between_kernels(build: Callable[[], onnx.ModelProto], checks: int) -> None:
    """Weights are no part of it: the runtime copies them once, when it opens the model."""
    made, main, _ = host_program(build())
    moves = {"tw_upload", "tw_download", "tw_move"}
    asked = Counter(n.name for n in walk(main.body) if isinstance(n, Call) and n.name in moves)
    assert asked == {"tw_upload": len(made.inputs), "tw_download": len(made.outputs) + checks}
    assert sum(isinstance(n, Launch) for n in walk(main.body)) == len(made.kernels)


def test_values_share_the_arena() -> None:
    """What is dead makes room: the arena is smaller than all values together."""
    _, main, arena = host_program(small_models.convnet())
    places = [(as_int(n.offset), n.buffer) for n in walk(main.body) if isinstance(n, Allocate) and n.offset is not None]
    sizes = [b.dtype.nbytes * _elements(b.shape) for _, b in places]
    assert all(at is not None and at + size <= arena for (at, _), size in zip(places, sizes, strict=True))
    assert arena < sum(sizes)


def _elements(shape: tuple[object, ...]) -> int:
    n = 1
    for d in shape:
        n *= as_int(d) or 0  # type: ignore[arg-type]
    return n
