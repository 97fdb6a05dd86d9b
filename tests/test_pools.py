"""Pools on disk and over mapped arrays: the same picks as in memory, and never half a pool."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fastbadge as fb
from fastbadge.kmeanspp import kmeans_pp
from fastbadge.pools import ArrayPool, DiskPool, SubsetPool, arrays, scaled, write_pool

N, C, D = 400, 5, 7
ROUNDED = {
    "float64": lambda x: x,
    "float32": lambda x: x.float(),
    "float16": lambda x: torch.from_numpy(x.numpy().astype(np.float16).astype(np.float32)),
    # By hand: bfloat16 is the upper half of a float32, rounded to nearest, ties to even.
    "bfloat16": lambda x: torch.from_numpy(
        (lambda bits: ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32))(
            x.float().numpy().view(np.uint32)
        )
    ),
}


def gradients(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logit_NC = 3 * torch.randn(N, C, generator=generator, dtype=dtype)
    feature_ND = torch.randn(N, D, generator=generator, dtype=dtype)
    return fb.GradientEmbedding.from_logits(logit_NC, feature_ND)


def written(path, emb, dtype=None, batch=64):
    with write_pool(path, len(emb), dtype=dtype) as append:
        for start in range(0, len(emb), batch):
            append(*emb.factors(slice(start, start + batch)))
    return DiskPool.open(path)


def names(path):
    return sorted(p.name for p in Path(path).iterdir())


@pytest.fixture(params=["torch", "numba"])
def arithmetic(request, monkeypatch):
    entries = 0 if request.param == "numba" else 10**18
    monkeypatch.setattr(scaled, "_ENTRIES_WORTH_COMPILING", entries)


def test_ctrl_c_waits_until_the_arithmetic_is_loaded(monkeypatch):
    class Pressing:
        """Presses Ctrl-C when the module is looked for; finds nothing."""

        def find_spec(self, name, path=None, target=None):
            if name == "fastbadge.screen_numba":
                signal.raise_signal(signal.SIGINT)

    monkeypatch.delitem(sys.modules, "fastbadge.screen_numba", raising=False)
    monkeypatch.delattr(fb, "screen_numba", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Pressing(), *sys.meta_path])
    monkeypatch.setattr(scaled, "_ENTRIES_WORTH_COMPILING", 0)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            kmeans_pp(gradients(), 5, seed=0)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert callable(sys.modules["fastbadge.screen_numba"].accept)
    assert len(kmeans_pp(gradients(), 5, seed=0)) == 5


# --- what is on the disk


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("batch", [1, 64, N])
def test_the_files_hold_the_rounded_factors(tmp_path, dtype, batch):
    emb = gradients(torch.float64)
    pool = written(tmp_path / "pool", emb, dtype, batch)
    assert names(tmp_path / "pool") == ["error.npy", "feature.npy", "pool.json"]
    assert (len(pool), pool.num_classes, pool.num_features) == (N, C, D)
    assert (pool.task, pool.include_bias, pool.device.type) == ("multiclass", False, "cpu")
    expected = [ROUNDED[dtype](emb.error_NC), ROUNDED[dtype](emb.feature_ND)]
    row_N = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    for index in (slice(0, N), slice(3, 5), torch.tensor([7, 0, 7]), row_N):
        for found, whole in zip(pool.factors(index), expected, strict=True):
            assert found.dtype == (torch.float64 if dtype == "float64" else torch.float32)
            assert torch.equal(found, whole[index])
    # Plain .npy files, which anyone can read.
    plain = np.load(tmp_path / "pool" / "error.npy")
    assert plain.dtype == ("uint16" if dtype == "bfloat16" else dtype)
    assert plain.shape == (N, C)


def test_what_is_read_may_be_written_to(tmp_path):
    pool = written(tmp_path / "pool", gradients())
    before = (tmp_path / "pool" / "error.npy").read_bytes()
    pool.factors(slice(0, 9))[0].zero_()
    assert (tmp_path / "pool" / "error.npy").read_bytes() == before


@pytest.mark.parametrize("tile", [1, 1000, 10**9])
@pytest.mark.parametrize("dtype", ROUNDED)
def test_same_seed_same_picks_in_memory_and_on_disk(tmp_path, monkeypatch, arithmetic, dtype, tile):
    emb = gradients(torch.float64)
    pool = written(tmp_path / "pool", emb, dtype)
    rounded = fb.GradientEmbedding(ROUNDED[dtype](emb.error_NC), ROUNDED[dtype](emb.feature_ND))
    expected = kmeans_pp(rounded, 100, seed=5)
    monkeypatch.setattr(scaled, "_TILE_FACTORS", tile)
    monkeypatch.setattr(scaled, "_TILE_PRODUCTS", tile)
    assert torch.equal(kmeans_pp(pool, 100, seed=5), expected)


def test_a_subset_is_the_rows_it_names(tmp_path):
    emb = gradients()
    row_M = torch.randperm(N, generator=torch.Generator().manual_seed(2))[:150]
    subset = SubsetPool(written(tmp_path / "pool", emb), row_M)
    copied = fb.GradientEmbedding(emb.error_NC[row_M], emb.feature_ND[row_M])
    assert torch.equal(kmeans_pp(subset, 60, seed=1), kmeans_pp(copied, 60, seed=1))
    assert (len(subset), subset.num_classes, subset.num_features) == (150, C, D)


def test_a_nan_in_a_file_is_named(tmp_path):
    pool = written(tmp_path / "pool", gradients())
    np.load(tmp_path / "pool" / "feature.npy", mmap_mode="r+")[33, 2] = np.nan
    with pytest.raises(fb.InputError, match=r"row 33 of the pool has a NaN.*\(1 such rows of 400"):
        kmeans_pp(pool, 5)


# --- writing


def test_a_finished_pool_is_never_overwritten(tmp_path):
    written(tmp_path, gradients())
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    with pytest.raises(fb.InputError, match="holds a finished pool; remove it or pass another"):
        written(tmp_path, gradients(seed=1))
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


@pytest.mark.parametrize("name", ["error.npy", "feature.npy"])
def test_files_of_other_people_are_left_alone(tmp_path, name):
    (tmp_path / name).write_text("mine")
    (tmp_path / "notes.txt").write_text("mine too")
    with pytest.raises(fb.InputError, match=f"{name} is there and was not written by fastbadge"):
        written(tmp_path, gradients())
    assert names(tmp_path) == sorted([name, "notes.txt"])
    assert (tmp_path / name).read_text() == "mine"
    (tmp_path / name).unlink()
    written(tmp_path, gradients())
    assert "notes.txt" in names(tmp_path)


KILLED = """
import sys, torch
from fastbadge.pools import write_pool
with write_pool(sys.argv[1], 1000) as append:
    append(torch.ones(400, 3), torch.ones(400, 2))
    print("half", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def killed(tmp_path):
    """A directory in which a process was killed while it wrote a pool."""
    path = tmp_path / "killed"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    return path


def test_a_half_written_pool_is_refused_and_may_be_written_again(killed):
    assert names(killed) == ["error.npy.partial", "feature.npy.partial", "pool.json.partial"]
    with pytest.raises(fb.DataError, match="half-written pool, its writer was stopped; write it"):
        DiskPool.open(killed)
    emb = gradients()
    pool = written(killed, emb)
    assert torch.equal(pool.factors(slice(0, N))[1], emb.feature_ND)
    assert names(killed) == ["error.npy", "feature.npy", "pool.json"]


@pytest.mark.parametrize("renamed", [["error.npy"], ["error.npy", "feature.npy"]])
def test_killed_between_the_renames(killed, renamed):
    for name in renamed:
        (killed / f"{name}.partial").rename(killed / name)
    with pytest.raises(fb.DataError, match="half-written"):
        DiskPool.open(killed)
    assert len(written(killed, gradients())) == N
    assert names(killed) == ["error.npy", "feature.npy", "pool.json"]


def test_of_two_writers_the_later_wins_and_the_earlier_is_told(tmp_path):
    earlier, later = write_pool(tmp_path, N), write_pool(tmp_path, N)
    append = earlier.__enter__()
    append(*gradients(seed=0).factors(slice(0, N)))
    with later as append:
        append(*gradients(seed=1).factors(slice(0, N)))
        with pytest.raises(fb.InputError, match="another process has begun to write"):
            earlier.__exit__(None, None, None)
    found = DiskPool.open(tmp_path).factors(slice(0, N))
    assert torch.equal(found[1], gradients(seed=1).feature_ND)


@pytest.mark.parametrize("rows", [399, 401])
def test_another_number_of_rows_than_said(tmp_path, rows):
    with (
        pytest.raises(fb.InputError, match=f"got {rows} rows; expected 400"),
        write_pool(tmp_path / "pool", N) as append,
    ):
        append(torch.ones(rows, C), torch.ones(rows, D))
    assert names(tmp_path) == []


def test_factors_that_do_not_fit(tmp_path):
    with (
        pytest.raises(fb.InputError, match=r"shapes \(2, 5\) and \(3, 7\); expected \(2, 5\) and"),
        write_pool(tmp_path / "pool", N) as append,
    ):
        append(torch.ones(2, C), torch.ones(3, D))
    with (
        pytest.raises(fb.InputError, match="got int64 factors; expected float32 or"),
        write_pool(tmp_path / "pool", N) as append,
    ):
        append(torch.ones(2, C).long(), torch.ones(2, D).long())
    with pytest.raises(fb.InputError, match="dtype is 'int8'; expected one of float32"):
        written(tmp_path / "pool", gradients(), "int8")
    with pytest.raises(fb.InputError, match="num_rows is 0"), write_pool(tmp_path / "pool", 0):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (1e5, "float16", r"row 301 has an entry of size 1e\+05 in its feature.*dtype='bfloat16'"),
        (1e39, "float32", r"row 301 .* not finite in float32; expected finite entries$"),
        (np.inf, "bfloat16", "row 301 has an entry of size inf"),
        (np.nan, "float64", "row 301 has an entry of size nan"),
    ],
)
def test_an_entry_that_the_dtype_cannot_hold(tmp_path, value, dtype, message):
    feature_ND = torch.ones(N, D, dtype=torch.float64)
    feature_ND[301, 3] = value
    with (
        pytest.raises(fb.InputError, match=message),
        write_pool(tmp_path / "pool", N, dtype=dtype) as append,
    ):
        for start in (0, 200):
            append(torch.ones(200, C), feature_ND[start : start + 200])
    assert names(tmp_path) == []


