"""The operators of the graph IR, one family per file; importing this package enters their records into the registry."""
from __future__ import annotations

from tilewright.graph.ops import (
    arrange,
    binary,
    bounds,
    columns,
    control,
    conv,
    couple,
    create,
    custom,
    image,
    indexing,
    interleave,
    layout,
    matmul,
    norm,
    order,
    packed,
    pool,
    recurrent,
    reduce,
    resize,
    sample,
    text,
    trees,
    unary,
    view,
    winograd,
)
from tilewright.graph.registry import register

FAMILIES = (unary, binary, view, create, arrange, indexing, bounds, order, reduce, norm, matmul, conv, pool, resize,
            columns, sample, trees, couple, layout, interleave, control, recurrent, winograd, packed, text, image, custom)

for _family in FAMILIES:
    for _record in _family.RECORDS:
        register(_record)
