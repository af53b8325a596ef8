# SPDX-License-Identifier: Apache-2.0
"""Datasets of Hugging Face's library: saved, in a folder, by name."""

import pickle
import shutil
import sys

import pytest
import torch

from dit_fast.data import FolderSource, open_source
from dit_fast.data.dataset import DatasetSource

from .conftest import SIZE

datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module", autouse=True)
def quiet():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def rows(photos):
    """The photos as a dataset holds them: encoded, with classes, and their labels as numbers and words."""
    source = FolderSource(photos, SIZE)
    paths = [str(photos / source.identity(i)) for i in range(len(source))]
    labels = [source.label(i) for i in range(len(source))]
    columns = {"image": paths, "label": labels, "number": labels, "word": [["one", "two"][n] for n in labels]}
    types = {
        "image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"]),
        "number": datasets.Value("int32"), "word": datasets.Value("string"),
    }  # fmt: skip
    return datasets.Dataset.from_dict(columns, features=datasets.Features(types))


@pytest.fixture(scope="module")
def saved(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets") / "saved"
    rows.save_to_disk(folder)
    return folder


def same_images(source, photos):
    other = FolderSource(photos, SIZE)
    for i in range(len(other)):
        seeds = [torch.Generator().manual_seed(i) for _ in range(2)]
        assert torch.equal(source.example(i, seeds[0])[0], other.example(i, seeds[1])[0])


def test_a_saved_dataset_gives_what_the_folder_gives(saved, photos):
    source = open_source(saved, image_size=SIZE)
    assert isinstance(source, DatasetSource) and (len(source), source.shape) == (10, (3, SIZE, SIZE))
    assert (source.num_classes, source.class_names) == (3, ("a", "b", "c"))
    assert [source.label(i) for i in range(10)] == [0] * 6 + [1] * 4
    same_images(source, photos)
    same_images(pickle.loads(pickle.dumps(source)), photos)
    assert source.identity(7) == "row 7"


def test_labels_of_each_type_and_none(saved):
    number = open_source(saved, image_size=SIZE, label_column="number")
    assert (number.num_classes, number.class_names, number.label(9)) == (2, None, 1)
    word = open_source(saved, image_size=SIZE, label_column="word")
    assert (word.num_classes, word.class_names, word.label(9)) == (2, ("one", "two"), 1)
    for free in (DatasetSource(saved, SIZE, label_column=None), open_source(saved, label_column="no", num_classes=0)):
        assert (free.num_classes, free.label(9)) == (0, 0)


def test_columns_that_are_not_there_or_of_another_type(saved):
    for options, told in (
        ({"image_column": "img"}, r"`image_column` must be a column of .*\['image', 'label', 'number', 'word'\], got"),
        ({"label_column": "fine_label"}, "`label_column` must be a column of .*, got 'fine_label'"),
        ({"image_column": "number"}, "`image_column` must be images, .*'number' of .* is Value"),
        ({"label_column": "image"}, "`label_column` must be classes, integers or strings; 'image' of .* is Image"),
    ):
        with pytest.raises(ValueError, match=told):
            open_source(saved, **options)


def test_splits(rows, tmp_path, photos):
    datasets.DatasetDict(train=rows, test=rows.select([0])).save_to_disk(tmp_path / "both")
    assert len(open_source(tmp_path / "both", image_size=SIZE)) == 10
    assert len(open_source(tmp_path / "both", image_size=SIZE, split="test")) == 1
    with pytest.raises(ValueError, match=r"`split` must be one of .*\['test', 'train'\], got 'val'"):
        open_source(tmp_path / "both", split="val")
    only = datasets.Dataset.from_dict(rows.select([0])[:], features=rows.features, split="test")
    only.save_to_disk(tmp_path / "only")
    with pytest.raises(ValueError, match="`split` must be that of .*'test', got 'train'"):
        open_source(tmp_path / "only")


def test_a_folder_of_tables_and_a_name(rows, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "tables" / "data").mkdir(parents=True)
    embedded = rows.map(lambda row: row)  # paths become bytes
    embedded.to_parquet(tmp_path / "tables" / "data" / "train-00000.parquet")
    source = open_source(tmp_path / "tables", image_size=SIZE)
    same_images(source, photos)
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: asked.append((name, split)) or rows)
    assert len(open_source("someone/photos", split="train[:50%]", image_size=SIZE)) == 10
    assert asked == [("someone/photos", "train[:50%]")]


def test_a_name_that_nobody_has(monkeypatch):
    def missing(name, split):
        raise datasets.exceptions.DatasetNotFoundError(f"{name} is not on the hub")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    with pytest.raises(FileNotFoundError, match="no dataset can be loaded from the name 'photoz', .*not on the hub"):
        open_source("photoz")


def test_rows_that_lack_something(rows, photos, tmp_path, monkeypatch):
    columns = {"image": [str(photos / "a" / "0.png"), None, str(tmp_path / "x.png")], "label": [0, 1, 0]}
    (tmp_path / "x.png").write_bytes(b"broken")
    types = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(columns, features=types).save_to_disk(tmp_path / "images")
    source = open_source(tmp_path / "images", image_size=SIZE)
    source.example(0, torch.Generator())
    with pytest.raises(ValueError, match=r"images\[train\] row 1 has no image"):
        source.example(1, torch.Generator())
    with pytest.raises(ValueError, match=r"images\[train\] row 2 .*x.png.* cannot be read as an image"):
        source.example(2, torch.Generator())
    for name, labels, told in (("none", [0, None], "row 1 has no 'label'"), ("low", [0, -1], "row 1 has .* -1, which")):
        held = datasets.Dataset.from_dict({"image": columns["image"][:2], "label": labels}, features=types)
        held.save_to_disk(tmp_path / name)
        with pytest.raises(ValueError, match=told):
            open_source(tmp_path / name)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: rows.select([]))
    with pytest.raises(ValueError, match=r"empty\[train\] has no rows"):
        open_source("empty")


def test_a_half_deleted_dataset(saved, tmp_path):
    broken = shutil.copytree(saved, tmp_path / "broken")
    next(broken.glob("*.arrow")).unlink()
    with pytest.raises(FileNotFoundError):
        open_source(broken)


def test_the_library_is_asked_for(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs the library datasets: pip install 'dit_fast\[train\]'"):
        open_source(saved)