def test_a_disk_that_is_too_small_is_known_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(0, 0, 10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(fb.InputError, match=r"has 0 MB free but the pool takes 0 MB; pass"):
        written(tmp_path / "pool", gradients())
    assert names(tmp_path) == []
    written(tmp_path / "pool", gradients(), "float16")  # 9,600 bytes


@pytest.mark.parametrize("limit", [100, 3_000, 9_000])
def test_a_disk_that_is_full_in_the_middle(tmp_path, limit):
    # The system's own limit on the size of a file: write() stops short, then fails, as on a full
    # disk. Python ignores the signal that comes with it.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(fb.InputError, match="pool cannot be written: File too large; pass"):
            written(tmp_path / "pool", gradients())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == []
    written(tmp_path / "pool", gradients())


@pytest.mark.parametrize("failing", ["error.npy", "feature.npy", "pool.json"])
def test_a_disk_that_fails_at_the_end(tmp_path, monkeypatch, failing):
    replace = Path.replace

    def fail(path, target):
        if target.name == failing:
            raise OSError(5, "Input/output error")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(fb.InputError, match="cannot be written: Input/output error"):
        written(tmp_path / "pool", gradients())
    assert names(tmp_path) == []


def test_a_place_where_no_pool_can_be(tmp_path):
    (tmp_path / "file").touch()
    for path, reason in (("file", "File exists"), ("no/pool", "No such file or directory")):
        with pytest.raises(fb.InputError, match=f"{path} cannot be written: {reason}"):
            written(tmp_path / path, gradients())


# --- opening


def shorten(path):
    os.truncate(path / "feature.npy", 5000)


def lengthen(path):
    os.truncate(path / "error.npy", 50_000)


def exchange(path):
    shape = (N * D // C, C)  # as many bytes
    np.save(path / "feature.npy", np.zeros(shape, np.float32))


def retype(path):
    np.save(path / "error.npy", np.zeros((N, C), np.int32))


def pickle(path):
    size = (path / "error.npy").stat().st_size
    np.save(path / "error.npy", np.array([None], dtype=object))
    os.truncate(path / "error.npy", size)


def remove(path):
    (path / "error.npy").unlink()


def garble(path):
    (path / "pool.json").write_text("{")


def replace_index(path):
    (path / "pool.json").write_text('{"name": "swimming"}')


def age(path):
    index = json.loads((path / "pool.json").read_text())
    (path / "pool.json").write_text(json.dumps(index | {"version": 2}))


def empty(path):
    for name in names(path):
        (path / name).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shorten, "feature.npy has 5000 bytes, expected 11328; it was cut short or exchanged"),
        (lengthen, "error.npy has 50000 bytes, expected 8128; it was cut short or exchanged"),
        (exchange, r"feature.npy holds float32 \(560, 5\), expected float32 \(400, 7\)"),
        (retype, r"error.npy holds int32 \(400, 5\), expected float32"),
        (pickle, "error.npy cannot be read"),
        (remove, "error.npy cannot be read .*No such file"),
        (garble, "pool.json cannot be read"),
        (replace_index, "pool.json cannot be read"),
        (age, "pool.json is of version 2 .* reads version 1 .*write the pool again"),
        (empty, r"holds no pool \(no pool.json\); check the path"),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    written(tmp_path, gradients())
    damage(tmp_path)
    with pytest.raises(fb.DataError, match=message):
        DiskPool.open(tmp_path)


# --- from a model


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


X = torch.randn(300, 4, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("precision", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"include_bias": True}, {"task": "multilabel"}])
@pytest.mark.parametrize("batch_size", [7, 128])
def test_a_forward_pass_to_disk_gives_the_bits_of_one_to_memory(
    tmp_path, model, precision, options, batch_size
):
    model = nn.Sequential(*model).to(precision)
    options = options | {"batch_size": batch_size}
    expected = fb.compute_gradient_embedding(model, X.to(precision), **options)
    pool = fb.compute_gradient_embedding(model, X.to(precision), out=tmp_path / "p", **options)
    model.float()
    assert (pool.task, pool.include_bias) == (
        options.get("task", "multiclass"),
        options.get("include_bias", False),
    )
    for found, kept in zip(
        pool.factors(slice(0, 300)), expected.factors(slice(0, 300)), strict=True
    ):
        assert found.dtype == kept.dtype
        assert torch.equal(found, kept)
    assert repr(fb.DiskPool.open(tmp_path / "p")) == repr(pool)


