# SPDX-License-Identifier: Apache-2.0
"""FID, Inception score, precision and recall against their definitions, on a random Inception; bad inputs."""

import importlib
import json
import sys
import types
import zipfile

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from dit_fast.cli import main
from dit_fast.sample import evaluate as module
from dit_fast.sample.evaluate import WEIGHTS, evaluate, find_weights, open_images

N, SIZE = 12, (8, 6)


@pytest.fixture(scope="module")
def fidelity():
    """torch-fidelity, with a stand-in for torchvision as it is imported.

    It takes names of data sets and transforms from torchvision, none of which is used here; and torchvision's wheels,
    made for GPUs, do not load beside a CPU build of torch.
    """
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed")
    names = ["torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"]
    standins = {name: types.ModuleType(name) for name in names}
    for name, standin in standins.items():
        if "." in name:
            setattr(standins[name.rpartition(".")[0]], name.rpartition(".")[2], standin)
        standin.__getattr__ = lambda name: type(name, (), {})  # CIFAR10 and others are base classes
    with pytest.MonkeyPatch.context() as patch:
        for name, standin in standins.items():
            patch.setitem(sys.modules, name, standin)
        return importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")


@pytest.fixture(scope="module")
def weights(tmp_path_factory, fidelity):
    """A file of torch-fidelity's format with random weights, which tell images apart as real ones do."""

    class Fresh(fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, *arguments, **options):
            pass

    path = tmp_path_factory.mktemp("weights") / WEIGHTS
    torch.save({}, path)
    torch.manual_seed(0)
    torch.save(Fresh("inception-v3-compat", ["64"], feature_extractor_weights_path=path).state_dict(), path)
    return path


def images(seed, n=N, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (n, *size, 3), dtype=np.uint8)


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def frechet(a, b):
    """Heusel et al. 2017, eq. 6, with the root of the product of covariances."""
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(ca + cb - 2 * scipy.linalg.sqrtm(ca @ cb).real)


def covered(points, manifold, k=3):
    """Kynkaanniemi et al. 2019, eq. 2: the share of points within the k-th neighbour's distance of one of manifold."""
    within = np.linalg.norm(manifold[:, None] - manifold[None], axis=-1)
    radii = np.sort(within, axis=1)[:, k]  # column 0 is the point itself
    return (np.linalg.norm(points[:, None] - manifold[None], axis=-1) <= radii).any(1).mean()


