import csv
import gc
import gzip
import hashlib
import http.server
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from fastbadge.errors import DataError, FastbadgeError, InputError
from fastbadge.lab import cifar10, mnist, svhn
from fastbadge.lab.datasets import dataset_names, is_resplit, load_dataset
from fastbadge.lab.idx import read_idx
from fastbadge.lab.imagefolder import read_images
from fastbadge.lab.openml import read_openml

STANDARD_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx_bytes(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def small():
    """Four arrays in the shape of MNIST: 30 training and 20 test images of 4 x 3."""
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 256, (30, 4, 3), dtype=np.uint8),
        np.arange(30, dtype=np.uint8) % 10,
        rng.integers(0, 256, (20, 4, 3), dtype=np.uint8),
        np.arange(20, dtype=np.uint8) % 10,
    ]


def write_idx_files(folder, arrays, *, compressed=False, names=STANDARD_NAMES):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(names, arrays, strict=True):
        content = idx_bytes(array)
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test may find, or leave, files in the user's own cache."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(pooch, "os_cache", lambda project: folder)
    return folder


@pytest.fixture(autouse=True)
def no_mirrors(monkeypatch):
    """Port 9 of this machine answers nobody: what a machine without a network sees."""
    for name, source in mnist.SOURCES.items():
        offline = replace(source, mirrors=("http://127.0.0.1:9/",))
        monkeypatch.setitem(mnist.SOURCES, name, offline)
    for module in (cifar10, svhn):
        monkeypatch.setattr(module, "MIRRORS", ("http://127.0.0.1:9/",))


def test_digits_are_divided_anew_by_each_seed_and_stratified():
    pixels, labels = load_digits(return_X_y=True)
    everything = sorted(map(tuple, np.column_stack([pixels / 16, labels])))
    first, again, other = (load_dataset("digits", split_seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.x_pool_NF, again.x_pool_NF)
    assert torch.equal(first.y_test_M, again.y_test_M)
    assert not torch.equal(first.x_pool_NF, other.x_pool_NF)
    assert first.digest == again.digest != other.digest
    share_C = np.bincount(labels) / len(labels)
    for dataset in (first, other):
        assert dataset.x_pool_NF.shape == (1297, 64) and dataset.x_test_MF.shape == (500, 64)
        assert dataset.x_pool_NF.dtype == torch.float32 and dataset.y_pool_N.dtype == torch.int64
        for y in (dataset.y_pool_N, dataset.y_test_M):
            counts_C = np.bincount(y.numpy(), minlength=10)
            assert np.abs(counts_C - share_C * len(y)).max() <= 1
        # Pool and test set together are the digits, each once, with their own labels.
        x = torch.cat([dataset.x_pool_NF, dataset.x_test_MF]).double()
        y = torch.cat([dataset.y_pool_N, dataset.y_test_M])
        assert sorted(map(tuple, torch.column_stack([x, y]).numpy())) == everything


def test_real_mnist(mnist_dir):
    dataset = load_dataset("mnist", data_dir=mnist_dir)
    # Class counts as published with the set.
    assert dataset.y_pool_N.bincount().tolist() == [
        *(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
    ]
    assert dataset.y_test_M.bincount().tolist() == [
        *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    ]
    raw = gzip.decompress((mnist_dir / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    expected = (np.frombuffer(raw, np.uint8).reshape(10_000, 784) / 255 - 0.1307) / 0.3081
    torch.testing.assert_close(
        dataset.x_test_MF.double(), torch.tensor(expected), atol=1e-6, rtol=0
    )
    assert dataset.x_pool_NF.shape == (60_000, 784)
    assert dataset.x_pool_NF.mean().abs() < 1e-3 and (dataset.x_pool_NF.std() - 1).abs() < 1e-3


@pytest.mark.parametrize(
    ("name", "folder", "compressed"),
    [
        ("mnist", ".", False),
        ("mnist", ".", True),
        ("mnist", "MNIST/raw", False),
        ("mnist", "mnist", True),
        ("fashion_mnist", "FashionMNIST/raw", True),
        ("fashion_mnist", "fashion_mnist", False),
        ("fashion_mnist", ".", True),
    ],
)
def test_idx_files_are_found_in_each_layout(tmp_path, small, name, folder, compressed):
    write_idx_files(tmp_path / folder, small, compressed=compressed)
    dataset = load_dataset(name, data_dir=tmp_path)
    mean, std = {"mnist": (0.1307, 0.3081), "fashion_mnist": (0.2860, 0.3530)}[name]
    expected = (small[0].reshape(30, 12) / 255 - mean) / std
    torch.testing.assert_close(
        dataset.x_pool_NF, torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=0
    )
    assert dataset.y_test_M.tolist() == small[3].tolist()
    assert dataset.num_classes == 10


def test_the_set_s_own_folder_comes_before_loose_files(tmp_path, small):
    write_idx_files(tmp_path, small)
    own = [small[0] // 2, *small[1:]]
    write_idx_files(tmp_path / "FashionMNIST" / "raw", own)
    with_own = load_dataset("fashion_mnist", data_dir=tmp_path)
    assert not torch.equal(with_own.x_pool_NF, load_dataset("mnist", data_dir=tmp_path).x_pool_NF)
    assert with_own.x_pool_NF.max() <= (127 / 255 - 0.2860) / 0.3530 + 1e-6


def test_names_with_a_dot_are_found_too(tmp_path, small):
    write_idx_files(tmp_path, small, names=[n.replace("-idx", ".idx") for n in STANDARD_NAMES])
    assert load_dataset("mnist", data_dir=tmp_path).num_classes == 10


def test_one_set_is_not_taken_for_the_other(tmp_path, small):
    small[1][:10] = [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]  # how MNIST begins
    write_idx_files(tmp_path, small)
    with pytest.raises(DataError, match="labels of mnist, not of fashion_mnist; pass --dataset"):
        load_dataset("fashion_mnist", data_dir=tmp_path)
    load_dataset("mnist", data_dir=tmp_path)


def test_an_incomplete_set_names_what_is_missing(tmp_path, small):
    write_idx_files(tmp_path, small)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"has no t10k-labels-idx1-ubyte\.gz"):
        load_dataset("mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "begins with nothing"),
        (b"\0\0\x08\x03\0\0", "begins with 00000803"),
        (struct.pack(">4BI", 0, 0, 8, 1, 4) + bytes(4), "begins with 00000801"),
        (struct.pack(">4B3I", 0, 0, 8, 3, 2, 2, 2) + bytes(7), "has 7 bytes .* promises 8"),
        (struct.pack(">4B3I", 0, 0, 8, 3, 2, 2, 2) + bytes(9), "has 9 bytes .* promises 8"),
        (
            struct.pack(">4B3I", 0, 0, 8, 3, *[2**32 - 1] * 3),
            "has 0 bytes .* promises 79228162458924105385300197",
        ),
        (gzip.compress(bytes(1000), mtime=0)[:-9], "cannot be read"),
        (gzip.compress(bytes(1000), mtime=0)[:-8] + bytes(8), "cannot be read"),
        (b"\x1f\x8b\x08" + bytes(40), "cannot be read"),
    ],
)
def test_a_broken_idx_file_is_named(tmp_path, content, expected):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"train-images-idx3-ubyte {expected}") as caught:
        read_idx(path, ndim=3)
    assert "\n" not in str(caught.value)


def test_images_and_labels_of_different_number(tmp_path, small):
    write_idx_files(tmp_path, [small[0][:29], *small[1:]])
    with pytest.raises(DataError, match="x_train has 29 rows but y_train has 30"):
        load_dataset("mnist", data_dir=tmp_path)


POOCH_LEAVES_REFUSED_RESPONSES_OPEN = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)


class Mirror:
    """A server on this machine that counts what it is asked for."""

    def __init__(self, files):
        asked = self.asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                content = files.get(self.path.removeprefix("/"))
                self.send_response(200 if content is not None else 404)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *args):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
        gc.collect()