def test_an_example_that_breaks_the_model_leaves_no_pool_and_the_model_as_it_was(tmp_path, model):
    x = X.clone()
    x[250] = np.nan
    model.train()
    with pytest.raises(fb.InputError, match="first for the example at position 250"):
        fb.compute_gradient_embedding(model, x, out=tmp_path / "p", batch_size=64)
    assert names(tmp_path) == []
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_directory_that_cannot_be_used_is_refused_before_the_model_runs(tmp_path):
    class Unusable(nn.Module):
        def forward(self, x):
            raise AssertionError

    written(tmp_path, gradients())
    with pytest.raises(fb.InputError, match="finished pool"):
        fb.compute_gradient_embedding(Unusable(), X, out=tmp_path)
    with pytest.raises(fb.InputError, match="dtype is 'float16', that of the files in out"):
        fb.compute_gradient_embedding(Unusable(), X, dtype="float16")


@pytest.mark.parametrize("labeled", [None, [2, 77, 299]])
@pytest.mark.parametrize(
    "strategy", ["badge", "badge_subset:candidates=50", "badge_proxy:candidates=50", "margin"]
)
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_factors_dir_changes_no_pick(tmp_path, model, strategy, labeled, precision):
    model = nn.Sequential(*model).to(precision)
    options = {"strategy": strategy, "labeled": labeled, "seed": 3, "batch_size": 64}
    expected = fb.select(model, X.to(precision), 20, **options)
    picked = fb.select(model, X.to(precision), 20, factors_dir=tmp_path, **options)
    model.float()
    assert picked.equal(expected)
    assert names(tmp_path) == []


