"""The tables of docs/performance.md: models beside other engines, and what each layer reaches.

    python benchmarks/tables.py [net.onnx ...] [--threads 1 --threads 2] [--write docs/performance.md]

In: the examples' models and ONNX files given. Out: Markdown, printed or put between the page's marks (`<!-- models -->` …
`<!-- end -->`), with the command that made it. Layers of one kind and shape, a kernel launched for several of them, are one
line.
"""
from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tilewright

sys.path.insert(0, str(Path(__file__).parent))
import rates

from tilewright.runtime.native import default_threads
from tilewright.target import get_target
from tilewright.tools.peaks import measure
from tilewright.tools.roofline import Row, roofline


def model_table(results: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    yield "| model | threads | engine | median ms | × fastest other |\n|---|---|---|---|---|"
    for name, rows in results.items():
        for r in rows:
            ratio = "–" if r["ratio"] is None else f"{r['ratio']:.2f}"
            yield f"| {name} | {r['threads']} | {r['engine']} | {r['median_ms']:.3f} | {ratio} |"


def layer_table(name: str, proto: Any, counts: Sequence[int]) -> Iterator[str]:
    """One model's kernels, those that take longest first, per number of threads: µs and share of the roof."""
    found: list[dict[str, list[Row]]] = []
    heads = []
    for threads in counts:
        with tilewright.compile(proto, threads=threads) as model:
            r = roofline(model, lambda: measure(get_target(), threads))  # noqa: B023 – called before the next turn
        rows: dict[str, list[Row]] = defaultdict(list)
        for row in r.rows:
            rows[row.kernel].append(row)
        found.append(rows)
        heads.append(f"{threads} thread{'s' if threads > 1 else ''}: µs | GFLOP/s | of its roof")
    yield f"\n**{name}**\n\n| layer | × | {' | '.join(heads)} |\n|---|---|{'---|---|---|' * len(counts)}"
    for kernel, rows in sorted(found[0].items(), key=lambda pair: -sum(r.microseconds for r in pair[1])):
        cells = []
        for f in found:
            time = sum(r.microseconds for r in f[kernel])
            cells.append(f"{time:.1f} | {sum(r.direct_flops for r in f[kernel]) / time / 1e3:.0f} | "
                         f"{100 * sum(r.roof for r in f[kernel]) / time:.0f} % of {f[kernel][0].limit}")
        yield f"| {rows[0].label.replace('|', '/')} | {len(rows)} | {' | '.join(cells)} |"


def put(page: Path, mark: str, text: str) -> None:
    """Replace what stands between a mark and the next `<!-- end -->`. Raises ValueError if the page has no such mark."""
    old = page.read_text()
    new, count = re.subn(rf"(<!-- {mark} -->\n).*?(<!-- end -->)", lambda m: m[1] + text + "\n" + m[2], old, flags=re.S)
    if count != 1:
        raise ValueError(f"{page} has {count} places for {mark}")
    page.write_text(new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", type=Path, help="ONNX files beside the examples' models")
    parser.add_argument("--threads", "-j", type=int, action="append", help="may be repeated (1, and all there are)")
    parser.add_argument("--seconds", type=float, default=5.0, help="least measuring time per model")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables into this page")
    options = parser.parse_args()
    counts = sorted(set(options.threads or [1, default_threads()]))
    command = f"`python {shlex.join(sys.argv)}`\n\n"
    protos = list(rates.protos(options.models))
    beside = {name: [r for t in counts for r in rates.beside(proto, t, options.seconds)] for name, proto in protos}
    texts = {"models": command + "\n".join(model_table(beside)),
             "layers": command + "\n".join(line for name, proto in protos for line in layer_table(name, proto, counts))}
    for mark, text in texts.items():
        if options.write is None:
            print(text + "\n")
        else:
            put(options.write, mark, text)


if __name__ == "__main__":
    main()
