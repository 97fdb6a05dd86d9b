"""Several processes choose what one process chooses, and fail together: real gloo jobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

import jobs
from fastbadge.sumtree import SumTree

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return (load_digits().data / 16).astype(np.float32)


@pytest.fixture(scope="module")
def alone(digits, tmp_path_factory) -> dict[str, list[int]]:
    """What this process, which is in no job, selects."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    picks = jobs.selections(digits, tmp_path_factory.mktemp("alone"))
    torch.set_num_threads(threads)
    return picks


@pytest.fixture(scope="module")
def two(digits, tmp_path_factory) -> list[dict]:
    return jobs.run_job(2, jobs.two_processes, digits, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def three(digits, tmp_path_factory) -> list[dict]:
    return jobs.run_job(3, jobs.three_processes, digits, tmp_path_factory.mktemp("three"))


def survivors(request, job: str) -> list[dict]:
    """What the processes said, less the last of three, which is killed at the end."""
    said = request.getfixturevalue(job)
    assert (said[-1] is None) == (job == "three")
    return said[:2]


@pytest.mark.parametrize("job", ["two", "three"])
def test_every_process_selects_what_one_alone_selects(request, alone, job):
    for process in survivors(request, job):
        for setting, picks in alone.items():
            assert process["selections"][setting] == picks, setting


@pytest.mark.parametrize("job", ["two", "three"])
def test_any_shards_of_any_pool_give_the_picks_of_the_whole(request, job):
    assert [process["pools"] for process in survivors(request, job)] == [[], []]


@pytest.fixture(scope="module")
def traffics_alone() -> dict[str, dict]:
    return jobs.traffics()


def test_what_is_rejected_does_not_travel(two, traffics_alone):
    k, bytes_a_row = 100, 40 + 4 * (5 + 8)
    alone = traffics_alone["rejected"]
    for together in (process["traffic"]["rejected"] for process in two):
        assert together["picked"] == alone["picked"]
        assert together["sent"] < 6 * k * bytes_a_row  # 91 times k where all that is drawn travels
        # Two a block, now and then three, and 4 before the first.
        assert together["exchanges"] < 2.2 * together["blocks"] + 4


def test_a_block_that_is_accepted_takes_one_exchange(two, traffics_alone):
    alone = traffics_alone["accepted"]
    for together in (process["traffic"]["accepted"] for process in two):
        assert together["picked"] == alone["picked"]
        assert together["exchanges"] == together["blocks"] + 4


@pytest.mark.parametrize("job", ["two", "three"])
def test_a_data_parallel_model_with_buffers_does_not_hang(request, job):
    assert [process["ddp"] for process in survivors(request, job)] == [True, True]


def test_all_choose_with_the_buffers_of_the_first_and_keep_their_own(two):
    first, second = (process["uneven"] for process in two)
    assert first["mean"] != second["mean"]  # what they have seen is not the same
    for process in (first, second):
        assert process["wrapped"] == process["inside"] == first["alone"]
        assert process["put back"] and process["the same"]
    assert second["alone"] != first["alone"]
    assert "position 250" in first["raised"] and "position 250" in second["raised"]


def test_without_a_seed_all_draw_the_same_and_each_time_anew(two):
    first, second = two[0]["unseeded"]
    assert two[1]["unseeded"] == [first, second]
    assert first != second


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("k", "InputError: k is 5 in process 0 but 6 in process 1; every process must pass the"),
        ("seed", "InputError: seed is 0 in process 0 but 1 in process 1"),
        ("pool", "InputError: pool_size is 1000 in process 0 but 999 in process 1"),
        ("labeled", "InputError: labeled is 'all but 1796, checksum "),
        ("strategy", "InputError: strategy is 'badge' in process 0 but 'margin' in process 1"),
        ("unsplittable", "InputError: strategy 'badge_subset' has to see the whole pool and canno"),
        ("two models", "InputError: model is 'of weights with checksum "),
        ("weights", "InputError: model is 'of weights with checksum "),
        ("loaders", "InputError: batch_size is 64 in process 0 but 100 in process 1"),
        ("tensor or loader", "InputError: batch_size is 100 in process 0 but 64 in process 1"),
        ("numbers of NumPy", "nothing"),
        ("head", "InputError: head is None in process 0 but '3' in process 1"),
        ("head by module", "nothing"),
        ("amp", "InputError: amp is None in process 0 but 'bf16' in process 1"),
        ("widths", "InputError: the processes hold factors of (C, D, dtype) (3, 3, torch.f"),
        ("no rows", "InputError: no process has a row of the pool"),
        ("nothing", "nothing"),
    ],
)
def test_all_processes_are_told_the_same(two, what, message):
    assert two[0]["errors"][what].startswith(message)
    assert two[1]["errors"][what] == two[0]["errors"][what]