def serve(monkeypatch, files, *urls):
    md5s = tuple(hashlib.md5(files[f"{name}.gz"]).hexdigest() for name in STANDARD_NAMES)
    source = replace(mnist.SOURCES["mnist"], mirrors=urls, md5s=md5s)
    monkeypatch.setitem(mnist.SOURCES, "mnist", source)


@POOCH_LEAVES_REFUSED_RESPONSES_OPEN
def test_files_are_fetched_once_then_come_from_the_cache(small, cache, monkeypatch, capfd):
    files = {
        f"{name}.gz": gzip.compress(idx_bytes(array))
        for name, array in zip(STANDARD_NAMES, small, strict=True)
    }
    damaged = {name: content[:-1] for name, content in files.items()}
    with Mirror({}) as gone, Mirror(damaged) as bad, Mirror(files) as good:
        serve(monkeypatch, files, gone.url, bad.url, good.url)
        first = load_dataset("mnist")
        assert len(gone.asked) == len(bad.asked) == len(good.asked) == 4
        again = load_dataset("mnist")
        assert len(gone.asked) == len(bad.asked) == len(good.asked) == 4
    assert torch.equal(first.x_pool_NF, again.x_pool_NF)
    assert first.y_pool_N.tolist() == small[1].tolist()
    assert sorted(path.name for path in (cache / "mnist").iterdir()) == sorted(files)
    assert "Traceback" not in capfd.readouterr().err


@POOCH_LEAVES_REFUSED_RESPONSES_OPEN
def test_a_wrong_checksum_is_tried_again_and_then_refused(small, cache, monkeypatch):
    files = {
        f"{name}.gz": gzip.compress(idx_bytes(array))
        for name, array in zip(STANDARD_NAMES, small, strict=True)
    }
    with Mirror({name: b"something else" for name in files}) as mirror:
        serve(monkeypatch, files, mirror.url)
        with pytest.raises(DataError, match=r"fetching it failed \(ValueError\); pass --data-dir"):
            load_dataset("mnist")
        assert mirror.asked == ["/train-images-idx3-ubyte.gz"] * 2
    assert not list(cache.rglob("*ubyte.gz"))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "svhn", "cifar10"])
def test_without_network_one_line_says_what_to_do(tmp_path, name, capfd):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        load_dataset(name, data_dir=tmp_path / "empty")
    message = str(caught.value)
    assert "--data-dir" in message and "--dataset digits" in message and "\n" not in message
    assert (
        name in message
        and str(tmp_path / "empty") in message
        and str(tmp_path / "cache") in message
    )
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_a_data_directory_must_exist(tmp_path, name):
    with pytest.raises(DataError, match="nowhere is not a directory"):
        load_dataset(name, data_dir=tmp_path / "nowhere")


@pytest.fixture
def own():
    rng = np.random.default_rng(1)
    return {
        "x_train": rng.normal(5, 3, (40, 2, 3)),
        "y_train": np.arange(40) % 3,
        "x_test": rng.normal(5, 3, (10, 2, 3)),
        "y_test": np.arange(10) % 3,
    }


def save(tmp_path, arrays):
    np.savez(tmp_path / "own.npz", **arrays)
    return f"npz:{tmp_path / 'own.npz'}"


