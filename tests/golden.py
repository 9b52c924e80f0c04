"""Text kept in a file and compared with what the program says now; `make golden` writes it anew."""
from __future__ import annotations

import os
import re

UPDATE = os.environ.get("TILEWRIGHT_UPDATE_GOLDEN") == "1"


def fits(kept: str, said: str) -> bool:
    """Whether `said` is the kept text, in which `…` stands for anything within a line."""
    pattern = "[^\n]*".join(re.escape(part) for part in kept.strip().split("…"))
    return re.fullmatch(pattern, said.strip()) is not None
