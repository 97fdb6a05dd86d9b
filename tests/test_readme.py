"""What README and CONTRIBUTING tell people to type, typed."""

import os
import re
import runpy
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

import fastbadge as fb
from fastbadge.cli import main
from fastbadge.strategies import registry

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text):
    """Each command a reader is told to type, as words."""
    lines = "".join(blocks(text, "console")).splitlines()
    assert all(line.startswith("$ ") for line in lines)
    return [shlex.split(line.removeprefix("$ ")) for line in lines]


COMMANDS = commands(README)
# On MNIST they take a minute: here they are parsed and stop where the experiment would start.
LONG = [words for words in COMMANDS if "mnist" in words or "train" in words[-1]]
# That one serves until it is stopped; the tests of the page call it.
SERVE = ["fastbadge", "label", "serve", "labels/photos"]
SHORT = [words for words in COMMANDS if words[0] == "fastbadge" and words not in [*LONG, SERVE]]


def test_every_command_is_covered_below():
    others = [words for words in COMMANDS if words not in SHORT + LONG]
    assert others == [
        ["make", "run"],
        ["make", "test"],
        ["pip", "install", "-e", ".[label]"],
        SERVE,
        ["python", "-m", "venv", "env"],
        [".", "env/bin/activate"],
        ["pip", "install", "-r", "requirements.txt"],
        ["python", "plot_results.py"],
    ]
    assert (ROOT / "requirements.txt").is_file()
    assert len(SHORT) >= 6 and len(LONG) == 3


def test_fastbadge_commands_run_in_order(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    np.save("p.npy", draw.dirichlet(np.ones(10), 2000))
    np.save("h.npy", draw.random((2000, 16)))
    Path("photos").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(draw.integers(0, 255, (9, 9), dtype=np.uint8)).save(Path("photos", name))
    shown = {}
    for words in SHORT:
        assert main(words[1:]) == 0, words
        shown[" ".join(words)], err = capfd.readouterr()
        assert "Traceback" not in err
    (table,) = [text for text in blocks(README, "text") if "test accuracy" in text]
    ran = shown["fastbadge run"].splitlines()
    # The digits are those of one machine; all around them must be what users see.
    assert [shape_of(line) for line in ran] == [shape_of(line) for line in table.splitlines()]
    assert len(Path("picks.csv").read_text().splitlines()) == 1001
    assert Path("rows.csv").is_file() and Path("rows.json").is_file()
    assert Path("runs/digits/badge_vs_random_comparison.png").is_file()


def shape_of(line):
    return re.sub(r"[+-]?\d+(\.\d+)?", "#", re.sub(r" +", " ", line)).strip()


@pytest.mark.parametrize("words", LONG, ids=" ".join)
def test_long_commands_start_what_they_say(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started = []
    monkeypatch.setattr(
        "fastbadge.lab.experiment.run_experiment", lambda config, *_, **__: started.append(config)
    )
    if words[0] == "fastbadge":
        monkeypatch.setattr("fastbadge.cli._show_run", lambda *_: None)
        monkeypatch.setattr("fastbadge.files.write_whole", lambda *_: None)
        assert main(words[1:]) == 0
    else:
        monkeypatch.setattr("sys.argv", words[1:])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / words[1]), run_name="__main__")
        assert end.value.code == 0
    (config,) = started
    assert (config.dataset, config.trials, config.points) == ("mnist", 5, 11)


def test_plot_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for strategy in ("badge", "random"):
        Path(f"results_{strategy}.txt").write_text(
            "--- New Trial Started ---\n"
            "Round: 1, Labeled Samples: 100, Test Accuracy: 65.00%, Query Time: 0.08s\n"
        )
    monkeypatch.setattr("sys.argv", ["plot_results.py"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(ROOT / "plot_results.py"), run_name="__main__")
    assert Path("badge_vs_random_comparison.png").is_file()


@pytest.mark.parametrize("target", ["run", "test", "check", "docs", "bench"])
def test_make_targets_are_there(target):
    makefile = (ROOT / "Makefile").read_text()
    assert f"\n{target}:" in makefile
    assert f"make {target}" in README + CONTRIBUTING


def test_make_run_is_the_command_the_readme_names():
    assert dry_run("run").rstrip().endswith("bin/fastbadge run")


def test_the_scripts_of_make_bench_are_there():
    scripts = re.findall(r"benchmarks/\w+\.py", dry_run("bench"))
    assert len(scripts) == 9
    assert all((ROOT / script).is_file() for script in scripts)


def dry_run(target):
    command = ["make", "--dry-run", "--always-make", "--no-print-directory", target]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, env=outside
    ).stdout


def test_python_blocks_run():
    torch.manual_seed(0)
    names = {
        "model": nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)),
        "pool": torch.randn(300, 8),
        "probs_NC": torch.rand(300, 4).softmax(dim=1),
        "features_ND": torch.rand(300, 16),
    }
    first, second, third = blocks(README, "python")
    exec(first, names)
    assert sorted(names["picked"].tolist()) == sorted(set(names["picked"].tolist()))
    assert names["picked"].shape == (100,)
    exec(second, names)
    expected = fb.select_from_arrays(names["probs_NC"], names["features_ND"], 100, seed=0)
    assert names["picked"].tolist() == expected.tolist()
    x, y = load_digits(return_X_y=True)
    clf = LogisticRegression(max_iter=50, tol=0.1).fit(x[:60] / 16, y[:60])
    names |= {"clf": clf, "X_pool": x / 16, "done": range(60)}
    exec(third, names)
    assert len(set(names["picked"].tolist())) == 100
    assert not set(names["picked"].tolist()) & set(range(60))


def test_the_strategy_of_contributing_is_complete(monkeypatch):
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))
    (example,) = blocks(CONTRIBUTING, "python")
    assert len(example.splitlines()) <= 10
    exec(example, {"__name__": "example"})
    torch.manual_seed(0)
    model, pool = nn.Linear(5, 3), torch.randn(40, 5)
    picked = fb.select(model, pool, k=4, strategy="largest_gradient")
    norm_N = fb.compute_gradient_embedding(model, pool).dense().norm(dim=1)
    assert picked.tolist() == norm_N.argsort(descending=True)[:4].tolist()
    assert registry.get_strategy("largest_gradient").summary.startswith("Largest gradients")


def test_the_tree_and_the_links_lead_somewhere():
    (tree,) = [text for text in blocks(README, "text") if "src/fastbadge/" in text]
    folders = [ROOT]
    for line in tree.splitlines():
        names = [word for word in line.split() if word.endswith((".py", "/"))]
        depth = (len(line) - len(line.lstrip())) // 2
        folder = folders[min(depth, 2)] if depth else ROOT
        for name in names:
            assert (folder / name).exists(), line
            if name.endswith("/"):
                folders[depth + 1 :] = [folder / name]
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).is_file(), target


def test_the_changelog_has_this_version():
    assert f"## [{fb.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
