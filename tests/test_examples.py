"""Every script in examples/ runs, offline, and shows what it promises."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fastbadge.cli import main

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
# What each needs. A script that takes arguments or several processes has a test of its own.
SCRIPTS = {
    "your_own_loop.py": "sklearn",
    "sklearn_pool.py": "sklearn",
    "hf_datasets_pool.py": "datasets",
    "lightning_callback.py": "lightning",
}
# Any look-up of a host fails, so that a script which downloads fails here too.
OFFLINE = (
    "import runpy, socket, sys\n"
    "def refuse(*args, **kwargs): raise OSError('an example went online')\n"
    "socket.getaddrinfo = socket.create_connection = refuse\n"
    "del sys.argv[0]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)


@pytest.fixture
def shown(request, tmp_path):
    script = request.param
    if importlib.util.find_spec(SCRIPTS[script]) is None:
        pytest.skip(f"{SCRIPTS[script]} is not installed")
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, EXAMPLES / script],
        cwd=tmp_path,
        # This checkout's package, and one thread: more get in the way of the other tests.
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())  # it leaves nothing behind
    return done.stdout


@pytest.mark.parametrize("shown", ["your_own_loop.py", "sklearn_pool.py"], indirect=True)
def test_badge_is_held_against_random(shown):
    rows = [tuple(map(float, line)) for line in re.findall(r"(\d+) +([\d.]+) +([\d.]+)", shown)]
    labels, badge, random = zip(*rows, strict=True)
    assert labels == (20, 40, 60, 80, 100, 120)
    assert badge[0] == random[0]  # the same first labels, the same model
    assert badge[-1] > random[-1] > random[0] + 10


@pytest.mark.parametrize("shown", ["hf_datasets_pool.py", "lightning_callback.py"], indirect=True)
def test_labels_are_asked_for_and_help(shown):
    rounds = re.findall(r"(\d+) labels: ([\d.]+) %.*\n  to label next, \w+ ([\d ]+) \.\.\.", shown)
    assert [int(labels) for labels, _, _ in rounds] == [20, 40, 60]
    assert float(rounds[-1][1]) > float(rounds[0][1]) + 10
    picked = [int(row) for _, _, rows in rounds for row in rows.split()]
    assert len(set(picked)) == 24 and min(picked) >= 20  # the first 20 are labelled


def test_each_is_read_in_one_sitting():
    for script in SCRIPTS:
        assert len((EXAMPLES / script).read_text(encoding="utf-8").splitlines()) < 80


def test_labelling_digits_goes_as_its_readme_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = EXAMPLES / "label_digits"
    blocks = re.findall(r"^\$ (.*)$", (folder / "README.md").read_text(encoding="utf-8"), re.M)
    calls = [shlex.split(line) for line in blocks]
    assert [call[:3] for call in calls if call[0] != "fastbadge"] == [
        ["python", "make_images.py", "digits"]
    ]
    subprocess.run([sys.executable, "-c", OFFLINE, folder / "make_images.py", "digits"], check=True)
    assert len(list((tmp_path / "digits").glob("*.png"))) == 1797
    commands = [call[1:] for call in calls if call[0] == "fastbadge" and "serve" not in call]
    # Nobody has labelled here: what is there already comes first.
    for command in sorted(
        commands, key=lambda each: ["init", "status", "audit", "export"].index(each[1])
    ):
        assert main(command) == 0, command
    assert "1,797 labels imported, 0 known" in capsys.readouterr().out
    assert len((tmp_path / "labels.csv").read_text(encoding="utf-8").splitlines()) == 1798
    assert len(list((tmp_path / "by_class" / "7").glob("*.png"))) == 179
