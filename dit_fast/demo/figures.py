# SPDX-License-Identifier: Apache-2.0
"""The demo's pictures."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """(M, 1, H, W) in [-1, 1] -> one grey picture, `columns` images wide, a pixel of white between."""
    m, _, h, w = images.shape
    rows = -(-m // columns)
    canvas = np.ones((rows * (h + 1) + 1, columns * (w + 1) + 1), dtype=np.float32)
    for i, image in enumerate(images[:, 0]):
        y, x = i // columns * (h + 1) + 1, i % columns * (w + 1) + 1
        canvas[y : y + h, x : x + w] = image.clip(-1, 1)
    return canvas


def save_samples(path: Path, drawn: np.ndarray, real: np.ndarray) -> None:
    """Drawn digits and real ones side by side, a row a class."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 5.3), dpi=110)
    for axis, images, title in zip(axes, (drawn, real), ("drawn by the model", "real"), strict=True):
        axis.imshow(tile(images, 10), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        axis.set_title(title)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def save_loss(path: Path, losses: list[float], window: int = 50) -> None:
    """The loss of every step, and its mean over the last `window`."""
    figure, axis = plt.subplots(figsize=(7, 4), dpi=110)
    axis.plot(losses, color="0.8", linewidth=0.6, label="each step")
    if len(losses) >= window:
        mean = np.convolve(losses, np.ones(window) / window, mode="valid")
        axis.plot(range(window - 1, len(losses)), mean, color="C0", label=f"mean of {window}")
    axis.set(xlabel="step", ylabel="loss", yscale="log")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
