"""Trains the digits network with PyTorch and writes digits.onnx and predictions.json beside this file.

    pip install torch onnx scikit-learn && python examples/digits/train.py

The data are scikit-learn's 1,797 scanned handwritten digits, 8 x 8 pixels with values 0 to 16; every fourth image is held
back. predictions.json holds what PyTorch itself says about the held-back images, so that the demo can compare image by
image without PyTorch. Both files are checked in; running this again on another machine may give other weights.
"""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from torch import nn

HERE = Path(__file__).parent
EPOCHS = 40


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.25), nn.Linear(64, 10))


def train(net: nn.Sequential, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    net.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(64):
            loss = nn.functional.cross_entropy(net(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()


def main() -> None:
    torch.manual_seed(0)
    data = load_digits()
    images = torch.from_numpy((data.images / 16).astype(np.float32))[:, None]
    labels = torch.from_numpy(data.target)
    held = np.arange(len(images)) % 4 == 0

    net = network()
    train(net, images[~held], labels[~held])
    net.eval()
    with torch.no_grad():
        logits = net(images[held])
    predicted = logits.argmax(1)
    accuracy = (predicted == labels[held]).float().mean().item()
    print(f"PyTorch: {accuracy:.2%} of {held.sum()} held-back images")

    torch.onnx.export(net, (images[:2],), str(HERE / "digits.onnx"), input_names=["image"], output_names=["logits"],
                      dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}}, dynamo=False,
                      training=torch.onnx.TrainingMode.EVAL, do_constant_folding=False, opset_version=17)
    onnx.checker.check_model(str(HERE / "digits.onnx"), full_check=True)
    (HERE / "predictions.json").write_text(json.dumps({
        "framework": f"PyTorch {torch.__version__}", "accuracy": accuracy, "held_back": np.flatnonzero(held).tolist(),
        "predicted": predicted.tolist()}) + "\n")


if __name__ == "__main__":
    main()
