# SPDX-License-Identifier: Apache-2.0
"""Labels as people give them, numbers or names, as class ids."""

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor

Labels = Tensor | Sequence[int | str] | int | str | None


def class_ids(labels: Labels, num_classes: int | None, names: Sequence[str] | None) -> list[int]:
    """Ids in 0..num_classes - 1 of what was asked for; of an unconditional model a zero an image.

    Args:
        labels: ids and names, or one of them; a tensor of ids; for a model without labels, how many images.
        num_classes: None where it is not known, 0 for a model without labels.
        names: of the classes, in the order of their ids.

    Raises:
        ValueError: no such class; names of a model whose classes have none; a count where labels are needed.
    """
    if num_classes == 0:
        return [0] * _count(labels)
    if labels is None or isinstance(labels, int):
        raise ValueError(f"Sampler: `labels` must be a list of classes, one an image, got {labels!r}")
    if isinstance(labels, Tensor):
        if labels.dim() != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(
                f"Sampler: `labels` must be integers of shape (N,), got {labels.dtype} {tuple(labels.shape)}"
            )
        labels = labels.tolist()
    elif isinstance(labels, str):
        labels = [labels]
    ids = [class_id(label, names) if isinstance(label, str) else int(label) for label in labels]
    for label in ids:
        if label < 0 or (num_classes is not None and label >= num_classes):
            highest = "" if num_classes is None else f" to {num_classes - 1}"
            raise ValueError(f"Sampler: `labels` must be from 0{highest}, got {label}")
    return ids


def class_id(name: str, names: Sequence[str] | None) -> int:
    """The id of a class by its name, or by one of the names that commas separate in it; capitals do not matter."""
    if names is None:
        raise ValueError(f"Sampler: `labels` must be numbers: the model's classes have no names, got {name!r}")
    wanted = name.strip().lower()
    whole = [index for index, known in enumerate(names) if known.strip().lower() == wanted]
    found = whole or [index for index, known in enumerate(names) if wanted in _synonyms(known)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"Sampler: `labels` must name one class, {name!r} is that of {found}: give a number")
    known = [synonym for whole in names for synonym in {whole.strip().lower(), *_synonyms(whole)}]
    near = difflib.get_close_matches(wanted, known, n=3)
    hint = f"; near it: {', '.join(near)}" if near else ""
    raise ValueError(f"Sampler: `labels` must name one of the {len(names)} classes, got {name!r}{hint}")


def _synonyms(name: str) -> list[str]:
    return [part.strip().lower() for part in name.split(",")]


def _count(labels: Labels) -> int:
    if isinstance(labels, int) and not isinstance(labels, bool) and labels >= 0:
        return labels
    raise ValueError(
        f"Sampler: `labels` must be a number of images: the model has no labels, got {_described(labels)}"
    )


def _described(labels: Labels) -> str:
    return f"a tensor {tuple(labels.shape)}" if isinstance(labels, Tensor) else repr(labels)
