# SPDX-License-Identifier: Apache-2.0
"""How good are drawn digits? A classifier trained on real ones reads them; its features give a Frechet distance."""

import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from dit_fast import data


def digits() -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 real 8 x 8 digits: images (M, 1, 8, 8) float32 in [-1, 1], labels (M,) int64."""
    source = data.digits()
    assert source.labels is not None
    return source.images.numpy(), source.labels.numpy()


class Judge:
    """A small MLP trained on four fifths of the real digits; `real_accuracy` is on the fifth held out."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, seed: int = 0) -> None:
        x_train, x_test, y_train, y_test = train_test_split(
            flat(images), labels, test_size=0.2, stratify=labels, random_state=seed
        )
        self.classifier = MLPClassifier((128, 64), alpha=1e-2, max_iter=300, random_state=seed)
        self.classifier.fit(x_train, y_train)
        self.real_accuracy = float(self.classifier.score(x_test, y_test))

    def match(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Share of images (M, 1, 8, 8) read as the label they were asked for."""
        return float(self.classifier.score(flat(images), labels))

    def features(self, images: np.ndarray) -> np.ndarray:
        """(M, 64) activations of the last hidden layer."""
        h = flat(images)
        for weight, bias in zip(self.classifier.coefs_[:-1], self.classifier.intercepts_[:-1], strict=True):
            h = np.maximum(h @ weight + bias, 0)
        return h

    def frechet(self, a: np.ndarray, b: np.ndarray) -> float:
        """The distance between the features of two sets of images."""
        return frechet(self.features(a), self.features(b))


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance between the Gaussians fitted to features a (M, D) and b (K, D) (arXiv 1706.08500, FID)."""
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The trace of the root of ca @ cb: its eigenvalues are real and not negative, but for rounding.
    roots = np.sqrt(np.linalg.eigvals(ca @ cb).real.clip(min=0))
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(ca + cb) - 2 * roots.sum())


def flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


def halves(images: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two random halves of the images."""
    order = np.random.default_rng(seed).permutation(len(images))
    return images[order[: len(order) // 2]], images[order[len(order) // 2 :]]