def test_own_data_are_standardised_by_the_pool(tmp_path, own):
    own["x_train"][:, 0, 0] = own["x_test"][:, 0, 0] = 0.1  # constant: centred only
    dataset = load_dataset(save(tmp_path, own))
    scaler = StandardScaler().fit(own["x_train"].reshape(40, 6))
    for x, name in ((dataset.x_pool_NF, "x_train"), (dataset.x_test_MF, "x_test")):
        expected = scaler.transform(own[name].reshape(-1, 6))
        np.testing.assert_allclose(x.numpy(), expected, atol=1e-6)
    assert dataset.x_pool_NF.dtype == torch.float32
    assert dataset.num_classes == 3 and dataset.y_test_M.tolist() == own["y_test"].tolist()


def test_the_digest_tells_data_apart(tmp_path, own):
    before = load_dataset(save(tmp_path, own)).digest
    assert load_dataset(save(tmp_path, own)).digest == before
    own["y_train"][[0, 1]] = own["y_train"][[1, 0]]
    assert load_dataset(save(tmp_path, own)).digest != before


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"y_test": None}, "but no y_test"),
        ({"x_train": np.ones((39, 6))}, "x_train has 39 rows but y_train has 40"),
        ({"x_test": np.ones((10, 7))}, r"shape \(2, 3\) but one of x_test \(7,\)"),
        ({"x_train": np.ones(40)}, r"x_train has shape \(40,\)"),
        ({"x_train": np.full((40, 6), "a")}, "x_train has dtype <U1; expected real numbers"),
        ({"x_train": np.ones((40, 6), complex)}, "x_train has dtype complex128"),
        ({"x_test": np.ones((0, 6)), "y_test": np.ones(0, int)}, r"x_test has shape \(0, 6\)"),
        ({"y_train": np.arange(40) % 3 + 1}, "y_train has labels 1 to 3 but no 0"),
        ({"y_train": np.arange(40) % 2 * 2}, "y_train has labels 0 to 2 but no 1"),
        ({"y_train": np.zeros(40, int)}, "y_train has class 0 only"),
        ({"y_train": np.arange(40) % 3 - 1}, "y_train has label -1"),
        ({"y_train": np.arange(40) / 2}, "y_train has dtype float64; expected integers"),
        ({"y_train": np.ones((40, 1), int)}, r"y_train has shape \(40, 1\)"),
        ({"y_test": np.full(10, 3)}, "y_test has class 3, which y_train has not; expected 0 to 2"),
    ],
)
def test_own_data_that_do_not_fit_are_refused(tmp_path, own, changes, expected):
    arrays = {k: v for k, v in (own | changes).items() if v is not None}
    with pytest.raises(DataError, match=expected) as caught:
        load_dataset(save(tmp_path, arrays))
    assert "own.npz" in str(caught.value) and "\n" not in str(caught.value)


def test_the_first_row_that_is_not_finite_is_named(tmp_path, own):
    own["x_train"][7, 1, 1] = np.nan
    own["x_train"][9, 0, 0] = np.inf
    with pytest.raises(DataError, match="x_train has NaN or inf in row 7"):
        load_dataset(save(tmp_path, own))


def test_the_order_of_bytes_changes_nothing(tmp_path, own):
    native = load_dataset(save(tmp_path, own))
    swapped = {k: x.astype(x.dtype.newbyteorder("S")) for k, x in own.items()}
    foreign = load_dataset(save(tmp_path, swapped))
    assert foreign.digest == native.digest
    for name in ("x_pool_NF", "y_pool_N", "x_test_MF", "y_test_M"):
        assert getattr(foreign, name).equal(getattr(native, name))


@pytest.mark.parametrize(("part", "value"), [("train", 1e300), ("test", -1e300), ("test", 1e39)])
def test_numbers_beyond_float32_are_refused(tmp_path, own, part, value):
    own[f"x_{part}"][3, 1, 1] = value
    expected = rf"x_{part} has {abs(value):.3g} in row 3, beyond float32 \(at most 3\.4e\+38\)"
    with pytest.raises(DataError, match=expected.replace("e+", r"e\+")):
        load_dataset(save(tmp_path, own))


def test_what_standardising_makes_too_large_is_refused(tmp_path, own):
    own["x_train"][:, 0, 0] *= 1e-20
    own["x_test"][5, 0, 0] = 1e30
    with pytest.raises(DataError, match=r"x_test has .*e\+\d+ in row 5, beyond float32"):
        load_dataset(save(tmp_path, own))


def test_numbers_too_small_to_have_squares_are_centred(tmp_path, own):
    own["x_train"][:, 0, 0] *= 1e-200
    own["x_test"][:, 0, 0] *= 1e-200
    dataset = load_dataset(save(tmp_path, own))
    assert not dataset.x_pool_NF[:, 0].any() and not dataset.x_test_MF[:, 0].any()


def test_a_table_s_number_beyond_float32_is_refused(tmp_path):
    lines = [f"{i},{'ab'[i % 2]}" for i in range(20)]
    (tmp_path / "t.csv").write_text("\n".join(["x,class", *lines, "-1e200,a", ",b"]))
    with pytest.raises(DataError, match=r"t\.csv has 1e\+200 in row 20, beyond float32"):
        load_dataset(f"csv:{tmp_path / 't.csv'}")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a file of the user's was executed",))


def test_files_are_data_never_code(tmp_path, own):
    own["x_train"] = np.array([Bomb()] * 40, dtype=object)
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        load_dataset(save(tmp_path, own))


@pytest.mark.parametrize("kind", ["missing", "text", "array", "cut", "empty"])
def test_what_is_no_npz_is_refused(tmp_path, own, kind):
    name = save(tmp_path, own)
    path = tmp_path / "own.npz"
    if kind == "missing":
        path.unlink()
    elif kind == "text":
        path.write_text("no numbers here")
    elif kind == "array":
        with path.open("wb") as file:
            np.save(file, np.ones(3))
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"own\.npz") as caught:
        load_dataset(name)
    assert "\n" not in str(caught.value)


