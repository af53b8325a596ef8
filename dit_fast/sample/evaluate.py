# SPDX-License-Identifier: Apache-2.0
"""FID, Inception score, precision and recall of a set of images, with torch-fidelity's Inception and formulas.

What ADM's evaluator computes: features of Inception's last pool; FID against a reference batch's stored mean and
covariance; precision and recall on the same features, with three neighbours (arXiv 1904.06991); Inception scores of
ten parts. Nothing is downloaded. N images, H W size, D features.
"""

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
WEIGHTS_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS}"
LAYERS = (64, 192, 768, 2048)
PARTS = 10  # of an Inception score, and so the least images
NEIGHBOURS = 3
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class Images:
    """A set of RGB images on disk, read a batch at a time."""

    path: Path
    count: int
    size: tuple[int, int]  # H, W

    def batches(self, n: int) -> Iterator[np.ndarray]:
        """uint8 (n or fewer, H, W, 3), in order."""
        reader = _read_npz if self.path.is_file() else _read_folder
        return reader(self.path, self.count, self.size, n)


def open_images(path: Path) -> Images:
    """An `.npz` with `arr_0`, uint8 (N, H, W, 3), or a folder of pictures of one size.

    Raises FileNotFoundError, or ValueError that says what was expected and what is there.
    """
    if path.is_dir():
        files = _pictures(path)
        if len(files) < PARTS:
            kinds = ", ".join(sorted(SUFFIXES))
            raise ValueError(f"{path}: expected at least {PARTS} pictures ({kinds}), got {len(files)}")
        first = _read_picture(files[0])
        return Images(path, len(files), first.shape[:2])
    if not path.exists():
        raise FileNotFoundError(f"no images at {path}")
    with _archive(path) as archive:
        shape, dtype = _header(archive, path)
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or shape[0] < PARTS:
        raise ValueError(f"{path}: expected arr_0 to be uint8 (N >= {PARTS}, H, W, 3), got {dtype} {shape}")
    return Images(path, shape[0], shape[1:3])


def find_weights(path: Path | None = None) -> Path:
    """Inception's weights: `path`, or where torch.hub keeps downloads. FileNotFoundError says what to get."""
    wanted = path or Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    if not wanted.is_file():
        raise FileNotFoundError(
            f"Inception's weights are missing: {wanted}. Get them from {WEIGHTS_URL} and put them there, "
            "or say where they are (--weights)"
        )
    return wanted


