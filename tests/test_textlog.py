"""The classic text files: written whole, read whatever happened to them."""

import math
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastbadge.errors import DataError, InputError
from fastbadge.lab.store import RoundRow
from fastbadge.lab.textlog import (
    append_block,
    count_trials,
    format_trial,
    read_log,
    read_logs,
)

BLOCK = """\
--- New Trial Started ---
Round: 1, Labeled Samples: 100, Test Accuracy: 65.00%, Query Time: 0.08s
Round: 2, Labeled Samples: 200, Test Accuracy: 81.25%, Query Time: 70.00s
"""


def trial_of(accuracies, *, seconds=0.08):
    return [
        RoundRow("badge", 0, i, 100 + 100 * i, accuracy, 0.5, 1.0, seconds, 0.1, (1,))
        for i, accuracy in enumerate(accuracies)
    ]


def cells(rows):
    return [(row.trial, row.round, row.labels, row.accuracy) for row in rows]


def test_the_line_format_is_the_classic_one():
    rows = trial_of([0.65, 0.8125])
    rows[1] = RoundRow("badge", 0, 1, 200, 0.8125, 0.5, 1.0, 70.0, 0.1, ())
    assert format_trial(rows[::-1]) == BLOCK


@given(
    st.lists(
        st.lists(st.integers(0, 10_000), min_size=1, max_size=5),
        min_size=1,
        max_size=4,
    )
)
def test_what_is_written_is_read_back(tmp_path_factory, trials):
    log = tmp_path_factory.mktemp("log") / "results_badge.txt"
    for hundredths in trials:
        append_block(log, format_trial(trial_of([value / 10_000 for value in hundredths])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = read_log(log, "badge")
    assert cells(rows) == [
        (trial, i, 100 + 100 * i, pytest.approx(value / 10_000, abs=1e-12))
        for trial, hundredths in enumerate(trials)
        for i, value in enumerate(hundredths)
    ]
    assert count_trials(log) == len(trials)


def test_what_the_file_does_not_hold_is_nan(tmp_path):
    log = tmp_path / "log.txt"
    append_block(log, BLOCK)
    first = read_log(log, "margin")[0]
    assert (first.strategy, first.query_seconds, first.picks) == ("margin", 0.08, ())
    assert math.isnan(first.loss) and math.isnan(first.train_seconds)


@pytest.mark.parametrize("cut", range(1, len(BLOCK)))
def test_a_block_cut_anywhere_costs_at_most_its_last_line(tmp_path, cut):
    log = tmp_path / "results_badge.txt"
    log.write_text(BLOCK[:cut])
    append_block(log, BLOCK)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = read_log(log, "badge")
    last = max(row.trial for row in rows)
    assert cells(row for row in rows if row.trial == last) == [
        (last, 0, 100, 0.65),
        (last, 1, 200, 0.8125),
    ]
    assert len(caught) <= 1
    lost = BLOCK[:cut].splitlines()[-1]
    if caught:
        line = len(BLOCK[:cut].splitlines())
        assert f"results_badge.txt, line {line}: " in str(caught[0].message)
    else:
        assert lost in BLOCK.splitlines()


def test_foreign_lines_are_skipped_with_a_warning_that_names_them(tmp_path):
    log = tmp_path / "results_badge.txt"
    lines = [
        "Round: 1, Labeled Samples: 100, Test Accuracy: 65.00%, Query Time: 0.08s",
        "--- New Trial Started ---",
        "Round: 1, Labeled Samples: 100, Test Accuracy: 65.00%, Query Time: 0.08s",
        "# lunch" + " break" * 20,
        "",
        "Round: 3, Labeled Samples: 300, Test Accuracy: 85.00%, Query Time: 0.08s",
        "Round: 2, Labeled Samples: 200, Test Accuracy: 75.00%, Query Time: 0.08s",
        "Round: 4, Labeled Samples: 400, Test Accuracy: 185.00%, Query Time: 0.08s",
        "Round: 5, Labeled Samples: 500, Test Accuracy: nan%, Query Time: 0.08s",
    ]
    log.write_text("\r\n".join(lines))
    with pytest.warns(UserWarning) as caught:
        rows = read_log(log, "badge")
    assert cells(rows) == [(0, 0, 100, 0.65), (0, 2, 300, 0.85)]
    messages = [str(w.message) for w in caught]
    assert [m.partition(": ")[0] for m in messages] == [f"{log}, line {n}" for n in (1, 4, 7, 8, 9)]
    assert "out of place" in messages[0]
    assert "is no round" in messages[1]
    assert all(len(m) < len(str(log)) + 160 for m in messages)


def test_bytes_that_are_no_text_are_a_foreign_line(tmp_path):
    log = tmp_path / "log.txt"
    log.write_bytes(b"\xff\xfe\x00\n" + BLOCK.encode())
    with pytest.warns(UserWarning, match="line 1"):
        assert len(read_log(log, "badge")) == 2


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"is not there; run train\.py"):
        read_log(tmp_path / "none.txt", "badge")
    with pytest.raises(DataError, match="cannot be read"):
        read_log(tmp_path, "badge")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match="holds no round"):
        read_log(tmp_path / "empty.txt", "badge")


def test_files_that_cannot_be_written(tmp_path):
    with pytest.raises(DataError, match="cannot be written"):
        append_block(tmp_path / "none" / "log.txt", BLOCK)


def test_read_logs_limits_trials_and_rounds(tmp_path):
    for strategy in ("badge", "random"):
        for _ in range(3):
            append_block(tmp_path / f"results_{strategy}.txt", BLOCK)
    rows = read_logs(tmp_path, ("badge", "random"), trials=2, rounds=0)
    assert [(row.strategy, row.trial, row.round) for row in rows] == [
        ("badge", 0, 0),
        ("badge", 1, 0),
        ("random", 0, 0),
        ("random", 1, 0),
    ]
    assert len(read_logs(tmp_path, ("badge", "random"))) == 12


@pytest.mark.parametrize("limits", [{"trials": 0}, {"rounds": -1}])
def test_read_logs_refuses_limits_that_leave_nothing(tmp_path, limits):
    with pytest.raises(InputError, match="expected at least"):
        read_logs(tmp_path, ("badge",), **limits)