def test_unknown_names():
    with pytest.raises(InputError, match="dataset is 'digit'; did you mean digits"):
        load_dataset("digit")
    assert all(name and "\n" not in summary for name, summary in dataset_names())


# --- CIFAR-10

PIXEL_MEANS = {"cifar10": (0.4914, 0.4822, 0.4465), "svhn": (0.4377, 0.4438, 0.4728)}
PIXEL_STDS = {"cifar10": (0.2470, 0.2435, 0.2616), "svhn": (0.1980, 0.2010, 0.1970)}
CIFAR_BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


@pytest.fixture
def small_cifar():
    """Six batches of 20 images: uint8 [20, 3072] and their labels."""
    rng = np.random.default_rng(2)
    return {
        name: (rng.integers(0, 256, (20, 3072), dtype=np.uint8), rng.permutation(20) % 10)
        for name in CIFAR_BATCHES
    }


def python2_pickle(x, labels, *, dtype=b"u1", function=b"numpy.core.multiarray\n_reconstruct"):
    """A batch as Python 2's cPickle wrote it: protocol 2, texts of bytes, an array by BUILD."""

    def text(value):
        return b"T" + struct.pack("<i", len(value)) + value

    def number(value):
        return b"J" + struct.pack("<i", value)

    array = (
        (b"c" + function + b"\ncnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"\x87R")
        + (b"(" + number(1) + number(x.shape[0]) + number(x.shape[1]) + b"\x86")
        + (b"cnumpy\ndtype\n" + text(dtype) + number(0) + number(1) + b"\x87R")
        + (b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb")
        + (b"\x89" + text(x.tobytes()) + b"tb")
    )
    listed = b"](" + b"".join(map(number, labels)) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + listed + b"u."


def cifar_files(batches, form):
    if form == "bin":
        return {
            f"{name}.bin": np.column_stack([y, x]).astype(np.uint8).tobytes()
            for name, (x, y) in batches.items()
        }
    return {name: python2_pickle(x, y.tolist()) for name, (x, y) in batches.items()}


def write_files(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def tar_gz(folder, files):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, file in [("readme.html", b"about"), *files.items()]:
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(file)
            tar.addfile(entry, io.BytesIO(file))
    return content.getvalue()


def assert_is_cifar(dataset, batches):
    assert dataset.shape == (3, 32, 32) and dataset.num_classes == 10
    pool = [batches[name] for name in CIFAR_BATCHES[:5]]
    assert dataset.y_pool_N.tolist() == np.concatenate([y for _, y in pool]).tolist()
    assert dataset.y_test_M.tolist() == batches["test_batch"][1].tolist()
    bytes_NF = np.concatenate([x for x, _ in pool]).astype(float)
    for c, (mean, std) in enumerate(
        zip(PIXEL_MEANS["cifar10"], PIXEL_STDS["cifar10"], strict=True)
    ):
        plane = slice(1024 * c, 1024 * (c + 1))  # red, green, blue, as the authors' page says
        expected = (bytes_NF[:, plane] / 255 - mean) / std
        np.testing.assert_allclose(dataset.x_pool_NF[:, plane].numpy(), expected, atol=1e-5)


def test_the_test_s_own_pickle_is_what_numpy_reads(small_cifar):
    x, y = small_cifar["test_batch"]
    found = pickle.loads(python2_pickle(x, y.tolist()), encoding="bytes")
    assert np.array_equal(found[b"data"], x) and found[b"labels"] == y.tolist()


@pytest.mark.parametrize("form", ["bin", "py"])
@pytest.mark.parametrize("where", ["unpacked", "subfolder", "itself", "archive"])
def test_cifar10_is_found_in_each_form_and_layout(tmp_path, small_cifar, form, where):
    files, folder = cifar_files(small_cifar, form), f"cifar-10-batches-{form}"
    if where == "archive":
        name = f"cifar-10-{'binary' if form == 'bin' else 'python'}.tar.gz"
        (tmp_path / name).write_bytes(tar_gz(folder, files))
    else:
        parts = {"unpacked": (folder,), "subfolder": ("cifar10", folder), "itself": ()}[where]
        write_files(tmp_path.joinpath(*parts), files)
    assert_is_cifar(load_dataset("cifar10", data_dir=tmp_path), small_cifar)


def test_a_batch_repickled_by_new_numpy_is_read_too(tmp_path, small_cifar):
    files = {
        name: pickle.dumps({b"data": x, b"labels": y.tolist()}, protocol=3)
        for name, (x, y) in small_cifar.items()
    }
    write_files(tmp_path / "cifar-10-batches-py", files)
    assert_is_cifar(load_dataset("cifar10", data_dir=tmp_path), small_cifar)


class Call:
    """A pickle of it calls os.mkdir when it is loaded without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_a_pickle_that_is_a_program_is_not_run(tmp_path, small_cifar):
    x, y = small_cifar["test_batch"]
    bombs = [
        pickle.dumps({b"data": Call(tmp_path / "ran"), b"labels": y.tolist()}, protocol=2),
        pickle.dumps({b"data": x, b"labels": Call(tmp_path / "ran")}, protocol=3),
        python2_pickle(x, y.tolist(), function=b"os\nsystem"),
        python2_pickle(x, y.tolist(), function=b"numpy\nload"),
        b"cbuiltins\neval\n(Vopen('ran', 'w')\ntR.",
    ]
    for bomb in bombs:
        write_files(tmp_path / "cifar-10-batches-py", cifar_files(small_cifar, "py"))
        (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(bomb)
        with pytest.raises(DataError, match="test_batch is no batch of CIFAR-10: it asks for"):
            load_dataset("cifar10", data_dir=tmp_path)
    assert not (tmp_path / "ran").exists() and not Path("ran").exists()


@pytest.mark.parametrize(
    ("form", "content", "expected"),
    [
        ("bin", b"", "has 0 bytes; expected 3073 for each"),
        ("bin", bytes(3072), "has 3072 bytes; expected 3073 for each"),
        ("bin", bytes([10]) + bytes(3072), "has labels 10 to 10; expected 0 to 9"),
        ("py", b"", "is no batch of CIFAR-10"),
        ("py", b"no pickle at all", "is no batch of CIFAR-10"),
        ("py", pickle.dumps({b"labels": [1]}, protocol=2), "is no batch of CIFAR-10"),
        ("py", pickle.dumps([1, 2], protocol=2), "is no batch of CIFAR-10"),
        ("py", pickle.dumps({b"data": b"xyz", b"labels": [1]}, protocol=2), "is no batch of"),
        ("py", python2_pickle(np.zeros((2, 3072), np.uint8), [1]), r"shape \(1, 3072\)"),
        ("py", python2_pickle(np.zeros((1, 3072), np.uint8), [11]), "has labels 11 to 11"),
        ("py", python2_pickle(np.zeros((1, 3072), np.uint8), [1], dtype=b"O8"), "no uint8 array"),
        ("py", python2_pickle(np.zeros((1, 3072), np.uint8), [1])[:-40], "is no batch of"),
    ],
)
def test_a_broken_batch_is_named(tmp_path, small_cifar, form, content, expected):
    folder = tmp_path / f"cifar-10-batches-{form}"
    files = cifar_files(small_cifar, form)
    last = list(files)[-1]
    write_files(folder, files | {last: content})
    with pytest.raises(DataError, match=rf"{last}.* {expected}") as caught:
        load_dataset("cifar10", data_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_an_incomplete_cifar10_names_what_is_missing(tmp_path, small_cifar):
    files = cifar_files(small_cifar, "bin")
    del files["data_batch_3.bin"]
    archive = tmp_path / "cifar-10-binary.tar.gz"
    archive.write_bytes(tar_gz("cifar-10-batches-bin", files))
    with pytest.raises(DataError, match=r"has no cifar-10-batches-bin/data_batch_3\.bin"):
        load_dataset("cifar10", data_dir=tmp_path)
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"binary\.tar\.gz cannot be read"):
        load_dataset("cifar10", data_dir=tmp_path)
    write_files(tmp_path / "cifar-10-batches-bin", files)
    with pytest.raises(DataError, match=r"has no data_batch_3\.bin but other files"):
        load_dataset("cifar10", data_dir=tmp_path)


@POOCH_LEAVES_REFUSED_RESPONSES_OPEN
def test_cifar10_and_svhn_are_fetched_once(cache, monkeypatch, small_cifar, small_svhn):
    archive = tar_gz("cifar-10-batches-bin", cifar_files(small_cifar, "bin"))
    files = {"cifar-10-binary.tar.gz": archive} | small_svhn[1]
    md5s = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    with Mirror(files) as mirror:
        for module in (cifar10, svhn):
            monkeypatch.setattr(module, "MIRRORS", (mirror.url,))
            monkeypatch.setattr(module, "MD5S", {name: md5s[name] for name in module.MD5S})
        for _ in range(2):
            assert_is_cifar(load_dataset("cifar10"), small_cifar)
            assert load_dataset("svhn").num_classes == 10
        assert sorted(mirror.asked) == sorted(f"/{name}" for name in files)
    assert {path.name for path in cache.rglob("*.*")} == set(files)


# --- SVHN


@pytest.fixture
def small_svhn():
    """(X [32, 32, 3, N], y) of both parts, and the two files as MATLAB 5 writes them."""
    rng = np.random.default_rng(3)
    parts, files = [], {}
    for name, n in (("train_32x32.mat", 30), ("test_32x32.mat", 20)):
        x = rng.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        y = (np.arange(n, dtype=np.uint8) % 10 + 1)[:, None]
        content = io.BytesIO()
        savemat(content, {"X": x, "y": y}, do_compression=True)
        parts.append((x, y))
        files[name] = content.getvalue()
    return parts, files


@pytest.mark.parametrize("folder", [".", "SVHN"])
def test_svhn_is_found_and_its_tens_are_zeros(tmp_path, small_svhn, folder):
    parts, files = small_svhn
    write_files(tmp_path / folder, files)
    dataset = load_dataset("svhn", data_dir=tmp_path)
    assert dataset.shape == (3, 32, 32)
    for x_NF, y_N, (x, y) in zip(
        (dataset.x_pool_NF, dataset.x_test_MF),
        (dataset.y_pool_N, dataset.y_test_M),
        parts,
        strict=True,
    ):
        assert y_N.tolist() == [0 if label == 10 else label for label in y.ravel()]
        for c, row, column, n in ((0, 0, 0, 0), (1, 3, 30, 7), (2, 31, 4, 19)):
            expected = (x[row, column, c, n] / 255 - PIXEL_MEANS["svhn"][c]) / PIXEL_STDS["svhn"][c]
            got = x_NF.reshape(-1, 3, 32, 32)[n, c, row, column]
            assert float(got) == pytest.approx(expected, abs=1e-5)


def test_broken_svhn_files_are_named(tmp_path, small_svhn):
    files = small_svhn[1]
    path = tmp_path / "train_32x32.mat"

    def refused(content, expected):
        write_files(tmp_path, files | {path.name: content})
        with pytest.raises(DataError, match=rf"train_32x32\.mat {expected}") as caught:
            load_dataset("svhn", data_dir=tmp_path)
        assert "\n" not in str(caught.value)

    def mat(**arrays):
        content = io.BytesIO()
        savemat(content, arrays)
        return content.getvalue()

    x, y = small_svhn[0][0]
    refused(b"", "cannot be read as SVHN")
    refused(b"no matrix" * 100, "cannot be read as SVHN")
    refused(files[path.name][:-500], "cannot be read as SVHN")
    refused(mat(X=x), "cannot be read as SVHN")
    refused(mat(X=x, y=y[1:]), r"has X uint8 \(32, 32, 3, 30\) and y uint8 \(29,\)")
    refused(mat(X=x / 255, y=y), "has X float64")
    refused(mat(X=x, y=y - 1), "has labels 0 to 9; expected 1 to 10")
    write_files(tmp_path, files)
    path.unlink()
    with pytest.raises(DataError, match=r"has no train_32x32\.mat but the other file of svhn"):
        load_dataset("svhn", data_dir=tmp_path)


# --- tables


def write_csv(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return f"csv:{path}"


@pytest.fixture
def mixed(tmp_path):
    """A table with numbers, texts, missing ones of both, and the class in the middle."""
    rng = np.random.default_rng(4)
    rows = [
        [f"{rng.normal():.3f}", "red" if i % 3 else "blue", "cat" if i % 4 else "dog", str(i), "7"]
        for i in range(60)
    ]
    rows[5][0], rows[6][0], rows[7][1], rows[8][1] = "", "NA", "?", ""
    return tmp_path / "a:b.csv", ["size", "colour", "animal", "number", "constant"], rows


def test_columns_are_encoded_by_what_they_hold(mixed):
    path, header, rows = mixed
    name = write_csv(path, header, rows) + ":target=animal"
    dataset = load_dataset(name, split_seed=3)
    assert is_resplit(name)
    assert dataset.x_pool_NF.shape == (48, 6) and dataset.x_test_MF.shape == (12, 6)
    assert dataset.shape == (6,) and dataset.num_classes == 2
    assert dataset.classes == ("cat", "dog")
    # Which row is which tells the column of numbers, rescaled.
    x = torch.cat([dataset.x_pool_NF, dataset.x_test_MF]).double().numpy()
    y = torch.cat([dataset.y_pool_N, dataset.y_test_M]).numpy()
    order = x[:, 4].argsort().argsort()
    assert sorted(order) == list(range(60))
    pool = order[:48]
    sizes = np.array([float(r[0]) if r[0] not in ("", "NA") else np.nan for r in rows])
    expected_size = (sizes[order] - np.nanmean(sizes[pool])) / np.nanstd(sizes[pool])
    np.testing.assert_allclose(x[:, 0], np.nan_to_num(expected_size), atol=1e-6)
    assert (x[np.isin(order, [5, 6]), 0] == 0).all()
    colours = np.array([[r[1].replace("?", "")] for r in rows])[order]
    assert np.array_equal(x[:, 1:4], OneHotEncoder().fit_transform(colours).toarray())
    assert np.array_equal(y, [int(rows[i][2] == "dog") for i in order])
    assert (x[:, 5] == 0).all()  # a constant
    assert np.bincount(dataset.y_test_M).tolist() == [9, 3]  # 45 cats and 15 dogs


def test_a_table_is_divided_anew_by_each_seed(mixed):
    name = write_csv(*mixed) + ":target=animal"
    first, again, other = (load_dataset(name, split_seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.x_pool_NF, again.x_pool_NF) and first.digest == again.digest
    assert first.digest != other.digest


def test_the_last_column_is_the_class_unless_one_is_named(tmp_path):
    name = write_csv(tmp_path / "t.csv", ["a", "b"], [[i, i % 2] for i in range(20)])
    dataset = load_dataset(name)
    assert dataset.num_classes == 2 and dataset.x_pool_NF.shape == (16, 1)
    rows = [["x", i % 3, i % 2] for i in range(21)]
    name = write_csv(tmp_path / "u.csv", ["a", "c:d", "e"], rows)
    assert load_dataset(f"{name}:target=c:d").num_classes == 3


NEARLY = "a,b\n" + "".join(f"{'{}' if i == 12 else i},{i % 2}\n" for i in range(40))


def test_what_numbers_may_be_beside_numbers(tmp_path):
    # Columns called by their numbers, as pandas writes those without names; years.
    for header in (["0", "1", "class"], ["2019", "2020", "class"]):
        rows = [[i, i * i, "pq"[i % 2]] for i in range(20)]
        assert load_dataset(write_csv(tmp_path / "t.csv", header, rows)).shape == (2,)
    # A few codes, one of which is no number, are categories.
    rows = [["3+" if i == 7 else i % 3, "pq"[i % 2]] for i in range(40)]
    assert load_dataset(write_csv(tmp_path / "t.csv", ["a", "b"], rows)).shape == (4,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "is not a file"),
        ("", "has 0 rows"),
        ("a,b\n", "has 1 rows"),
        ("a\n1\n2\n", "has one column"),
        ("a;b\n1;2\n", "has one column"),
        ("1,2\n3,4\n3,4\n", "begins with 1, 2, numbers only; expected a header"),
        ("T,2,8,2\nI,5,1,8\nT,3,2,4\n", "begins with T, 2, 8, 2, where 2 stands above numbers"),
        ("5.1,3.5,setosa\n4.9,3,virginica\n", "begins with 5.1, 3.5, setosa, where 5.1 stands"),
        (NEARLY.format("1O"), "line 14: column 'a' has '1O' among numbers; correct it"),
        (NEARLY.format("inf"), "line 14: column 'a' has 'inf' among numbers"),
        ("a,b\n1,x\n2\n", "line 3 has 1 cells; expected 2"),
        ("a,b\n\n1,x\n\n1,x,2\n", "line 5 has 3 cells; expected 2"),
        ("a,b\n1,x\n2,\n", "line 3: no class in column 'b'"),
        ("a,b\n1,x\n2,y\n3,x\n", "column 'b': class 'y' has one row"),
        (
            "a,b\n1,x\n2,x\n3,x\n4,x\n5,x\n",
            "column 'b': every row has class 'x'; expected at least two",
        ),
        ("a,b\n1,x\n2,x\n3,y\n4,y\n", "4 examples of 2 classes cannot be divided"),
        ('a,b\n"1,x\n2,x\n', "cannot be read as CSV"),
        ("a,b\n1,\udcff\n", "cannot be read as CSV"),
        ("a,b\n" + "".join(f"n{i},{i % 2}\n" for i in range(1001)), "'a' has 1001 different texts"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_in_one_line(tmp_path, text, expected):
    path = tmp_path / "t.csv"
    if text is not None:
        path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=expected) as caught:
        load_dataset(f"csv:{path}")
    assert "t.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_column_of_classes_is_refused_with_the_nearest(mixed):
    name = write_csv(*mixed)
    with pytest.raises(DataError, match="0 columns named 'colur'; did you mean colour"):
        load_dataset(f"{name}:target=colur")
    with pytest.raises(DataError, match="expected one of size, colour, animal"):
        load_dataset(f"{name}:target=")


def test_letter(letter_csv):
    dataset = load_dataset(f"csv:{letter_csv}")
    assert dataset.x_pool_NF.shape == (16_000, 16) and dataset.num_classes == 26
    everything = np.loadtxt(letter_csv, delimiter=",", skiprows=1, usecols=range(16))
    x = torch.cat([dataset.x_pool_NF, dataset.x_test_MF]).double().numpy()
    scaled = StandardScaler().fit_transform(everything)
    # A fifth left out moves mean and deviation by little.
    np.testing.assert_allclose(np.sort(x, axis=0), np.sort(scaled, axis=0), atol=0.1)
    assert (dataset.x_pool_NF.mean(dim=0).abs() < 1e-5).all()
    assert ((dataset.x_pool_NF.std(dim=0) - 1).abs() < 1e-3).all()


# --- OpenML

ARFF = """@relation tiny
@attribute 'length' numeric
@attribute 'colour' {red, green, blue}
@attribute 'id' numeric
@attribute 'class' {yes, no}
@data
"""


@pytest.fixture
def openml_cache(cache, monkeypatch):
    """Answers of OpenML as scikit-learn keeps them; the network is one that nobody answers."""
    read_openml.cache_clear()

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("sklearn.datasets._openml.urlopen", refuse)
    monkeypatch.setattr("time.sleep", lambda _: None)
    rows = [
        f"{i / 2 if i != 3 else '?'},{'?' if i == 4 else ('red', 'blue')[i % 2]},{i},"
        f"{'yes' if i % 4 else 'no'}"
        for i in range(40)
    ]

    def keep(number, rows, kinds=("numeric", "nominal", "numeric", "nominal")):
        arff = (ARFF + "\n".join(rows) + "\n").encode()
        columns = zip(("length", "colour", "id", "class"), kinds, strict=True)
        features = [
            {
                "index": str(i),
                "name": name,
                "data_type": kind,
                "number_of_missing_values": "0",
                "is_target": str(name == "class").lower(),
                "is_ignore": "false",
                "is_row_identifier": str(name == "id").lower(),
            }
            for i, (name, kind) in enumerate(columns)
        ]
        description = {
            "id": str(number),
            "name": "tiny",
            "version": "1",
            "status": "active",
            "format": "ARFF",
            "description": "made by a test",
            "url": f"https://www.openml.org/data/v1/download/{number}/tiny.arff",
            "md5_checksum": hashlib.md5(arff).hexdigest(),
        }
        quality = [{"name": "NumberOfInstances", "value": str(len(rows))}]
        answers = {
            f"api/v1/json/data/{number}": {"data_set_description": description},
            f"api/v1/json/data/features/{number}": {"data_features": {"feature": features}},
            f"api/v1/json/data/qualities/{number}": {"data_qualities": {"quality": quality}},
        }
        files = {path: json.dumps(answer).encode() for path, answer in answers.items()}
        files[f"data/v1/download/{number}/tiny.arff"] = arff
        for path, content in files.items():
            file = cache / "openml" / "openml" / "openml.org" / f"{path}.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(gzip.compress(content))

    keep(7, rows)
    yield keep
    read_openml.cache_clear()


def test_an_openml_table_is_read_from_the_cache(openml_cache):
    dataset = load_dataset("openml:7")
    assert is_resplit("openml:7")
    # length, then blue, red and missing as numbers of the attribute; id and green do not appear.
    assert dataset.x_pool_NF.shape == (36, 4) and dataset.x_test_MF.shape == (4, 4)
    assert dataset.num_classes == 2 and int(dataset.y_pool_N.sum()) == 27
    colours = dataset.x_pool_NF[:, 1:]
    assert set(colours.unique().tolist()) == {0.0, 1.0} and (colours.sum(dim=1) == 1).all()
    known = dataset.x_pool_NF[:, 0][dataset.x_pool_NF[:, 0] != 0]
    assert float(known.mean()) == pytest.approx(0, abs=1e-6)
    assert load_dataset("openml:7", split_seed=1).digest != dataset.digest


def test_what_openml_cannot_give_is_said_in_one_line(openml_cache):
    with pytest.raises(
        DataError, match=r"not in the cache .* pass its table as --dataset csv:PATH"
    ):
        load_dataset("openml:8")
    with pytest.raises(InputError, match="'openml:six'; expected a number"):
        load_dataset("openml:six")
    openml_cache(9, ["1,red,1,yes"] * 10, kinds=("string", "nominal", "numeric", "nominal"))
    with pytest.raises(DataError, match="openml:9 cannot be used: STRING attributes") as caught:
        load_dataset("openml:9")
    assert "\n" not in str(caught.value)
    openml_cache(10, ["1,red,1,yes"] * 10 + ["2,red,2,no"])
    with pytest.raises(DataError, match="openml:10: class 'no' has one row"):
        load_dataset("openml:10")


# --- images in folders


def write_images(folder, counts, *, size=(40, 30), suffix=".png"):
    rng = np.random.default_rng(5)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}{suffix}")


def test_folders_of_images_that_are_not_divided(tmp_path):
    write_images(tmp_path, {"cat": 20, "dog": 10})
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    name = f"imagefolder:{tmp_path}"
    dataset = load_dataset(name)
    assert is_resplit(name)
    assert dataset.shape == (3, 32, 32) and dataset.x_pool_NF.shape == (24, 3072)
    assert np.bincount(dataset.y_test_M).tolist() == [4, 2]
    channel_N3X = dataset.x_pool_NF.reshape(24, 3, 1024)
    assert (channel_N3X.mean(dim=(0, 2)).abs() < 1e-5).all()
    assert ((channel_N3X.std(dim=(0, 2)) - 1).abs() < 1e-4).all()
    assert load_dataset(f"{name}:size=8").shape == (3, 8, 8)


def test_folders_of_images_that_are_divided(tmp_path):
    write_images(tmp_path / "train", {"cat": 6, "dog": 6, "eel": 6}, size=(8, 8), suffix=".BMP")
    write_images(tmp_path / "test", {"eel": 2, "cat": 3}, size=(8, 8))
    name = f"imagefolder:{tmp_path}:size=8"
    dataset = load_dataset(name)
    assert not is_resplit(name)
    assert dataset.y_pool_N.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert dataset.y_test_M.tolist() == [0] * 3 + [2] * 2
    assert dataset.classes == ("cat", "dog", "eel")
    read = [
        np.asarray(Image.open(path)).transpose(2, 0, 1).reshape(-1).astype(float)
        for path in sorted((tmp_path / "train").rglob("*.BMP"))
    ]
    scaled = np.stack(read).reshape(18, 3, 64)
    scaled -= scaled.mean(axis=(0, 2), keepdims=True)
    scaled /= scaled.std(axis=(0, 2), keepdims=True)
    np.testing.assert_allclose(dataset.x_pool_NF.numpy(), scaled.reshape(18, -1), atol=1e-5)


def test_images_of_other_modes_and_a_camera_s_turn(tmp_path):
    write_images(tmp_path, {"a": 5, "b": 5}, size=(4, 4))
    for i, mode in enumerate(("L", "1", "P", "RGBA", "LA")):
        path = tmp_path / "a" / f"{i}.png"
        Image.open(path).convert(mode).save(path)
    turned = Image.new("RGB", (4, 4))
    turned.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned.save(tmp_path / "a" / "0.png", exif=exif)
    x, y, names = read_images(tmp_path, 4)
    assert x.shape == (10, 3, 4, 4) and names == ["a", "b"] and y.tolist() == [0] * 5 + [1] * 5
    assert x[0].sum() == 3 * 255 and x[0, 0, 3, 3] == 255


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_grey_of_16_bits_is_scaled_to_8(tmp_path, suffix):
    grey = np.array([[0, 255, 256], [32_768, 65_280, 65_535]], dtype=np.uint16).repeat(4, axis=1)
    (tmp_path / "a").mkdir()
    Image.fromarray(grey.repeat(6, axis=0)).save(tmp_path / "a" / f"x.{suffix}")
    x, _, _ = read_images(tmp_path, 12)
    # Bytes: 0, 0, 1 above and 128, 255, 255 below, in colour.
    assert x[0, :, 0, 1].tolist() == [0] * 3 and x[0, :, 0, 11].tolist() == [1] * 3
    assert x[0, :, 11, 1].tolist() == [128] * 3 and x[0, :, 11, 11].tolist() == [255] * 3


def test_pixels_of_unknown_range_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "a" / "x.tif")
    with pytest.raises(DataError, match=r"a/x\.tif has pixels of 32 bits, whose range nobody"):
        read_images(tmp_path, 4)


def test_images_that_cannot_be_read_are_named(tmp_path):
    write_images(tmp_path, {"cat": 5, "dog": 5})
    name = f"imagefolder:{tmp_path}"

    def refused(expected, name=name):
        with pytest.raises(FastbadgeError, match=expected) as caught:
            load_dataset(name)
        assert "\n" not in str(caught.value)

    refused("size is '0'", f"{name}:size=0")
    refused("size is 'big'", f"{name}:size=big")
    refused("nowhere is not a directory", f"imagefolder:{tmp_path / 'nowhere'}")
    refused("has no folders; expected one for each class", f"imagefolder:{tmp_path / 'cat'}")
    write_images(tmp_path / "lone", {"owl": 4})
    refused("lone has one class, owl; expected a folder", f"imagefolder:{tmp_path / 'lone'}")
    shutil.rmtree(tmp_path / "lone")
    (tmp_path / "dog" / "x.png").symlink_to(tmp_path / "gone.png")
    refused(r"dog/x\.png is a link that leads nowhere")
    (tmp_path / "dog" / "x.png").unlink()
    (tmp_path / "dog" / "x.png").write_bytes((tmp_path / "dog" / "0.png").read_bytes()[:-3000])
    refused(r"dog/x\.png cannot be read as an image")
    (tmp_path / "dog" / "x.png").write_bytes(b"no image")
    refused(r"dog/x\.png cannot be read as an image")
    (tmp_path / "dog" / "x.png").unlink()
    (tmp_path / "eel").mkdir()
    refused("eel has no image")
    write_images(tmp_path / "train", {"cat": 3, "dog": 3})
    write_images(tmp_path / "test", {"cat": 3, "fox": 3})
    refused("test/fox is a class that the training images lack; expected cat, dog")
