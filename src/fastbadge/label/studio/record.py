"""What a project's file knows of Label Studio: which project there is ours, and whose word it took.

Each function is one committed transaction, as in `project`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from fastbadge.label.project import Pick, config_in, settle
from fastbadge.label.schema import connected
from fastbadge.label.studio.view import Answer
from fastbadge.sqlitefile import now_utc


@dataclass(frozen=True, slots=True)
class Link:
    """Our project in Label Studio.

    Args:
        marker: in its description, made up for it before it was made: a call that was killed
            between making it and noting it finds it again.
        project: its id there; None as long as that is not noted.
        created: when it was made, as told there.
    """

    marker: str
    project: int | None
    created: str | None


def begin_link(directory: Path, *, anew: bool) -> Link:
    """The link of a project, made if there is none or another is wanted."""
    with connected(directory, write=True) as connection:
        if anew:
            connection.execute("DELETE FROM studio")
        connection.execute(
            "INSERT INTO studio (id, marker) VALUES (1, ?) ON CONFLICT DO NOTHING",
            (f"fastbadge-{uuid4().hex}",),
        )
        return Link(*connection.execute("SELECT marker, project, created FROM studio").fetchone())


def complete_link(directory: Path, project: int, created: str) -> None:
    """Note which project there is ours."""
    with connected(directory, write=True) as connection:
        connection.execute("UPDATE studio SET project = ?, created = ?", (project, created))


def open_picks(directory: Path) -> list[Pick]:
    """What still wants an answer, in the order in which it was chosen."""
    with connected(directory) as connection:
        rows = connection.execute(
            "SELECT item, reason, gradient_norm, predicted, confidence FROM batch_item "
            "JOIN item ON item.id = batch_item.item WHERE done = 0 AND missing = 0 "
            "ORDER BY batch, position"
        ).fetchall()
    return [Pick(*row) for row in rows]


def take_answers(
    directory: Path, marker: str, tasks: Mapping[int, tuple[int, Sequence[Answer]]]
) -> int:
    """Make the labels that came from some tasks those that stand there now.

    An annotation that is new becomes a label; one that changed, another in place of the first; one
    that is gone takes its label back. What was taken already is left as it is, so that a call that
    is repeated changes nothing. Rows are not removed, as ever: what no longer holds is undone.

    Args:
        directory: of the project.
        marker: of the link.
        tasks: item and annotations by id of the task.

    Returns:
        How many annotations were new, changed or gone.
    """
    total = 0
    with connected(directory, write=True) as connection:
        overlap = config_in(connection, directory).overlap
        for task, (item, answers) in tasks.items():
            prefix = f"{marker}/{task}/"
            rows = connection.execute(
                "SELECT id, request, annotator, kind, class, undone FROM label "
                "WHERE request > ? AND request < ?",
                (prefix, prefix[:-1] + "0"),  # "0" comes after "/": the index is used
            ).fetchall()
            standing = {
                int(request.split("/")[2]): (id, said)
                for id, request, *said, undone in rows
                if undone is None
            }
            number, changed = len(rows), 0
            for answer in sorted(answers, key=lambda each: each.updated):
                id, said = standing.pop(answer.annotation, (None, None))
                if said == [answer.annotator, answer.kind, answer.label]:
                    continue
                changed += 1
                _undo(connection, id)
                connection.execute(
                    "INSERT INTO label "
                    "(item, annotator, kind, class, batch, seconds, created, request) VALUES "
                    "(?1, ?2, ?3, ?4, (SELECT batch FROM batch_item WHERE item = ?1), ?5, ?6, ?7)",
                    (
                        item,
                        answer.annotator,
                        answer.kind,
                        answer.label,
                        answer.seconds,
                        _as_utc(answer.updated),
                        f"{prefix}{answer.annotation}/{number}",
                    ),
                )
                number += 1
            for id, _ in standing.values():
                changed += 1
                _undo(connection, id)
            if changed:
                settle(connection, item, overlap)
            total += changed
    return total


def _undo(connection: sqlite3.Connection, label: int | None) -> None:
    connection.execute("UPDATE label SET undone = ? WHERE id = ?", (now_utc(), label))


def _as_utc(time: str) -> str:
    """A time of Label Studio as those of the file: in whole seconds."""
    return datetime.fromisoformat(time).astimezone(UTC).isoformat(timespec="seconds")
