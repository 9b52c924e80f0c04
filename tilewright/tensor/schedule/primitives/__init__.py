"""Where each schedule primitive lives: name → module of this folder. A module is loaded when one of its primitives is first
applied; each enters its functions with @primitive."""
from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from tilewright.tensor.schedule.trace import PRIMITIVES

WHERE: dict[str, str] = {
    "block": "look", "loops": "look",
    "split": "loops", "fuse": "loops", "reorder": "loops", "tile": "loops", "add_unit_loop": "unit_loop",
    "distribute": "distribute", "reschedule": "reschedule",
    "loop_partition": "loop_partition", "pad_einsum": "pad_einsum",
    "split_axis": "split_axis", "online_softmax": "online_softmax",
    "unroll": "kinds", "vectorize": "kinds", "parallel": "kinds", "annotate": "kinds",
    "compute_at": "compute_at", "reverse_compute_at": "reverse_compute_at",
    "compute_inline": "inline", "reverse_compute_inline": "inline",
    "reindex": "reindex", "cache_read": "cache", "cache_write": "cache", "set_scope": "cache",
    "decompose_reduction": "decompose", "decompose_padding": "decompose",
    "rfactor": "rfactor", "prefetch": "prefetch", "prefetch_next": "prefetch",
    "transform_layout": "transform_layout",
    "unsafe_parallel": "unsafe", "unsafe_bind": "unsafe", "cooperative_fetch": "cooperative_fetch",
    "double_buffer": "double_buffer", "software_pipeline": "software_pipeline",
    "blockize": "blockize", "tensorize": "tensorize",
    "alternative": "alternative",
    "bind": "bind", "storage_align": "storage_align",
    "sample_perfect_tile": "sample", "sample_compute_location": "sample", "sample_tile": "sample", "sample_choice": "sample",
}

def primitive_named(name: str) -> Callable[..., Any]:
    """A primitive by name. Raises UserError with the nearest names if there is none."""
    for module in {WHERE[name]} if name in WHERE else set(WHERE.values()):  # all, for the names that are near
        importlib.import_module(f"{__name__}.{module}")
    return PRIMITIVES.get(name)
