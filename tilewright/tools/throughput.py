"""Throughput: inferences per second of engines that several callers use at once, interleaved in one process.

In: engines as functions that any thread may call, and inputs. Out: a rate per engine, from rounds in random order, each
after a rest. One call at a time leaves cores idle wherever a model has a serial part; callers of one thread each do not.
"""
from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tilewright.tools.bench import REST_SECONDS, Feeds, Run


@dataclass(frozen=True)
class Rate:
    """One engine's inferences per second, the median over rounds, and that over the fastest other engine's (above 1:
    more)."""
    engine: str
    per_second: float
    ratio: float | None

    def facts(self) -> dict[str, Any]:
        return {"engine": self.engine, "per_second": self.per_second, "ratio": self.ratio}


def rates(runs: Mapping[str, Run], feeds: Sequence[Feeds], callers: int, *, rounds: int = 5,
          seconds: float = 1.0, progress: Callable[[], None] = lambda: None) -> list[Rate]:
    """Let `callers` threads call each engine for `seconds`, `rounds` times over."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    order, rng = list(runs), random.Random(0)
    for _ in range(rounds):
        rng.shuffle(order)
        for name in order:
            time.sleep(REST_SECONDS)
            found[name].append(_round(runs[name], feeds, callers, seconds))
        progress()
    medians = {name: statistics.median(r) for name, r in found.items()}
    out = []
    for name, mine in medians.items():
        others = [r for other, r in medians.items() if other != name]
        out.append(Rate(name, mine, mine / max(others) if others else None))
    return out


def _round(run: Run, feeds: Sequence[Feeds], callers: int, seconds: float) -> float:
    """Inferences per second, after an untimed run per caller. What a caller raises is raised here."""
    stop = threading.Event()

    def call(k: int) -> int:
        count = 0
        while not stop.is_set():
            run(feeds[(k + count) % len(feeds)])
            count += 1
        return count

    with ThreadPoolExecutor(callers) as pool:
        for warm in [pool.submit(run, feeds[k % len(feeds)]) for k in range(callers)]:
            warm.result()
        start = time.perf_counter()
        counts = [pool.submit(call, k) for k in range(callers)]
        stop.wait(seconds)
        stop.set()
        return sum(c.result() for c in counts) / (time.perf_counter() - start)