def test_factors_dir_that_cannot_be(tmp_path, model):
    with pytest.raises(fb.InputError, match=r"factors_dir is .*none: No such file or directory"):
        fb.select(model, X, 5, factors_dir=tmp_path / "none")


# --- over mapped arrays


def mapped(path, array):
    np.save(path, array)
    return np.load(path, mmap_mode="r")


PROBS = np.random.default_rng(0).dirichlet([0.3] * C, N)
FEATURES = np.random.default_rng(1).normal(size=(N, D))


@pytest.mark.parametrize(
    ("dtypes", "options"),
    [
        (("f4", "f4"), {}),
        (("f8", "f8"), {"labeled": [2, 77, 399]}),
        (("f2", "f4"), {"include_bias": True, "labeled": [0]}),
        ((">f4", "f2"), {"task": "multilabel"}),
        ((">f8", ">f8"), {}),
    ],
)
@pytest.mark.parametrize(
    "strategy", ["badge", "badge_subset:candidates=99", "badge_proxy", "entropy", "random"]
)
def test_mapped_arrays_give_the_picks_of_arrays_in_memory(
    tmp_path, monkeypatch, dtypes, options, strategy
):
    probs, features = PROBS.astype(dtypes[0]), FEATURES.astype(dtypes[1])
    on_disk = mapped(tmp_path / "p.npy", probs), mapped(tmp_path / "h.npy", features)
    options = options | {"strategy": strategy, "seed": 4}
    expected = fb.select_from_arrays(probs, features, 30, **options)
    monkeypatch.setattr(arrays, "_BLOCK_ENTRIES", 1000)
    monkeypatch.setattr(scaled, "_TILE_FACTORS", 1000)
    assert fb.select_from_arrays(*on_disk, 30, **options).equal(expected)
    assert fb.select_from_arrays(probs, on_disk[1], 30, **options).equal(expected)


