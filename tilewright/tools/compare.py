"""How far two results of one model are apart, output by output.

In: outputs of the compiled model and of a reference. Out: per output the largest and the mean absolute difference, the
relative one and the distance in units in the last place, and whether that is within the tolerance.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tilewright.model import relative_error
from tilewright.runtime.descriptor import TensorSpec

TOLERANCE = 1e-4
"""Of floating-point outputs, relative to an output's largest value. Others must be equal."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Difference:
    """`absolute`: largest |a - b|; `mean`: the mean of |a - b|; `relative`: the largest over the largest |b|; `ulp`: the
    largest number of representable values between the two of an element (None for what is no float)."""
    output: str
    type: str
    absolute: float
    mean: float
    relative: float
    ulp: int | None
    ok: bool

    def facts(self) -> dict[str, Any]:
        return facts(self)


def facts(record: Any) -> dict[str, Any]:
    """The fields of a record for JSON, where infinity is no number."""
    return {k: str(v) if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(record).items()}


def differences(specs: Sequence[TensorSpec], got: Sequence[Array], want: Sequence[Any],
                tolerance: float = TOLERANCE) -> list[Difference]:
    """One record per output."""
    return [_difference(spec, a, np.asarray(b), tolerance) for spec, a, b in zip(specs, got, want, strict=True)]


def _difference(spec: TensorSpec, got: Array, want: Array, tolerance: float) -> Difference:
    wide = spec.dtype.is_float and want.dtype == np.float64
    same = got.shape == want.shape and (got.dtype == want.dtype or wide)
    return Difference(spec.name, str(spec), *(errors(got, want, spec.dtype.is_float, tolerance) if same else FAR))


Errors = tuple[float, float, float, int | None, bool]
FAR: Errors = (float("inf"), float("inf"), float("inf"), None, False)


def errors(got: Array, want: Array, is_float: bool, tolerance: float) -> Errors:
    """`absolute`, `mean`, `relative`, `ulp` and `ok` of arrays of one shape, as `Difference` has them."""
    relative = relative_error(got, want)
    if not np.isfinite(relative):
        return FAR
    if is_float:
        finite = np.isfinite(np.asarray(want, np.float64))
        a, b = got[finite], want[finite]
        apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
        ulp, ok = ulp_distance(a, b.astype(a.dtype)), relative <= tolerance
    else:
        apart = np.abs(got.astype(object) - want.astype(object)).astype(np.float64)
        ulp, ok = None, np.array_equal(got, want)
    return float(apart.max(initial=0)), float(apart.mean()) if apart.size else 0.0, relative, ulp, ok


def ulp_distance(a: Array, b: Array) -> int:
    """Floats of one sign are ordered as their bits are: the largest distance of the bits, counted across zero."""
    size = a.dtype.itemsize
    kind = np.dtype(f"i{size}")

    def ordered(x: Array) -> Any:
        bits = np.ascontiguousarray(x).view(kind).astype(object if size == 8 else np.int64)
        low = -(1 << (8 * size - 1))
        return np.where(bits < 0, low - bits, bits)
    return int(np.abs(ordered(a) - ordered(b)).max()) if a.size else 0
