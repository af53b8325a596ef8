# SPDX-License-Identifier: Apache-2.0
"""Folders, tensors, digits, and how a name finds them."""

import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from dit_fast.data import FolderSource, TensorSource, digits, open_source
from dit_fast.data.names import Names

from .conftest import SIZE


def test_classes_are_folders_in_order(photos, generator):
    source = FolderSource(photos, SIZE, flip=False)
    assert (len(source), source.shape, source.kind) == (10, (3, SIZE, SIZE), "pixels")
    assert (source.num_classes, source.class_names) == (2, ("a", "b"))
    assert [source.identity(i) for i in range(10)] == [f"a/{i}.png" for i in range(6)] + [
        f"b/{i}.png" for i in range(4)
    ]
    assert [source.example(i, generator)[1] for i in range(10)] == [0] * 6 + [1] * 4
    pixels = np.asarray(Image.open(photos / "b" / "0.png"))[:, 2:-2]  # 16 x 20: the middle
    assert torch.equal(source.example(6, generator)[0], torch.tensor(pixels).permute(2, 0, 1) / 127.5 - 1)
    assert FolderSource(photos, SIZE, channels=1).example(0, generator)[0].shape == (1, SIZE, SIZE)


def test_the_flip_is_the_generators_and_nothing_elses(photos):
    source, plain = FolderSource(photos, SIZE), FolderSource(photos, SIZE, flip=False)
    image = plain.example(3, torch.Generator())[0]
    seen = []
    for seed in range(40):
        drawn = [source.example(3, torch.Generator().manual_seed(seed))[0] for _ in range(2)]
        assert torch.equal(*drawn)
        assert torch.equal(drawn[0], image) or torch.equal(drawn[0], image.flip(-1))
        seen.append(torch.equal(drawn[0], image))
    assert 8 <= sum(seen) <= 32  # a fair coin is outside of it once in 10,000 times; these seeds are fixed


class Rows(Dataset):
    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.source.example(index, torch.Generator().manual_seed(index))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_read_the_same(photos, encoded, workers):
    for source in (FolderSource(photos, SIZE), open_source(encoded)):
        source.example(0, torch.Generator())  # opened here before it goes elsewhere
        images, labels = next(iter(DataLoader(Rows(source), batch_size=10, num_workers=workers)))
        copy = pickle.loads(pickle.dumps(source))
        for i in range(10):
            image, label = copy.example(i, torch.Generator().manual_seed(i))
            assert torch.equal(images[i], image) and labels[i] == label == source.label(i)


def test_images_alone_have_no_labels(photos, generator):
    source = FolderSource(photos / "a", SIZE)
    assert (len(source), source.num_classes, source.class_names) == (6, 0, None)
    assert source.example(5, generator)[1] == 0


