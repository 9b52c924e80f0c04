"""Strings as numbers: equal texts have equal numbers, and what a scope adds ends with it."""
from __future__ import annotations

import numpy as np
import pytest

from tilewright.core import strings
from tilewright.core.errors import InternalError


def test_numbers_and_texts() -> None:
    texts = np.array([["a", ""], ["ß", "a"]], object)
    numbers = strings.encode(texts)
    assert numbers.dtype == np.int64 and numbers[0, 0] == numbers[1, 1] and numbers[0, 1] == 0
    np.testing.assert_array_equal(strings.decode(numbers), texts)
    assert strings.encode(np.array([b"a"]))[0] == numbers[0, 0]


def test_a_scope_forgets() -> None:
    kept = strings.number_of("kept")
    with strings.scope():
        assert strings.number_of("kept") == kept
        passing = strings.number_of("passing")
        assert passing < 0 and strings.number_of("passing") == passing and strings.text_of(passing) == "passing"
    with pytest.raises(InternalError):
        strings.text_of(passing)
    assert strings.number_of("passing") > 0
