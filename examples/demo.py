"""Tilewright at work (`make demo`): handwritten digits, then ResNet-18 on a photograph, each beside ONNX Runtime.

Digits: compiles the trained network of examples/digits, runs the held-back images, compares the predictions with the
training framework's image by image and draws them into out/digits.png. ResNet-18: weights from a seed (so its answers mean
nothing, its speed does), with the time of every kernel, saved as a library and loaded again.
"""
from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageFont
from resnet18 import resnet18
from sklearn.datasets import load_digits, load_sample_image

import tilewright

HERE = Path(__file__).parent
OUT = Path("out")
REST = 0.1  # seconds before each engine's turn: the other's workers fall asleep

Array = np.ndarray
Engine = Callable[[], object]


def main() -> int:
    OUT.mkdir(exist_ok=True)
    right = digits()
    close = photograph()
    return 0 if right and close else 1


# ---- digits ----------------------------------------------------------------------------------------------------------
def digits() -> bool:
    title("Handwritten digits")
    said = json.loads((HERE / "digits" / "predictions.json").read_text())
    data = load_digits()
    images = (data.images[said["held_back"]] / 16).astype(np.float32)[:, None]
    labels = data.target[said["held_back"]]
    path = HERE / "digits" / "digits.onnx"

    model = compiled(str(path), shapes={"batch": len(images)})
    predicted = model(images).argmax(1)
    equal = int((predicted == np.array(said["predicted"])).sum())
    print(f"accuracy: {(predicted == labels).mean():.2%} of {len(labels)} held-back images ({said['framework']}: "
          f"{said['accuracy']:.2%}); {equal} of {len(labels)} predictions equal the framework's")

    session = onnx_runtime(str(path))
    compare(f"{len(images)} images", lambda: model(images), lambda: session.run(None, {"image": images}))
    with compiled(str(path), shapes={"batch": 1}) as single:
        compare("1 image", lambda: single(images[:1]), lambda: session.run(None, {"image": images[:1]}))

    draw(images[:, 0], predicted, labels, OUT / "digits.png")
    model.close()
    return equal == len(labels)


def draw(images: Array, predicted: Array, labels: Array, path: Path) -> None:
    """A grid of the images, each with its prediction below: green where it is right, red where it is not."""
    columns, cell, caption = 30, 40, 18
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (cell + 4), rows * (cell + caption + 4)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for k, (image, p, label) in enumerate(zip(images, predicted, labels, strict=True)):
        x, y = k % columns * (cell + 4) + 2, k // columns * (cell + caption + 4) + 2
        pixels = Image.fromarray((255 - image * 255).astype(np.uint8))
        sheet.paste(pixels.resize((cell, cell), Image.Resampling.NEAREST), (x, y))
        text, colour = (str(p), "#0a7d2c") if p == label else (f"{p}, is {label}", "#c01818")
        pen.text((x + cell / 2, y + cell + caption / 2), text, colour, font, anchor="mm")
    sheet.save(path)
    print(f"wrote {path} ({sheet.width} x {sheet.height})")


# ---- ResNet-18 ---------------------------------------------------------------------------------------------------------
def photograph() -> bool:
    title("ResNet-18 (seeded weights) on a photograph")
    proto = resnet18()
    image = prepared(load_sample_image("china.jpg"))
    model = compiled(proto)
    session = onnx_runtime(proto.SerializeToString())
    got, want = model(image), session.run(None, {"image": image})[0]
    error = float(np.abs(got - want).max() / np.abs(want).max())
    print(f"largest difference from ONNX Runtime: {error:.1e} of the largest logit")
    compare("1 photograph", lambda: model(image), lambda: session.run(None, {"image": image}))

    profile_table(model, image)
    m = model.memory
    print(f"memory: arena {m.arena / 1e6:.1f} MB, weights {m.weights / 1e6:.1f} MB, as the kernels read them "
          f"{m.packed / 1e6:.1f} MB")

    path = OUT / "resnet18.so"
    model.save(path)
    start = time.perf_counter()
    with tilewright.load(path) as loaded:
        took = time.perf_counter() - start
        same = bool(np.array_equal(loaded(image), got))
    print(f"saved {path} ({path.stat().st_size / 1e6:.1f} MB), loaded in {took:.3f} s: "
          f"{'the same' if same else 'OTHER'} numbers")
    model.close()
    return error <= 1e-4 and same


def prepared(photo: Array) -> Array:
    """The middle square of a photograph as f32[1, 3, 224, 224], normalised as ImageNet models want it."""
    side = min(photo.shape[:2])
    top, left = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
    square = Image.fromarray(photo[top:top + side, left:left + side]).resize((224, 224))
    pixels = np.asarray(square, np.float32) / 255
    normal = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return np.ascontiguousarray(normal.transpose(2, 0, 1)[None], np.float32)


def profile_table(model: tilewright.Model, image: Array) -> None:
    rows = [(p.label, f"{p.microseconds:.1f}", f"{p.share:.1%}", f"{p.gflops:.1f}", f"{p.gbytes:.1f}")
            for p in model.profile({"image": image})]
    heads = ("layer (operators of its kernel)", "µs", "share", "GFLOP/s", "GB/s")
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for row in (heads, *rows):
            print(f"{row[0]:70} {row[1]:>8} {row[2]:>6} {row[3]:>8} {row[4]:>6}")
        return
    table = Table(title="time per kernel", title_justify="left")
    for k, head in enumerate(heads):
        table.add_column(head, justify="right" if k else "left", no_wrap=k > 0)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


# ---- both ----------------------------------------------------------------------------------------------------------------
def title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def compiled(source: object, **options: object) -> tilewright.Model:
    start = time.perf_counter()
    model = tilewright.compile(source, **options)
    print(f"compiled in {time.perf_counter() - start:.2f} s ({len(model.kernels)} kernel launches)", flush=True)
    return model


def onnx_runtime(source: str | bytes) -> onnxruntime.InferenceSession:
    """ONNX Runtime's session with its own choice of threads, and all its optimizations."""
    onnxruntime.set_default_logger_severity(3)
    return onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])


def compare(what: str, ours: Engine, theirs: Engine, rounds: int = 15) -> None:
    """Median times of two engines in interleaved rounds, in random order, each after a rest and two untimed runs."""
    engines = {"Tilewright": ours, "ONNX Runtime": theirs}
    times: dict[str, list[float]] = {name: [] for name in engines}
    order, rng = list(engines), random.Random(0)
    for _ in range(rounds):
        rng.shuffle(order)
        for name in order:
            time.sleep(REST)
            for timed in (False, False, True, True):
                start = time.perf_counter()
                engines[name]()
                if timed:
                    times[name].append((time.perf_counter() - start) * 1e3)
    a, b = (statistics.median(times[name]) for name in engines)
    print(f"{what}: Tilewright {a:.3f} ms, ONNX Runtime {b:.3f} ms ({b / a:.2f} times as fast)", flush=True)


if __name__ == "__main__":
    sys.exit(main())