def test_other_files_and_inner_folders(photos, tmp_path):
    root = shutil.copytree(photos, tmp_path / "photos")
    (root / "a" / "deep" / "er").mkdir(parents=True)
    shutil.move(root / "a" / "0.png", root / "a" / "deep" / "er" / "z.PNG")
    for name in ("README.txt", "a/notes.txt", "a/.hidden.png", ".cache/x.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("no image")
    source = FolderSource(root, SIZE)
    assert len(source) == 10 and source.identity(5) == "a/deep/er/z.PNG" and source.class_names == ("a", "b")
    assert source.manifest["left_out"] == 3


def test_folders_that_are_none(photos, tmp_path, generator):
    with pytest.raises(FileNotFoundError, match="must be a folder of images, .*nowhere is none"):
        FolderSource(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has 0 other files"):
        FolderSource(tmp_path)
    root = shutil.copytree(photos, tmp_path / "photos")
    (root / "b" / "3.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"photos/b/3.png cannot be read as an image"):
        FolderSource(root, SIZE).example(9, generator)
    for index in (-1, 10):
        with pytest.raises(IndexError, match=f"from 0 to 9, got {index}"):
            FolderSource(root, SIZE).example(index, generator)
    (root / "c").mkdir()
    with pytest.raises(ValueError, match=r"photos/c is a class without images"):
        FolderSource(root, SIZE)
    shutil.copy(root / "a" / "1.png", root / "1.png")
    with pytest.raises(ValueError, match=r"has both: 3 folders \(a, ...\) and 1 images"):
        FolderSource(root, SIZE)
    with pytest.raises(ValueError, match="`image_size` must be positive, got 0"):
        FolderSource(photos, 0)
    with pytest.raises(ValueError, match="`channels` must be 1 or 3, got 4"):
        FolderSource(photos, 8, channels=4)


def test_names_of_any_kind():
    strings = ["", "a/b", "ü\n", "\udcff", "last"]
    for names in (Names(strings), Names.from_bytes(Names(strings).blob), pickle.loads(pickle.dumps(Names(strings)))):
        assert [names[i] for i in range(len(names))] == strings
    assert len(Names([])) == 0


def test_tensors(generator):
    images, labels = torch.randn(4, 1, 2, 2), torch.tensor([0, 2, 1, 0])
    source = TensorSource(images, labels, flip=False)
    assert (source.num_classes, source.class_names, source.shape) == (3, None, (1, 2, 2))
    assert torch.equal(source.example(1, generator)[0], images[1]) and source.label(1) == 2
    assert TensorSource(images, labels, ["x", "y", "z", "none"]).num_classes == 4
    assert TensorSource(images).num_classes == 0
    for arguments, told in (
        ((images[0],), r"must be \(M, C, H, W\) float32, got \(1, 2, 2\)"),
        ((images.double(),), "got .* torch.float64"),
        ((images, labels[:2]), r"must be \(4,\) int64, got \(2,\)"),
        ((images, labels - 1), "from 0, got -1 to 1"),
        ((images, labels, ["x", "y"]), "from 0 to 1, as `class_names` has it, got 0 to 2"),
    ):
        with pytest.raises(ValueError, match=told):
            TensorSource(*arguments)


def test_digits(generator):
    source = open_source("digits")
    assert (len(source), source.shape, source.class_names) == (1797, (1, 8, 8), tuple("0123456789"))
    image, label = source.example(3, generator)
    assert label == 3 and image.min() == -1 and image.max() <= 1
    assert len({digits().example(3, torch.Generator().manual_seed(s))[0].sum().item() for s in range(9)}) == 1


def test_a_name_finds_what_is_there(photos, encoded, tmp_path):
    assert isinstance(open_source(photos, image_size=SIZE), FolderSource)
    assert open_source(encoded).kind == "latents"
    with pytest.raises(FileNotFoundError, match="nothing at ./photos/"):
        open_source("./photos/")
    (tmp_path / "file.png").write_bytes(b"")
    for data, kind, told in (
        (tmp_path / "file.png", "auto", "is a file"),
        ("", "auto", "got nothing"),
        (photos, "latent", r"`kind` must be one of .* got 'latent'"),
    ):
        with pytest.raises(ValueError, match=told):
            open_source(data, kind=kind)
    with pytest.raises(FileNotFoundError, match="no latent cache at .*photos"):
        open_source(photos, kind="latents")


def test_classes_more_or_none(photos, encoded, generator):
    for data in (photos, encoded):
        free = open_source(data, image_size=SIZE, num_classes=0)
        assert (free.num_classes, free.class_names, free.label(9), free.example(9, generator)[1]) == (0, None, 0, 0)
        more = pickle.loads(pickle.dumps(open_source(data, image_size=SIZE, num_classes=1000)))
        assert (more.num_classes, more.class_names, more.label(9), len(more)) == (1000, None, 1, 10)
        assert open_source(data, image_size=SIZE, num_classes=2).class_names == ("a", "b")
        with pytest.raises(ValueError, match="`num_classes` must be 0 or at least the data's 2, got 1"):
            open_source(data, image_size=SIZE, num_classes=1)
    with pytest.raises(ValueError, match="must be 0, for the data has no labels, got 3"):
        open_source(photos / "a", image_size=SIZE, num_classes=3)