@pytest.mark.parametrize("options", [{}, {"include_bias": True}])
@pytest.mark.parametrize("probs", [PROBS, PROBS[:, 1], PROBS[:, :1].astype(np.float16)])
def test_the_factors_are_those_of_an_embedding(tmp_path, probs, options):
    pool = ArrayPool.of(mapped(tmp_path / "p.npy", probs), FEATURES, **options)
    emb = fb.GradientEmbedding.from_probabilities(np.array(probs), FEATURES, **options)
    assert (len(pool), pool.num_classes, pool.num_features) == (
        N,
        emb.num_classes,
        emb.num_features,
    )
    for index in (slice(5, 9), torch.tensor([8, 1, 8])):
        for found, expected in zip(pool.factors(index), emb.factors(index), strict=True):
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)
    assert pool.probabilities(slice(0, N)).numpy() == pytest.approx(probs.reshape(N, -1))


def changed(array, row, column, value):
    array = array.copy()
    array[row, column] = value
    return array


BAD = {
    "NaN": (changed(PROBS, 17, 1, np.nan), FEATURES),
    "two rows with inf": (changed(changed(PROBS, 17, 1, np.inf), 390, 0, -np.inf), FEATURES),
    "NaN in the features": (PROBS, changed(changed(FEATURES, 399, 6, np.nan), 18, 0, np.inf)),
    "both": (changed(PROBS, 300, 1, np.nan), changed(FEATURES, 1, 6, np.nan)),
    "a row that sums to 0.9": (changed(PROBS, 123, [0, 1, 2, 3, 4], 0.18), FEATURES),
    "negative": (changed(PROBS, 123, 0, -0.5), FEATURES),
    "percentages": (100 * PROBS, FEATURES),
    "rows that do not fit": (PROBS, FEATURES[:-1]),
    "no rows": (PROBS[:0], FEATURES[:0]),
    "no columns": (PROBS, FEATURES[:, :0]),
    "three axes": (PROBS[:, :, None], FEATURES),
    "complex": (PROBS, FEATURES.astype(complex)),
    "text": (PROBS.astype(str), FEATURES),
}


