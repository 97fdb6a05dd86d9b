import gc
import gzip
import hashlib
import http.server
import struct
import threading
from dataclasses import replace

import numpy as np
import pooch
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler

from fastbadge.errors import DataError, InputError
from fastbadge.lab import mnist
from fastbadge.lab.datasets import dataset_names, load_dataset
from fastbadge.lab.idx import read_idx

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
        (gzip.compress(bytes(1000))[:-9], "cannot be read"),
        (gzip.compress(bytes(1000))[:-8] + bytes(8), "cannot be read"),
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


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_without_network_one_line_says_what_to_do(tmp_path, name, capfd):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        load_dataset(name, data_dir=tmp_path / "empty")
    message = str(caught.value)
    assert "--data-dir" in message and "--dataset digits" in message and "\n" not in message
    assert str(tmp_path / "empty") in message and str(tmp_path / "cache") in message
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
