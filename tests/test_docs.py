"""What docs/*.md say and show: their code runs, their pictures are there, their numbers are so."""

import csv
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch

import fastbadge as fb
from fastbadge.cli import app
from fastbadge.lab.comparison import paired_tests
from fastbadge.lab.penalty import penalty_tie
from fastbadge.lab.report import ranking
from fastbadge.lab.statistics import trial_areas
from fastbadge.lab.store import RoundRow
from oracles import chi_square_p_value, dense_gradients, sequence_probabilities, sqdist_matrix

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
EXACT = (ROOT / "docs" / "exact.md").read_text(encoding="utf-8")
PROSE = re.sub(r"\s+", " ", EXACT)
TESTS = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def load(path, monkeypatch):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pictures(monkeypatch):
    return load(ROOT / "docs" / "pictures.py", monkeypatch)


@pytest.fixture
def threads_as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, threads_as_before):
    names = {"__name__": "page"}
    for block in blocks(page.read_text(encoding="utf-8"), "python"):
        exec(block, names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_are_there(page):
    for target in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).is_file(), target
        assert (page.parent / target).with_suffix(".png").is_file(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_on_it_are_commands(page):
    for line in "".join(blocks(page.read_text(encoding="utf-8"), "console")).splitlines():
        program, *words = shlex.split(line.removeprefix("$ "), comments=True)
        if program == "fastbadge":
            app.parse_args(words, exit_on_error=False, print_error=False)


def test_commands_and_tests_it_names_are_there():
    for line in "".join(blocks(EXACT, "console")).splitlines():
        python, *words = shlex.split(line.removeprefix("$ "))
        assert python == "python"
        assert all((ROOT / word).is_file() for word in words if word.endswith(".py"))
    named = re.findall(r"`(test_\w+)`", EXACT)
    assert len(named) >= 5
    assert all(f"def {name}(" in TESTS for name in named)


def test_its_program_follows_the_enumerated_distribution():
    names = {}
    exec(blocks(EXACT, "python")[0], names)
    point_NP = np.random.default_rng(3).normal(size=(6, 2))
    start = int((point_NP**2).sum(axis=1).argmax())
    table = sequence_probabilities(point_NP, 4, [float(i == start) for i in range(6)])

    def draw(seed):
        return names["d2_sample"](point_NP, 4, np.random.default_rng(seed))

    assert chi_square_p_value(draw, table, 20_000) > 0.01


def test_the_first_picture_tells_what_happened(pictures, tmp_path):
    moments = pictures.draw_rejection(tmp_path)
    pool = pictures.tiny_pool()
    sqdist_NN = sqdist_matrix(dense_gradients(pool.error_NC, pool.feature_ND))
    first, *newer = moments[-1].centres
    weight_N = sqdist_NN[first]
    for new, moment in enumerate(moments):
        true_N = sqdist_NN[[first, *newer[:new]]].min(axis=0)
        np.testing.assert_allclose(moment.stale_N, weight_N, atol=1e-12)
        np.testing.assert_allclose(moment.current_N, true_N, atol=1e-12)
        under_P = np.array(moment.height_P) < true_N[moment.row_P]
        assert under_P.tolist() == [False] * (len(under_P) - 1) + [True]
    shares = [round(100 * m.current_N.sum() / m.stale_N.sum()) for m in moments]
    letters = "".join(pictures.LETTERS[m.row_P[-1]] for m in moments)
    assert f"over {len(pool)} gradients" in PROSE
    assert f"first centre, {pictures.LETTERS[first]}," in PROSE
    assert [m.first + len(m.row_P) - 1 for m in moments] == [1, 4, 7]
    assert letters == "bcj"  # "1 makes b a centre", "4 makes c a centre", "7 makes j one"
    assert pictures.LETTERS[moments[1].row_P[1]] == "b"  # "3 is b itself"
    assert f"{shares[1]} % of the area is still filled, with two {shares[2]} %" in PROSE


def test_pictures_are_the_same_every_time(pictures, tmp_path):
    work = pictures.work_of(pictures.tiny_pool(), 6)
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        pictures.draw_rejection(tmp_path / run)
        pictures.draw_work([("tiny", work), ("again", work)], tmp_path / run)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["rejection.png", "rejection.svg", "work.png", "work.svg"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.fixture
def synthetic(monkeypatch):
    return load(ROOT / "benchmarks" / "pools.py", monkeypatch).synthetic_pool(60_000, 10, 64, 0.85)


@pytest.mark.parametrize("k", [100, 1000])
def test_the_table_counts_what_a_run_does(pictures, synthetic, k):
    work = pictures.work_of(synthetic, k)
    (stated,) = (cells for cells in table_rows() if cells[:2] == [pictures.SMALL, f"{k:,}"])
    counted = [cell.strip() for cell in pictures.table_row(pictures.SMALL, work).split("|")[1:-1]]
    assert stated[2] == counted[2]  # passes
    # Another processor may round a logit otherwise, and so draw otherwise, but not cost otherwise.
    for said, found in zip(stated[3:], counted[3:], strict=True):
        assert number(said) == pytest.approx(number(found), rel=0.2, abs=2)


def test_the_weight_falls_as_it_says(synthetic):
    picks = fb.kmeans_pp(synthetic, 1000, seed=0)
    error_NC, feature_ND = synthetic.error_NC.double(), synthetic.feature_ND.double()
    sqnorm_N = (error_NC**2).sum(dim=1) * (feature_ND**2).sum(dim=1)
    left = []
    for count in (1, 9, 1000):
        row_K = picks[:count]
        total = 0.0
        for part in torch.arange(len(synthetic)).split(5000):
            inner_BK = (error_NC[part] @ error_NC[row_K].T) * (
                feature_ND[part] @ feature_ND[row_K].T
            )
            sqdist_BK = sqnorm_N[part, None] + sqnorm_N[row_K] - 2 * inner_BK
            total += float(sqdist_BK.amin(dim=1).clamp_min(0).sum())
        left.append(total)
    stated = re.search(
        r"([\d.]+) % of the first weights is left at 9 .* ([\d.]+) % at 1,000", PROSE
    )
    expected = [100 * left[1] / left[0], 100 * left[2] / left[0]]
    assert [float(share) for share in stated.groups()] == pytest.approx(expected, abs=0.3)


def test_the_table_adds_up_and_bears_the_text_out():
    rows = [[number(cell) for cell in cells[1:]] for cells in table_rows()]
    assert len(rows) == 6
    for k, _, _, passes, walks, rest, total, share in rows:
        assert total == pytest.approx(passes + walks + rest, abs=2)
        assert share == pytest.approx(100 * total / k, abs=0.5)
    of_thousand = [row for row in rows if row[0] == 1000]
    assert {row[1] for row in of_thousand} == {2}
    tried = [row[2] for row in of_thousand]
    assert f"{min(tried):,.0f} to {max(tried):,.0f} proposals gave 1,000 centres" in PROSE
    centres = [row[3] for row in of_thousand]
    assert f"({min(centres):.0f} to {max(centres):.0f} of 1,000 above)" in PROSE
    assert f"at most {max(centres) / 10:.1f} % of k = 1,000" in PROSE


def test_the_enumeration_it_speaks_of():
    point_NP = np.random.default_rng(0).normal(size=(7, 6))
    assert (
        f"4 from 7 against all {len(sequence_probabilities(point_NP, 4, [1] + 6 * [0]))}" in PROSE
    )
    assert "DRAWS = 20_000" in TESTS and "20,000 draws" in PROSE


def table_rows():
    """The cells of the table of products."""
    lines = [line for line in EXACT.splitlines() if re.match(r"\| (MNIST|synthetic)", line)]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def number(cell):
    return float(cell.replace(",", "").removesuffix(" %"))


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return [
            RoundRow(
                row["strategy"],
                *(int(row[name]) for name in ("trial", "round", "labels")),
                *(float(row[name]) for name in ("accuracy", "loss")),
                *(float(row[f"{name}_seconds"]) for name in ("train", "query", "eval")),
                picks=(),
            )
            for row in csv.DictReader(file)
        ]


def test_the_page_of_the_paper_says_what_its_rows_say():
    page = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    settings = {path.stem: rows_of(path) for path in (ROOT / "docs" / "paper").glob("*.csv")}
    assert len(settings) == 6
    assert {len({row.trial for row in rows}) for rows in settings.values()} == {10}
    answer = re.sub(r"\s+", " ", page.replace("\n> ", "\n"))
    assert ranking([rows for _, rows in sorted(settings.items())]) in answer
    header, _, *lines = re.findall(r"^\|.*\|$", page, re.MULTILINE)
    strategies = [cell.strip().replace(" ", "_") for cell in header.split("|")[3:-1]]
    assert len(lines) == 6
    for line in lines:
        name, _, *cells = (cell.strip().strip("*") for cell in line.strip("|").split("|"))
        rows = settings[re.sub(r"(\w+), ([\d,]+)", r"\1-mlp-\2", name).replace(",", "")]
        areas = trial_areas(rows)
        means = [f"{100 * fmean(areas[strategy].values()):.1f}" for strategy in strategies]
        assert cells == means
        top = re.findall(r"\*\*([\d.]+)\*\*", line)
        assert set(top) == {max(means, key=float)}
    mnist = trial_areas(settings["mnist-mlp-100"])
    (test,) = paired_tests({name: mnist[name] for name in ("margin", "badge")})
    low, high = (f"{100 * end:.1f}" for end in test.interval)
    said = f"by {100 * test.mean:.1f} points over the whole budget (95 % interval {low} to {high}"
    assert said in answer
    tie = penalty_tie([rows for _, rows in sorted(settings.items())], "margin", "badge")
    assert f"the next best, has p = {tie:.3f} in the paired permutation test" in answer