@pytest.mark.parametrize("block", [1, 999, 10**9])
@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_told_in_the_words_and_rows_of_an_array_in_memory(
    tmp_path, monkeypatch, case, block
):
    monkeypatch.setattr(arrays, "_BLOCK_ENTRIES", block)
    probs, features = BAD[case]
    with pytest.raises(fb.InputError) as in_memory:
        fb.GradientEmbedding.from_probabilities(probs, features)
    files = (tmp_path / "p.npy", tmp_path / "h.npy")
    with pytest.raises(fb.InputError) as on_disk:
        if probs.size and features.size:
            probs, features = map(mapped, files, (probs, features))
        ArrayPool.of(probs, features)
    message = str(in_memory.value)
    if case == "NaN in the features":  # there the embedding speaks of its own factor
        message = message.replace("feature_ND", "features")
    assert str(on_disk.value) == message


def test_a_task_that_the_columns_cannot_have():
    with pytest.raises(fb.InputError, match="task is binary but there are 5 outputs"):
        ArrayPool.of(PROBS, FEATURES, task="binary")


# --- memory

MEASURED = """
import sys, threading, time
import numpy as np, torch
from torch import nn
import fastbadge as fb
from fastbadge.cli import main
from fastbadge.pools import arrays, scaled

torch.set_num_threads(1)
scaled._ENTRIES_WORTH_COMPILING = 0
scaled._TILE_FACTORS = arrays._BLOCK_ENTRIES = 1 << 19  # 2 MB
model = nn.Sequential(nn.Linear(8, 240), nn.ReLU(), nn.Linear(240, 10))

def resident_mb():  # without the pages of files
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024

def job(N, name):
    {job}

def watch():
    global peak
    while True:
        peak = max(peak, resident_mb())
        time.sleep(0.001)

job(1000, "small")  # loads and compiles what there is to
base = peak = resident_mb()
threading.Thread(target=watch, daemon=True).start()
job(100_000, "large")
print(peak - base)
"""


def peak_mb(tmp_path, job):
    program = MEASURED.replace("{job}", job.strip().replace("\n", "\n    "))
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert result.returncode == 0, result.stderr
    return float(result.stdout.split()[-1])


TO_DISK = """
x = torch.randn(N, 8)
pool = fb.compute_gradient_embedding(model, x, out=name)
assert len(set(fb.kmeans_pp(pool, 200, seed=0).tolist())) == 200
"""
SELECT = """
for kind, width in (("p", 10), ("h", 240)):
    file = np.lib.format.open_memmap(f"{name}-{kind}.npy", "w+", np.float32, (N, width))
    for i in range(0, N, 1000):
        file[i : i + 1000] = np.random.rand(1000, width) / (5 if kind == "p" else 1)
        if kind == "p":
            file[i : i + 1000, 9] = 1 - file[i : i + 1000, :9].sum(axis=1)
            np.abs(file[i : i + 1000], out=file[i : i + 1000])
            file[i : i + 1000] /= file[i : i + 1000].sum(axis=1, keepdims=True)
line = ["select", "--probabilities", f"{name}-p.npy", "--features", f"{name}-h.npy", "-k", "200"]
for strategy in ("badge", "badge_subset", "margin"):
    out = f"{name}-{strategy}.csv"
    assert main([*line, "--strategy", strategy, "-o", out, "--labeled", "done.txt"]) == 0
"""


IN_MEMORY = """
pool = fb.compute_gradient_embedding(model, torch.randn(N, 8))
fb.kmeans_pp(pool, 200, seed=0)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("job", [TO_DISK, SELECT], ids=["to disk", "select"])
def test_memory_does_not_grow_with_the_factors(tmp_path, job):
    """100,000 x (10 + 240) in float32 are 100 MB; a position and its weights a few 10 bytes."""
    (tmp_path / "done.txt").write_text("7\n")
    assert peak_mb(tmp_path, job) < 30


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_the_measure_sees_factors_in_memory(tmp_path):
    assert peak_mb(tmp_path, IN_MEMORY) > 95