def evaluate(
    samples: Path,
    reference: Path | None = None,
    *,
    weights: Path | None = None,
    layer: int = 2048,
    batch_size: int = 64,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Measure `samples`, alone (Inception score) and against `reference` (FID, precision, recall).

    Args:
        samples: see `open_images`.
        reference: the same, or one of ADM's reference batches: an `.npz` whose `mu` and `sigma`, if it has them, are
            the statistics for FID, and whose `arr_0`, if it has it, is for precision and recall.
        weights: see `find_weights`.
        layer: of the features, by their number: 2048 is what published results have; fewer suit few images. Stored
            statistics are of 2048.

    Returns `fid`, `inception_score`, `inception_score_std`, `precision`, `recall`, each None with a reason in `absent`
    where it cannot be had; and what was measured, with what: `samples`, `reference`, `weights`, `layer`.

    Raises ValueError or FileNotFoundError for inputs that do not fit, ImportError without torch-fidelity.
    """
    if layer not in LAYERS:
        raise ValueError(f"layer: expected one of {LAYERS}, got {layer!r}")
    drawn = open_images(samples)
    statistics, real, absent = _open_reference(reference, layer)
    if real is not None and real.size != drawn.size:
        raise ValueError(f"reference: expected images of the samples' size {drawn.size}, got {real.size}: {real.path}")
    path = find_weights(weights)
    try:
        from torch_fidelity import metric_fid, metric_isc, metric_prc, version  # type: ignore[import-untyped]
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision, for another torch
        raise ImportError(
            "evaluating needs torch-fidelity, and the torchvision that fits this torch: "
            f"pip install 'dit_fast[evaluate]' ({error})"
        ) from error
    inception = _inception(path, layer, device)

    features, logits = _extract(inception, drawn, batch_size, device, progress)
    scores = metric_isc.isc_features_to_metric(logits, splits=PARTS)
    result: dict[str, Any] = {
        "fid": None, "inception_score": scores[metric_isc.KEY_METRIC_ISC_MEAN],
        "inception_score_std": scores[metric_isc.KEY_METRIC_ISC_STD], "precision": None, "recall": None,
        "absent": absent,
    }  # fmt: skip
    if real is not None:
        real_features, _ = _extract(inception, real, batch_size, device, progress)
        close = metric_prc.prc_features_to_metric(
            features, real_features, prc_neighborhood=NEIGHBOURS, save_cpu_ram=True, prc_batch_size=2000, verbose=False
        )
        result["precision"], result["recall"] = close["precision"], close["recall"]
        if statistics is None:
            statistics = metric_fid.fid_features_to_statistics(real_features.double())
    if statistics is not None:
        own = metric_fid.fid_features_to_statistics(features.double())
        result["fid"] = metric_fid.fid_statistics_to_metric(own, statistics, False)[metric_fid.KEY_METRIC_FID]
    result["samples"] = {"path": str(drawn.path), "count": drawn.count, "size": list(drawn.size)}
    result["reference"] = None if reference is None else {"path": str(reference), "count": real and real.count}
    result["weights"] = {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    result["layer"] = layer
    result["torch_fidelity"] = version.__version__
    return result


def _open_reference(
    path: Path | None, layer: int
) -> tuple[dict[str, np.ndarray] | None, Images | None, dict[str, str]]:
    """Stored statistics, images, and which metrics have neither, with the reason."""
    if path is None:
        return None, None, dict.fromkeys(("fid", "precision", "recall"), "no reference was given")
    if path.is_dir() or not path.exists():
        return None, open_images(path), {}
    with np.load(_checked(path)) as archive:
        stored = {name: np.float64(archive[name]) for name in ("mu", "sigma") if name in archive.files}
        has_images = "arr_0" in archive.files
    shapes = {name: value.shape for name, value in stored.items()}
    if stored and shapes != {"mu": (2048,), "sigma": (2048, 2048)}:
        raise ValueError(f"{path}: expected mu (2048,) and sigma (2048, 2048), got {shapes}")
    statistics = stored if stored and layer == 2048 else None
    if has_images:
        return statistics, open_images(path), {}
    if not stored:
        raise ValueError(f"{path}: expected arr_0, or mu and sigma; got neither")
    absent = dict.fromkeys(("precision", "recall"), "the reference has no images, arr_0")
    if statistics is None:
        absent["fid"] = f"the reference has statistics of 2048 features and no images, layer is {layer}"
    return statistics, None, absent


def _inception(path: Path, layer: int, device: str) -> torch.nn.Module:
    from torch_fidelity.utils import create_feature_extractor  # type: ignore[import-untyped]

    try:
        torch.load(path, weights_only=True)  # torch-fidelity itself would run what a pickle says
        inception = create_feature_extractor(
            "inception-v3-compat", [str(layer), "logits_unbiased"], cuda=False, verbose=False,
            feature_extractor_weights_path=str(path),
        )  # fmt: skip
    except Exception as error:
        raise ValueError(f"weights: expected torch-fidelity's Inception ({WEIGHTS}), got {path}: {error}") from error
    return inception.to(device)


@torch.no_grad()
def _extract(
    inception: torch.nn.Module, images: Images, batch_size: int, device: str, progress: bool
) -> tuple[Tensor, Tensor]:
    """Features (N, D) and logits without bias (N, 1008), float32 on the CPU."""
    features, logits = [], []
    with tqdm(total=images.count, desc=images.path.name, unit="image", disable=not progress) as bar:
        for batch in images.batches(batch_size):
            pair = inception(torch.from_numpy(batch).permute(0, 3, 1, 2).to(device))
            features.append(pair[0].float().cpu())
            logits.append(pair[1].float().cpu())
            bar.update(len(batch))
    return torch.cat(features), torch.cat(logits)


def _checked(path: Path) -> Path:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: expected an .npz file or a folder of pictures, got another file")
    return path


def _archive(path: Path) -> zipfile.ZipFile:
    archive = zipfile.ZipFile(_checked(path))
    if "arr_0.npy" not in archive.namelist():
        names = ", ".join(archive.namelist()) or "nothing"
        archive.close()
        raise ValueError(f"{path}: expected arr_0, got {names}")
    return archive


def _header(archive: zipfile.ZipFile, path: Path) -> tuple[tuple[int, ...], np.dtype]:
    with archive.open("arr_0.npy") as stream:
        return _read_header(stream, path)


def _read_header(stream: Any, path: Path) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(stream)
    if fortran_order:
        raise ValueError(f"{path}: expected arr_0 in C order, got Fortran's")
    return shape, dtype


def _read_npz(path: Path, count: int, size: tuple[int, int], n: int) -> Iterator[np.ndarray]:
    each = size[0] * size[1] * 3
    with _archive(path) as archive, archive.open("arr_0.npy") as stream:
        _read_header(stream, path)
        for start in range(0, count, n):
            wanted = min(n, count - start)
            data = bytearray(stream.read(wanted * each))
            if len(data) != wanted * each:
                raise ValueError(f"{path}: expected {count} images, it ends in number {start + len(data) // each}")
            yield np.frombuffer(data, np.uint8).reshape(wanted, *size, 3)


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)


def _read_picture(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _read_folder(path: Path, count: int, size: tuple[int, int], n: int) -> Iterator[np.ndarray]:
    files = _pictures(path)
    for start in range(0, count, n):
        batch = [_read_picture(file) for file in files[start : start + n]]
        for file, picture in zip(files[start:], batch, strict=False):
            if picture.shape[:2] != size:
                raise ValueError(f"{file}: expected size {size}, as the first picture has, got {picture.shape[:2]}")
        yield np.stack(batch)
