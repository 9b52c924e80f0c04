"""The loop IR: scheduled and lowered programs over buffers; also the language of host programs. Its nodes are declared in
`expressions.py` and `statements.py`; everyone takes them from here.

Semantics, for every stage and every code generator (`loop/interpret.py` is the executable definition):
- Integers wrap in their width. FloorDiv rounds down and FloorMod takes the sign of the divisor; dividing by zero is
  undefined and must be guarded. Shift counts are in range.
- Floats follow IEEE 754 in the stated order of operations; `a*b + c` may be contracted to a fused multiply-add. Min and
  Max propagate NaN. Casting a float to an integer truncates; out of range is undefined unless a recipe clamps first.
- Expressions are pure except Call to an effectful intrinsic. Operands are evaluated in no particular order.
  Select evaluates both sides (both must be safe); Guard evaluates only the chosen side, so its loads may be out of
  bounds on the other side.
- Loads and stores must be in bounds. A buffer's elements are undefined until written.
- Serial loops run in order; parallel iterations must be independent; vectorized, unrolled and vthread loops mean the
  same as serial ones. So do loops over blockIdx and threadIdx, whose iterations must be independent, too, as long as
  nobody in them calls the intrinsic barrier. With barriers, nested threadIdx loops are threads that run at once: each
  runs up to its next barrier, in any order, and goes on when all have arrived at it; a "shared" buffer is allocated
  around the loops over its threads. A Block means: for the values bound to its iteration variables, if the predicate
  holds, run `init` (when all reduction variables are at their first value) and then `body`.
- A buffer's index of rank k addresses `offset + sum(index[i] * stride[i])` elements of its memory, row major by default.
"""
from tilewright.loop.expressions import *  # noqa: F403
from tilewright.loop.statements import *  # noqa: F403