@pytest.mark.parametrize(
    ("what", "guilty", "own", "others"),
    [
        ("bad k", 0, "InputError: k is 0; expected", "InputError: k is 0; expected a whole"),
        ("raises", 1, "RuntimeError: no memory", "RuntimeError: no memory"),
        ("nan", 1, "InputError: logits are NaN", "for the example at position 1700; mend"),
        ("disk", 1, "OSError: the disk is gone", "OSError: the disk is gone"),
        ("no module", 1, "InputError: model is a int; expected", "InputError: model is a int; exp"),
    ],
)
def test_the_others_are_told_who_failed_and_why(two, what, guilty, own, others):
    assert two[guilty]["errors"][what].startswith(own)
    told = two[1 - guilty]["errors"][what]
    assert told.startswith(f"DistributedError: process {guilty} of 2 failed: ")
    assert others in told
    assert "\n" not in told


def test_sizes_that_are_not_those_of_the_shards(two):
    assert two[0]["errors"]["sizes"] == "nothing"
    message = "InputError: sizes is [500, 400], but process 1 of 2 holds 500 rows; leave it out"
    assert two[1]["errors"]["sizes"] == message


def test_a_model_spread_over_the_processes_is_refused(two):
    for process in two:
        assert "spread over the processes (FSDP)" in process["spread"][0]
        assert "spread over the processes (DTensor" in process["spread"][1]


def test_a_group_of_some_processes(two, three):
    assert [process["pair"] for process in three[:2]] == ["nothing", "nothing"]


@pytest.mark.parametrize("what", ["hang", "death"])
def test_a_process_that_hangs_or_dies_holds_nobody_up(three, what):
    for process in three[:2]:
        assert process[f"{what} seconds"] < 10
        assert process[what].startswith("DistributedError: process ")
        assert "waited in vain for another" in process[what]
        assert "\n" not in process[what]


def test_the_example_runs_under_torchrun():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(ROOT / "examples" / "torchrun_select.py")]
    result = subprocess.run(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=jobs.SECONDS,
    )
    assert result.returncode == 0, result.stderr
    lines = sorted(line for line in result.stdout.splitlines() if line.startswith("process "))
    assert [line[:16] for line in lines] == ["process 0 of 2 p", "process 1 of 2 p"]
    first, second = (json.loads(line.partition("picked ")[2]) for line in lines)
    assert first == second
    assert len(set(first)) == 20


@given(
    st.lists(st.floats(0, 1e300), min_size=1, max_size=70).filter(any),
    st.lists(st.integers(0, 70), min_size=1, max_size=5),
    st.integers(0, 2**32),
)
@settings(deadline=None)
def test_trees_that_hold_parts_draw_like_one_that_holds_all(weight, borders, seed):
    rng = np.random.default_rng(seed)
    weight_N = np.array(weight)
    N = len(weight_N)
    starts = np.array([0, *sorted(min(border, N) for border in borders)])
    whole = SumTree(weight_N)

    def holder(row_B: np.ndarray) -> np.ndarray:
        return np.searchsorted(starts, row_B, side="right") - 1

    parts = [
        SumTree(weight_N[start:stop], start, N)
        for start, stop in zip(starts, [*starts[1:], N], strict=True)
    ]
    told, first_row = [part.share_out(starts) for part in parts][-1]
    sums = [parts[h].sums(told[[i]])[0] for i, h in enumerate(holder(first_row))]
    for part in parts:
        part.tell(told, np.array(sums))
    for _ in range(3):
        assert {part.total for part in parts} == {whole.total}
        if whole.total == 0:
            return
        uniform_B = rng.random(30)
        row_B = whole.draw(uniform_B)
        drawn = [part.draw(uniform_B) for part in parts]
        assert all((holder(drawn_B) == holder(row_B)).all() for drawn_B in drawn)
        assert [drawn[h][i] for i, h in enumerate(holder(row_B))] == row_B.tolist()
        # Lower them, each tree all of them once it has heard of those that it does not hold.
        lowered_B = rng.random(30) * whole.weight_N[row_B]
        path_BL = np.concatenate([parts[h].path(row_B[[i]]) for i, h in enumerate(holder(row_B))])
        assert path_BL.shape[1] == whole.path_length
        assert path_BL[:, 0].tolist() == whole.weight_N[row_B].tolist()
        whole.lower(row_B, lowered_B)
        for part in parts:
            part.hear(row_B, path_BL)
            part.lower(row_B, lowered_B)
        assert {part.total for part in parts} == {whole.total}
        if whole.total == 0:
            return
        # Lower others, each tree those that it holds, and tell the sums.
        row_B = whole.draw(rng.random(30))
        lowered_B = rng.random(30) * whole.weight_N[row_B]
        whole.lower(row_B, lowered_B)
        for i, part in enumerate(parts):
            part.lower(row_B[holder(row_B) == i], lowered_B[holder(row_B) == i])
        sums = [parts[h].sums(told[[i]])[0] for i, h in enumerate(holder(first_row))]
        for part in parts:
            part.tell(told, np.array(sums))
