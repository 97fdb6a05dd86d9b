"""Rounds behind a server: a process of its own trains, chooses and counts while people click.

A process rather than a thread, which would share the interpreter with the clicks: while it trains
on 100,000 items, 95 % of clicks have their next items within 4 ms and 99 % within 6; with a thread
it is 10 and 18 (benchmarks/label_server.py). And it can be stopped in the middle of a round. It is
told what to do by lines on its input and answers with lines of JSON; when its input ends, because
the server has gone in whatever way, so does it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Condition, Thread
from time import monotonic
from typing import Any

from fastbadge.errors import FastbadgeError
from fastbadge.label.project import read_classes, read_disputes, read_item, read_status

# Looked at again for what others did to the project: items added, labels imported.
_RETRY_SECONDS = 30.0
# Counting is a quarter of the time of its process at most, however large the project.
_REST = 3.0
_LEAST_REST_SECONDS = 0.5
_MOST_DISPUTES = 50
_MOST_CONFUSED = 5
_MOST_DOUBTS = 20


class Background:
    """Chooses the next batch and looks for doubtful labels when asked to, counts after each change.

    All methods return at once and may be called from any thread.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.summary: dict[str, Any] | None = None  # see `summarise`; None until first counted
        self.doubts: dict[str, Any] | None = None  # see `list_doubts`, or error; None until asked
        self.trouble = ""  # why the last try failed, in a line
        self._wake = Condition()
        self._wanted = self._auditing = self._closed = False
        self._changes, self._counted = 1, 0
        self._retry = 0.0
        self._process: subprocess.Popen[str] | None = None

    def want_batch(self) -> bool:
        """Ask for another batch, as when too few items wait.

        Returns:
            Whether one is on its way; if not, there was nothing left to choose, or `trouble`.
        """
        with self._wake:
            if monotonic() >= self._retry:
                self._wanted = True
                self._wake.notify()
            return self.choosing

    @property
    def choosing(self) -> bool:
        """Whether a batch is on its way; not while one that failed waits to be tried again."""
        return self._wanted and not self.trouble

    def want_doubts(self) -> None:
        """Ask for the labels that the model doubts: `doubts`, when they are there."""
        with self._wake:
            self.doubts = None
            self._auditing = True
            self._wake.notify()

    def note_change(self) -> None:
        """Say that something was recorded, so that the numbers are others and a batch may be."""
        with self._wake:
            self._changes += 1
            self._retry = 0.0
            self._wake.notify()

    @contextmanager
    def running(self) -> Iterator[None]:
        """At work while the block runs; what is not finished then is not recorded."""
        thread = Thread(target=self._work, name="fastbadge-rounds", daemon=True)
        thread.start()
        try:
            yield
        finally:
            with self._wake:
                self._closed = True
                self._wake.notify()
                if self._process is not None:
                    self._process.terminate()
            thread.join()

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(
                    lambda: (
                        self._closed
                        or self._wanted
                        or self._auditing
                        or self._changes > self._counted
                    )
                )
                if self._closed:
                    break
                trouble = self._start()
                wanted, changes = self._wanted, self._changes
                audit = self._auditing and not wanted  # people wait for items first
            start = monotonic()
            order = "advance" if wanted else "audit" if audit else "count"
            answer: dict[str, Any] = {"error": trouble} if trouble else self._ask(order)
            seconds = monotonic() - start
            with self._wake:
                if audit:
                    self.doubts, self._auditing = answer, False
                    continue
                # Whoever asked for a batch while one was chosen has it, or asks again.
                self._wanted = self._wanted and not wanted
                if wanted or "summary" in answer:  # else counted again after the rest
                    self._counted = changes
                self.trouble = answer.get("error", "")
                self.summary = answer.get("summary", self.summary)
                if (wanted and answer.get("batch") is None) and changes == self._changes:
                    self._retry = monotonic() + _RETRY_SECONDS
                rest = _RETRY_SECONDS if self.trouble else _REST * seconds
                self._wake.wait_for(
                    lambda: self._closed or self._auditing or (self._wanted and not self.trouble),
                    max(rest, _LEAST_REST_SECONDS),
                )
        if self._process is not None:
            self._process.communicate()

    def _start(self) -> str:
        """Have a process; in words why not, as where there is no memory for one."""
        if self._process is None or self._process.poll() is not None:
            try:
                # In a session of its own: Ctrl-C is for the server, which then ends this.
                # -P: a torch.py in the directory of the call is not meant.
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-W", "ignore", "-m", __name__, str(self.directory)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    encoding="utf-8",
                    start_new_session=True,
                )
            except OSError as error:
                return f"the process that trains cannot be started: {error.strerror}"
        return ""

    def _ask(self, order: str) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(f"{order}\n")
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(process.stdout.readline())
            return answer
        except (OSError, ValueError):  # it ended: before the order, or in the middle of the line
            process.communicate()
            return {"error": f"the process that trains ended with status {process.returncode}"}


def summarise(directory: Path) -> dict[str, Any]:
    """What the page shows of a project beside its items, for JSON.

    Returns:
        `status` and `numbers` as the classes of these names, but what is told by name, whose order
        JavaScript would not keep, in lists: `classes` of name, labels and recall, `annotators` of
        name and answers. Of the confusions there are the largest counts as `confused`: true
        class, predicted class, how often. And the first `disputes`: item, its name, who says what.
    """
    from fastbadge.label.numbers import read_numbers

    status, numbers = asdict(read_status(directory)), asdict(read_numbers(directory))
    recall = numbers.pop("recall")
    confused = sorted(
        (
            (truth, guess, count)
            for (truth, guess), count in numbers.pop("confusion").items()
            if truth != guess and count > 1
        ),
        key=lambda each: -each[2],
    )
    classes = read_classes(directory)
    disputes = [
        {
            "item": item,
            "name": read_item(directory, item).name,
            "answers": [
                (annotator, "cannot tell" if label is None else classes[label])
                for annotator, label in answers.items()
            ],
        }
        for item, answers in list(read_disputes(directory).items())[:_MOST_DISPUTES]
    ]
    return {
        "classes": [
            {"name": name, "labels": labels, "recall": recall.get(name)}
            for name, labels in status.pop("per_class").items()
        ],
        "annotators": list(status.pop("per_annotator").items()),
        "status": status,
        "numbers": numbers,
        "confused": confused[:_MOST_CONFUSED],
        "disputes": disputes,
    }


def list_doubts(directory: Path) -> dict[str, Any]:
    """Labels to look at again, for JSON.

    Returns:
        `doubts`: the first by item, its name, the class it has and the one suggested; `found`: how
        many there are, `labels`: of how many.

    Raises:
        InputError: too few labels to judge them.
    """
    from fastbadge.label.audit import find_doubts

    found, labels = find_doubts(directory)
    doubts = [
        {
            "item": doubt.item,
            "name": read_item(directory, doubt.item).name,
            "label": doubt.label,
            "suggested": doubt.suggested,
        }
        for doubt in found[:_MOST_DOUBTS]
    ]
    return {"doubts": doubts, "found": len(found), "labels": labels}


def _answer(directory: Path, order: str) -> dict[str, Any]:
    from fastbadge.label.rounds import advance

    try:
        if order == "audit":
            return list_doubts(directory)
        batch = advance(directory) if order == "advance" else None
        return {"batch": batch, "summary": summarise(directory)}
    except FastbadgeError as error:
        return {"error": str(error)}


def main() -> None:
    """Do as the lines of the input say until it ends."""
    directory = Path(sys.argv[1])
    try:
        for line in sys.stdin:
            print(json.dumps(_answer(directory, line.strip())), flush=True)
    except BrokenPipeError:
        # The server was killed. Python flushes once more when it ends: give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
