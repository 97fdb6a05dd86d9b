"""The text files of the three classic commands: one block a trial, one line a round.

    --- New Trial Started ---
    Round: 1, Labeled Samples: 100, Test Accuracy: 65.00%, Query Time: 0.08s

Rounds count from 1; `Labeled Samples` is what the model was trained on. Blocks are appended whole
and never rewritten; until the last one is there, the record of the call lies beside the file.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import takewhile
from math import nan
from pathlib import Path

from fastbadge.errors import DataError, InputError, RunError
from fastbadge.lab.protocol import PROTOCOLS, Config
from fastbadge.lab.store import RoundRow, read_run
from fastbadge.lock import held

HEADER = "--- New Trial Started ---"
LINE = re.compile(
    r"Round: (\d+), Labeled Samples: (\d+), Test Accuracy: (\d+\.\d+)%, Query Time: (\d+\.\d+)s"
)


def run_classic(
    strategy: str,
    log: Path,
    *,
    trials: int,
    rounds: int,
    data_dir: Path | None = None,
    on_trial: Callable[[str], None] | None = None,
) -> None:
    """Run trials of one strategy by the protocol **classic** and append each to a text file.

    The seed is the number of trials already in the file: each call adds new trials, and two files
    that were filled by the same calls are paired trial by trial.

    A call that is stopped, killed or out of disk space leaves its record beside the file, as
    `results_badge.txt.unfinished`. The same call then adds what is left of its trials, not as many
    again: no finished round is computed twice, and no trial is missing or appended twice. The
    record is removed when its last trial is in the file.

    Args:
        strategy: badge, random, ...
        log: the text file; made if it is not there.
        trials: how many to add.
        rounds: queries after the initial 100 labels.
        data_dir: where MNIST lies.
        on_trial: called with each block once it is in the file, in order; an error of it ends the
            call.

    Raises:
        InputError: trials or rounds that no experiment can be made of, or others than those of
            the call that was stopped.
        DataError: no MNIST, or a file that cannot be written.
        RunError: another process is adding trials to the file.
    """
    config = replace(PROTOCOLS["classic"], strategies=(strategy,), trials=trials, rounds=rounds)
    if not os.access(log if log.exists() else log.absolute().parent, os.W_OK):
        raise DataError(f"{log} cannot be written; run this where you may write")
    directory = log.with_name(f"{log.name}.unfinished")
    with _alone(log):
        seed, appended = _left_off(directory, log, config)
        try:
            _run_and_append(
                replace(config, seed=seed), directory, log, appended, data_dir, on_trial
            )
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt("stopped; the same command adds what is left") from stop


def _left_off(directory: Path, log: Path, config: Config) -> tuple[int, int]:
    """The seed of the call, and how many of its trials are in the file already."""
    try:
        stopped = read_run(directory).config
    except RunError:  # none, or one killed before it had begun
        return count_trials(log), 0
    _cut_torn_block(log, stopped)
    appended = max(count_trials(log) - stopped.seed, 0)
    if appended >= stopped.trials:  # killed when all was done
        shutil.rmtree(directory)
        return count_trials(log), 0
    if (stopped.trials, stopped.rounds) != (config.trials, config.rounds):
        raise InputError(
            f"{directory} has what is left of a call that was stopped; pass its --trials "
            f"{stopped.trials} --rounds {stopped.rounds} to complete it, or delete the directory"
        )
    return stopped.seed, appended


def _cut_torn_block(log: Path, stopped: Config) -> None:
    """Take away a last block of the stopped call that a kill in mid-write left without its end."""
    text = log.read_bytes()
    blocks = [match.start() for match in re.finditer(rb"^%b$" % HEADER.encode(), text, re.M)]
    if len(blocks) > stopped.seed and text.count(b"\n", blocks[-1]) <= stopped.points:
        os.truncate(log, blocks[-1])


def _run_and_append(
    config: Config,
    directory: Path,
    log: Path,
    appended: int,
    data_dir: Path | None,
    on_trial: Callable[[str], None] | None,
) -> None:
    from fastbadge.lab.experiment import run_experiment  # loads torch and the models

    rows_of: dict[int, list[RoundRow]] = {trial: [] for trial in range(config.trials)}

    def append_finished(row: RoundRow) -> None:
        nonlocal appended
        rows_of[row.trial].append(row)
        # Trials run side by side; in the file they stand in order.
        waiting = (rows_of[trial] for trial in range(appended, config.trials))
        finished = takewhile(lambda rows: len(rows) == config.points, waiting)
        if not (blocks := [format_trial(rows) for rows in finished]):
            return
        append_block(log, "".join(blocks))
        appended += len(blocks)
        if on_trial is not None:
            for block in blocks:
                on_trial(block.rstrip())

    try:
        run_experiment(config, directory, data_dir=data_dir, on_round=append_finished)
    finally:
        if appended == config.trials:
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _alone(log: Path) -> Iterator[None]:
    """Refuses a second process on the same file, which would take the same seeds.

    A file made for it that stays empty is taken away again.
    """
    made = not log.exists()
    log.touch()
    with held(log, f"another process is adding trials to {log}; wait until it ends"):
        try:
            yield
        finally:
            with suppress(FileNotFoundError):
                if made and log.stat().st_size == 0:
                    log.unlink()


def format_trial(rows: Sequence[RoundRow]) -> str:
    """The block of one trial, its rounds in order.

    >>> from fastbadge.lab.store import RoundRow
    >>> print(format_trial([RoundRow("badge", 0, 0, 100, 0.65, 1.0, 1.0, 0.08, 0.0, (7,))]), end="")
    --- New Trial Started ---
    Round: 1, Labeled Samples: 100, Test Accuracy: 65.00%, Query Time: 0.08s
    """
    lines = [
        f"Round: {row.round + 1}, Labeled Samples: {row.labels}, "
        f"Test Accuracy: {100 * row.accuracy:.2f}%, Query Time: {row.query_seconds:.2f}s"
        for row in sorted(rows, key=lambda row: row.round)
    ]
    return "\n".join([HEADER, *lines, ""])


def append_block(log: Path, block: str) -> None:
    """Append a block in one write and have it on the disk before returning, or leave all as it was.

    After a truncated last line the block begins on a line of its own.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        with log.open("ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            broken = file.read(1) not in (b"", b"\n")
            rest = ("\n" * broken + block).encode()
            try:
                while rest:  # a full disk takes a part, and refuses the next
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
        raise DataError(
            f"{log} cannot be written: {error.strerror}; mend that, and the same command goes on"
        ) from error


def count_trials(log: Path) -> int:
    """How many trials a text file holds, a truncated last one included."""
    return sum(line == HEADER for _, line in _lines(log))


def read_log(log: Path, strategy: str) -> list[RoundRow]:
    """The rounds of a text file, whatever number of runs was appended to it.

    Args:
        log: the text file.
        strategy: what the rows are to be called by; the file does not say.

    Returns:
        One row a line, with trials counted from 0 in the order of their blocks. What the file does
        not hold is NaN, and picks are empty.

    Raises:
        DataError: the file is not there, cannot be read or holds no round.

    Warns:
        UserWarning: a truncated or foreign line, with file and line number; it is skipped.
    """
    rows: list[RoundRow] = []
    trial, next_round = -1, 0
    for number, line in _lines(log):
        if line == HEADER:
            trial, next_round = trial + 1, 0
            continue
        row = _parse(line, strategy, trial)
        if row is None:
            _warn(log, number, line, "is no round and no start of a trial")
        elif trial < 0 or row.round < next_round:
            _warn(log, number, line, "is out of place; expected the start of a trial before it")
        else:
            rows.append(row)
            next_round = row.round + 1
    if not rows:
        raise DataError(f"{log} holds no round of a trial; expected lines as train.py writes them")
    return rows


def read_logs(
    directory: Path,
    strategies: Sequence[str],
    *,
    trials: int | None = None,
    rounds: int | None = None,
) -> list[RoundRow]:
    """The rounds of `results_STRATEGY.txt` in a directory, for each strategy; see `read_log`.

    Args:
        directory: where the text files are.
        strategies: whose files to read.
        trials: only the first so many of each file.
        rounds: only so many queries after the initial labels.
    """
    for name, value, least in (("trials", trials, 1), ("rounds", rounds, 0)):
        if value is not None and value < least:
            raise InputError(f"{name} is {value}; expected at least {least}")
    return [
        row
        for strategy in strategies
        for row in read_log(directory / f"results_{strategy}.txt", strategy)
        if (trials is None or row.trial < trials) and (rounds is None or row.round <= rounds)
    ]


def _lines(log: Path) -> list[tuple[int, str]]:
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        raise DataError(f"{log} is not there; run train.py and train_random.py first") from error
    except OSError as error:
        raise DataError(f"{log} cannot be read: {error.strerror}") from error
    lines = ((number, line.strip()) for number, line in enumerate(text.split("\n"), start=1))
    return [(number, line) for number, line in lines if line]


def _parse(line: str, strategy: str, trial: int) -> RoundRow | None:
    match = LINE.fullmatch(line)
    if match is None or float(match[3]) > 100:
        return None
    return RoundRow(
        strategy=strategy,
        trial=trial,
        round=int(match[1]) - 1,
        labels=int(match[2]),
        accuracy=float(match[3]) / 100,
        loss=nan,
        train_seconds=nan,
        query_seconds=float(match[4]),
        eval_seconds=nan,
        picks=(),
    )


def _warn(log: Path, number: int, line: str, what: str) -> None:
    shown = line if len(line) <= 60 else line[:60] + "..."
    warnings.warn(f"{log}, line {number}: {shown!r} {what}; skipped", stacklevel=3)