def score(logits):
    """Salimans et al. 2016: exp of the mean KL(p(y|x) || p(y)), over ten parts of torch-fidelity's shuffle."""
    p = torch.from_numpy(logits)[np.random.RandomState(2020).permutation(len(logits))].double().softmax(1).numpy()
    parts = [p[i * len(p) // 10 : (i + 1) * len(p) // 10] for i in range(10)]
    scores = [np.exp((q * (np.log(q) - np.log(q.mean(0)))).sum(1).mean()) for q in parts]
    return np.mean(scores), np.std(scores)


def test_the_numbers_are_their_definitions(tmp_path, fidelity, weights, monkeypatch):
    monkeypatch.setattr(fidelity.FeatureExtractorInceptionV3, "INPUT_IMAGE_SIZE", 80)  # 299 would take half a minute
    b = images(2)
    a = np.concatenate([b[:8] ^ 7, images(1, n=7) // 8])  # eight near some of b, seven far
    samples, reference = save(tmp_path / "a.npz", arr_0=a), save(tmp_path / "b.npz", arr_0=b)
    kept, extract = [], module._extract

    def keeping(*arguments):
        kept.append(extract(*arguments))
        return kept[-1]

    monkeypatch.setattr(module, "_extract", keeping)
    result = evaluate(samples, reference, weights=weights, layer=64, batch_size=7, progress=False)
    (fa, logits), (fb, _) = [(f.double().numpy(), g.numpy()) for f, g in kept]
    assert fa.shape == (15, 64) and fb.shape == (N, 64) and logits.shape == (15, 1008)
    one = module._inception(weights, 64, "cpu")(torch.from_numpy(a[8:9]).permute(0, 3, 1, 2))
    np.testing.assert_allclose(fa[8], one[0][0].numpy(), rtol=1e-4, atol=1e-6)  # in order, whatever the batch
    # sqrtm of a singular product is only so exact
    assert result["fid"] == pytest.approx(frechet(fa, fb), rel=1e-3) and result["fid"] > 0
    assert result["precision"] == pytest.approx(covered(fa, fb)) and result["recall"] == pytest.approx(covered(fb, fa))
    assert result["precision"] != result["recall"]
    mean, std = score(logits)
    assert result["inception_score"] == pytest.approx(mean) and result["inception_score_std"] == pytest.approx(std)
    assert result["absent"] == {} and result["samples"] == {"path": str(samples), "count": 15, "size": [8, 6]}
    assert result["reference"]["count"] == N and len(result["weights"]["sha256"]) == 64


@pytest.fixture
def given(tmp_path, monkeypatch, fidelity):
    """A function that puts features in the place of Inception's: of the samples, then of the reference."""
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"")
    monkeypatch.setattr(module, "_inception", lambda *_: None)

    def give(*features):
        turns = iter(features)
        monkeypatch.setattr(module, "_extract", lambda *_: (torch.from_numpy(next(turns)).float(), torch.zeros(N, 9)))
        return weights

    return give


def test_precision_and_recall_have_three_neighbours(tmp_path, given):
    rng = np.random.default_rng(0)
    fa, fb = rng.standard_normal((100, 6)), rng.standard_normal((80, 6)) + 1
    assert all(len({covered(f, m, k) for k in (2, 3, 4)}) == 3 for f, m in ((fa, fb), (fb, fa)))
    both = [save(tmp_path / f"{name}.npz", arr_0=images(1)) for name in "ab"]
    result = evaluate(*both, weights=given(fa, fb), layer=64, progress=False)
    assert result["precision"] == pytest.approx(covered(fa, fb)) and result["recall"] == pytest.approx(covered(fb, fa))


def test_stored_statistics_are_used_as_they_are(tmp_path, given, monkeypatch, capsys):
    """FID to N(mu, sigma) of the samples' own features is 0, and is the squared distance where mu is moved."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((N, 2048)).astype(np.float32).astype(float)
    weights = given(features, features, features)
    monkeypatch.setattr(np.linalg, "eigvals", lambda m: np.full(1, np.trace(m)))  # 2048 wide: half a minute of a core
    mu = features.mean(0)
    moved = mu + np.eye(2048)[5] * 3
    samples = save(tmp_path / "s.npz", arr_0=images(1))
    statistics = {"mu": moved, "sigma": np.zeros((2048, 2048))}
    reference = save(tmp_path / "r.npz", **statistics, arr_0=images(1))
    file = tmp_path / "deep" / "e.json"
    command = ["evaluate", str(samples), "--reference", str(reference), "--weights", str(weights), "--json", str(file)]
    assert main(command) == 0
    result = json.loads(file.read_text())
    variance = np.cov(features, rowvar=False).trace()
    assert result["fid"] == pytest.approx(9 + variance)
    assert result["precision"] == result["recall"] == 1  # of images, which are the samples
    assert module._open_reference(reference, 64)[0] is None  # they are of 2048 features
    bare = save(tmp_path / "bare.npz", **statistics)
    kept, pictures, absent = module._open_reference(bare, 64)
    assert kept is None and pictures is None and absent["fid"].startswith("the reference has statistics of 2048")
    kept, pictures, absent = module._open_reference(bare, 2048)
    assert np.array_equal(kept["mu"], moved) and pictures is None and absent.keys() == {"precision", "recall"}
    assert main(["evaluate", str(samples), "--weights", str(weights)]) == 0
    assert "recall                absent: no reference was given" in capsys.readouterr().out


def test_a_folder_is_read_as_the_same_images(tmp_path):
    a = images(3, n=11)
    for i, image in enumerate(a):
        path = tmp_path / "f" / f"class{i % 2}" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    order = [*range(0, 11, 2), *range(1, 11, 2)]
    found = open_images(tmp_path / "f")
    assert (found.count, found.size) == (11, SIZE)
    assert np.array_equal(np.concatenate(list(found.batches(4))), a[order])
    packed = open_images(save(tmp_path / "a.npz", arr_0=a))
    np.savez_compressed(tmp_path / "c.npz", arr_0=a)
    for archive in (packed, open_images(tmp_path / "c.npz")):
        batches = list(archive.batches(4))
        assert [len(b) for b in batches] == [4, 4, 3] and np.array_equal(np.concatenate(batches), a)
    Image.fromarray(a[0][:4]).save(tmp_path / "f" / "class1" / "99.png")
    with pytest.raises(ValueError, match=r"99.png: expected size \(8, 6\), as the first picture has, got \(4, 6\)"):
        list(open_images(tmp_path / "f").batches(5))


def test_missing_weights_are_named_with_where_to_get_them(tmp_path, monkeypatch, capsys, fidelity):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    samples = save(tmp_path / "s.npz", arr_0=images(1))
    assert main(["evaluate", str(samples)]) == 2
    error = capsys.readouterr().err
    wanted = tmp_path / "hub" / "checkpoints" / WEIGHTS
    assert f"Inception's weights are missing: {wanted}. Get them from https://github.com/toshas/" in error
    wanted.parent.mkdir(parents=True)
    wanted.write_bytes(b"not weights")
    assert find_weights() == wanted
    assert main(["evaluate", str(samples)]) == 2
    assert f"weights: expected torch-fidelity's Inception ({WEIGHTS}), got {wanted}" in capsys.readouterr().err
    assert main(["evaluate", str(samples), "--weights", str(tmp_path / "none.pth")]) == 2
    assert f"are missing: {tmp_path / 'none.pth'}" in capsys.readouterr().err


def test_a_library_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch, capsys):
    samples, weights = save(tmp_path / "s.npz", arr_0=images(1)), tmp_path / "weights.pth"
    weights.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    assert main(["evaluate", str(samples), "--weights", str(weights)]) == 2
    error = capsys.readouterr().err
    assert "evaluating needs torch-fidelity, and the torchvision that fits this torch" in error
    assert "pip install 'dit_fast[evaluate]'" in error


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_weights_that_would_run_code_are_refused(tmp_path, fidelity):
    torch.save({"fc.weight": Harm(tmp_path / "harmed")}, tmp_path / "weights.pth")
    samples = save(tmp_path / "s.npz", arr_0=images(1))
    with pytest.raises(ValueError, match="weights: expected torch-fidelity's Inception"):
        evaluate(samples, weights=tmp_path / "weights.pth", progress=False)
    assert not (tmp_path / "harmed").exists()


def test_inputs_that_do_not_fit_are_named(tmp_path, capsys):
    good = save(tmp_path / "good.npz", arr_0=images(1))
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty").mkdir()
    shape = r"expected arr_0 to be uint8 \(N >= 10, H, W, 3\), got "
    cases = [
        (save(tmp_path / "f.npz", arr_0=images(1).astype(np.float32)), None, shape + "float32"),
        (save(tmp_path / "n.npz", arr_0=np.zeros((12, 3, 8, 6), np.uint8)), None, shape + r"uint8 \(12, 3, 8, 6\)"),
        (save(tmp_path / "few.npz", arr_0=images(1, n=9)), None, shape + r"uint8 \(9, 8, 6, 3\)"),
        (save(tmp_path / "x.npz", x=images(1)), None, "expected arr_0, got x.npy"),
        (save(tmp_path / "o.npz", arr_0=np.asfortranarray(images(1))), None, "expected arr_0 in C order"),
        (tmp_path / "text.npz", None, "expected an .npz file or a folder of pictures"),
        (tmp_path / "empty", None, r"expected at least 10 pictures \(.*\), got 0"),
        (good, save(tmp_path / "big.npz", arr_0=images(1, size=(9, 6))), r"samples' size \(8, 6\), got \(9, 6\)"),
        (good, save(tmp_path / "mu.npz", mu=np.zeros(2048)), "expected mu .2048,. and sigma .2048, 2048., got"),
        (good, save(tmp_path / "y.npz", y=np.zeros(2)), "expected arr_0, or mu and sigma; got neither"),
    ]
    for samples, reference, message in cases:
        with pytest.raises(ValueError, match=message):
            evaluate(samples, reference)
    for samples, reference in ((tmp_path / "no.npz", None), (good, tmp_path / "no.npz")):
        with pytest.raises(FileNotFoundError, match="no images at"):
            evaluate(samples, reference)
    with pytest.raises(ValueError, match="layer: expected one of .64, 192, 768, 2048., got 100"):
        evaluate(good, layer=100)
    assert main(["evaluate", str(good), "--count", "50000"]) == 2
    assert "expected 50000 images (--count), got 12" in capsys.readouterr().err


def test_a_file_that_ends_early_is_noticed(tmp_path):
    """An archive whose header promises more than it holds."""
    path = tmp_path / "short.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": (20, *SIZE, 3)}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(images(1).tobytes())
    with pytest.raises(ValueError, match="expected 20 images, it ends in number 12"):
        list(open_images(path).batches(8))
