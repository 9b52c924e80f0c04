"""Schedule rule of attention on a CPU: a product, stages over its rows, and a second product that sums over those rows.

In: a Schedule whose blocks are scores = Q Kᵀ, elementwise stages and a softmax of each row, and the product of the rows
with V; any number of batch axes, any layout. Out: the schedule applied: a few rows of scores at a time, from the first
product to the last, stay in the first-level cache.

    parallel (batch, heads, chunks of rows):  pack K | row tiles: Q Kᵀ, masks | softmax of each row | times V, store
"""
from __future__ import annotations

import math
from dataclasses import dataclass

from tilewright.loop.ir import Block, Load, Var, as_int
from tilewright.target.target import Target
from tilewright.tensor.classify import Access, BlockInfo, classify, vars_of
from tilewright.tensor.regions import consumers, producers
from tilewright.tensor.rules.contraction import Axes, pack_map, register_tile
from tilewright.tensor.rules.epilogue import merge_chain
from tilewright.tensor.rules.rows import vectorize_stage
from tilewright.tensor.rules.tiles import Tile, cost_per_element
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef
