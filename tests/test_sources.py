"""Data that processes share: the same values, one copy, nothing left behind."""

import gc
import os
import pickle
import subprocess
import sys
from dataclasses import fields

import pytest
import torch

from fastbadge.lab.datasets import Dataset, load_dataset
from fastbadge.lab.sources import Shared, can_share

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="no nameless memory on this system"
)

# 64 MB, of which the process reads all; prints what of it is its own and what others map too.
READ = """
import pickle, sys
dataset = pickle.load(sys.stdin.buffer)()
total = float(dataset.x_pool_NF.sum())
def kb(key, path):
    for line in open("/proc/self/smaps"):
        if "-" in line.split()[0]:
            mine = path in line
        elif mine and line.startswith(key):
            yield int(line.split()[1])
print(total, sum(kb("Private", "memfd")), sum(kb("Shared", "memfd")), flush=True)
sys.stdin.read()
"""


def big():
    x_NF = torch.arange(64 * 1024 * 256, dtype=torch.float32).remainder(7).reshape(-1, 256)
    y_N = torch.arange(len(x_NF)) % 2
    digits = load_dataset("digits")
    values = {f.name: getattr(digits, f.name) for f in fields(digits)}
    return Dataset(**values | {"x_pool_NF": x_NF, "y_pool_N": y_N})


def test_what_is_shared_is_the_same():
    dataset = load_dataset("digits")
    assert can_share(dataset)
    shared = Shared(dataset)
    for other in (shared(), pickle.loads(pickle.dumps(shared))()):
        for field in fields(dataset):
            ours, theirs = getattr(dataset, field.name), getattr(other, field.name)
            same = torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
            assert same, field.name


def shares():
    """How many nameless files of ours this process has open."""
    gc.collect()
    descriptors = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
    return sum("memfd:fastbadge" in os.readlink(d) for d in descriptors if os.path.islink(d))


def test_memory_is_given_back_with_its_owner():
    before = shares()
    shared = Shared(load_dataset("digits"))
    assert shares() == before + 1
    assert shared().num_classes == 10
    del shared
    assert shares() == before


def test_one_data_set_is_not_taken_for_another():
    """Although the second has the descriptor of the first."""
    first = Shared(load_dataset("digits", split_seed=1))
    before = first().x_pool_NF
    del first
    gc.collect()
    second = Shared(load_dataset("digits", split_seed=2))
    assert not torch.equal(second().x_pool_NF, before)


def test_two_processes_have_one_copy():
    shared = Shared(big())
    reader = [sys.executable, "-c", READ]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(reader, **pipes) as one, subprocess.Popen(reader, **pipes) as two:
        one.stdin.write(pickle.dumps(shared))
        one.stdin.flush()
        one_total = float(one.stdout.readline().split()[0])
        two.stdin.write(pickle.dumps(shared))
        two.stdin.flush()
        total, private_kb, shared_kb = map(float, two.stdout.readline().split())
        one.stdin.close()
        two.stdin.close()
    assert total == one_total == float(shared().x_pool_NF.sum())
    assert shared_kb > 64 * 1024 and private_kb < 1024
