"""What annotators do: take items, label, skip, take back. Each call is one committed transaction.

A click carries a `request`, a name that the browser made up for it (a UUID): sent twice, it counts
once. Nothing is ever removed; what was taken back is marked so.
"""

from __future__ import annotations

import math
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Literal, TypeAlias

from fastbadge.errors import InputError
from fastbadge.label.project import (
    Item,
    checked_name,
    config_in,
    item_in,
    settle,
)
from fastbadge.label.schema import connected
from fastbadge.sqlitefile import now_utc

ClickKind: TypeAlias = Literal["label", "cannot tell", "skip"]

LEASE_SECONDS = 600.0
_LONGEST_SECONDS = 86_400.0
# How many besides me have an item, answered or on the screen.
_OTHERS = """(
    SELECT count(*) FROM (
        SELECT annotator FROM answer WHERE answer.item = {item}
        UNION SELECT annotator FROM assignment WHERE assignment.item = {item}
    ) WHERE annotator <> :me
)"""


@dataclass(frozen=True, slots=True)
class Click:
    """A click as it was recorded.

    Args:
        id: from 1, in order of recording.
        item: id.
        annotator: who.
        kind: "label", "cannot tell" (an answer, without a class), or "skip" (none).
        label: id of the class; None for the other kinds.
        request: its name; None for what was imported.
    """

    id: int
    item: int
    annotator: str
    kind: ClickKind
    label: int | None
    request: str | None


def next_items(
    directory: Path, annotator: str, n: int = 1, *, lease_seconds: float = LEASE_SECONDS
) -> list[Item]:
    """The next n items for an annotator, theirs until the lease expires.

    In the order of the batches; what the annotator skipped comes last. No item is given to more
    annotators at a time than the project's overlap, and those who have answered count. Who asks
    again (a page reloaded) gets the same items, and their leases anew. Whether an item is for
    validation is not told, since it should be labelled like any other.

    Returns:
        Up to n items; none where nothing is left for this annotator at the moment.
    """
    annotator = checked_name(annotator, "annotator")
    if n < 1:
        raise InputError(f"n is {n}; expected at least 1")
    with connected(directory, write=True, durable=False) as connection:
        now = time()
        _end_leases(connection, now, max(lease_seconds, LEASE_SECONDS))
        rows = connection.execute(
            f"""
            SELECT b.item FROM batch_item AS b JOIN item ON item.id = b.item
            WHERE b.done = 0 AND item.missing = 0
                AND NOT EXISTS (
                    SELECT 1 FROM answer WHERE answer.item = b.item AND annotator = :me
                )
                AND :overlap > {_OTHERS.format(item="b.item")}
            ORDER BY (
                SELECT count(*) FROM label AS l WHERE l.item = b.item AND l.annotator = :me
                    AND l.undone IS NULL AND l.kind = 'skip'
            ), b.batch, b.position
            LIMIT :n
            """,
            {"me": annotator, "overlap": config_in(connection, directory).overlap, "n": n},
        ).fetchall()
        for (item,) in rows:
            _lease(connection, item, annotator, now + lease_seconds)
        return [item_in(connection, item) for (item,) in rows]


def record_label(
    directory: Path,
    item: int,
    label: int,
    annotator: str,
    *,
    request: str,
    seconds: float | None = None,
) -> Click:
    """Record that an annotator says the item is of a class; their latest word counts.

    A click that comes after its lease has expired is kept like any other: it is work done.

    Args:
        directory: of the project.
        item: its id.
        label: id of the class.
        annotator: who.
        request: a name for this click that no other has.
        seconds: that it took.

    Returns:
        The click; the one recorded before where `request` came before.

    Raises:
        InputError: no such item or class, a request that was another click's, a bad number.
    """
    return _record(directory, item, "label", label, annotator, request, seconds)


def record_cannot_tell(
    directory: Path, item: int, annotator: str, *, request: str, seconds: float | None = None
) -> Click:
    """Record that an annotator cannot tell: an answer, after which they are not asked again."""
    return _record(directory, item, "cannot tell", None, annotator, request, seconds)


def skip(
    directory: Path, item: int, annotator: str, *, request: str, seconds: float | None = None
) -> Click:
    """Record that an annotator passes an item by: it is open to others, to them after the rest.

    What they said of it before no longer counts, until the skip is taken back.
    """
    return _record(directory, item, "skip", None, annotator, request, seconds)


def undo(
    directory: Path, annotator: str | None = None, *, request: str, click: str | None = None
) -> Click | None:
    """Take back a click of an annotator (of anyone, for None) that stands.

    The item is the annotator's again, unless it is with others by now, as after a skip. Imported
    labels are no clicks.

    Args:
        directory: of the project.
        annotator: whose.
        request: a name for this call that no other has.
        click: the request of the click; None for the latest.

    Returns:
        What was taken back; the same again for the same request; None where there is nothing, as
        where the click was taken back before.
    """
    request = checked_name(request, "request")
    if annotator is not None:
        annotator = checked_name(annotator, "annotator")
    with connected(directory, write=True) as connection:
        before = _click(connection, "undo_request = ?", request)
        if before is not None:
            return before
        last = _click(
            connection,
            "request IS NOT NULL AND undone IS NULL AND (?1 IS NULL OR annotator = ?1) "
            "AND (?2 IS NULL OR request = ?2) ORDER BY id DESC LIMIT 1",
            annotator,
            click,
        )
        if last is None:
            return None
        connection.execute(
            "UPDATE label SET undone = ?, undo_request = ? WHERE id = ?",
            (now_utc(), request, last.id),
        )
        overlap = config_in(connection, directory).overlap
        settle(connection, last.item, overlap)
        now = time()
        _end_leases(connection, now, LEASE_SECONDS)
        (others,) = connection.execute(
            f"SELECT {_OTHERS.format(item=':item')}", {"item": last.item, "me": last.annotator}
        ).fetchone()
        if others < overlap:
            _lease(connection, last.item, last.annotator, now + LEASE_SECONDS)
        return last


def read_standing(directory: Path, item: int, annotator: str) -> tuple[Click | None, bool]:
    """The answer of an annotator on an item, if one stands, and whether the item is lent to them.

    Neither, where somebody else has it.
    """
    with connected(directory) as connection:
        answer = _click(
            connection,
            "id = (SELECT id FROM answer WHERE item = ? AND annotator = ?)",
            item,
            annotator,
        )
        (leases,) = connection.execute(
            "SELECT count(*) FROM assignment WHERE item = ? AND annotator = ? AND expires > ?",
            (item, annotator, time()),
        ).fetchone()
    return answer, leases > 0


def release(directory: Path, annotator: str) -> None:
    """Give back what an annotator has on the screen, as when they leave."""
    with connected(directory, write=True) as connection:
        connection.execute("DELETE FROM assignment WHERE annotator = ?", (annotator,))


def _record(
    directory: Path,
    item: int,
    kind: ClickKind,
    label: int | None,
    annotator: str,
    request: str,
    seconds: float | None,
) -> Click:
    annotator = checked_name(annotator, "annotator")
    request = checked_name(request, "request")
    if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
        raise InputError(f"seconds is {seconds}; expected a number of at least 0")
    if seconds is not None:
        seconds = min(float(seconds), _LONGEST_SECONDS)  # a page left open over night
    with connected(directory, write=True) as connection:
        before = _click(connection, "request = ?", request)
        if before is not None:
            if (before.item, before.annotator, before.kind, before.label) != (
                item,
                annotator,
                kind,
                label,
            ):
                raise InputError(f"request {request!r} was another click; make a new one for each")
            return before
        item_in(connection, item)
        if kind == "label" and not _is_class(connection, label):
            raise InputError(f"class {label} is not in the project")
        connection.execute(
            "INSERT INTO label (item, annotator, kind, class, batch, seconds, created, request) "
            "VALUES (?1, ?2, ?3, ?4, (SELECT batch FROM batch_item WHERE item = ?1), ?5, ?6, ?7)",
            (item, annotator, kind, label, seconds, now_utc(), request),
        )
        settle(connection, item, config_in(connection, directory).overlap)
        connection.execute(
            "DELETE FROM assignment WHERE item = ? AND annotator = ?", (item, annotator)
        )
        recorded = _click(connection, "request = ?", request)
    assert recorded is not None
    return recorded


def _click(connection: sqlite3.Connection, where: str, *values: str | int | None) -> Click | None:
    row = connection.execute(
        f"SELECT id, item, annotator, kind, class, request FROM label WHERE {where}", values
    ).fetchone()
    return None if row is None else Click(*row)


def _is_class(connection: sqlite3.Connection, label: int | None) -> bool:
    if label is None or not 0 < label < 2**63:
        return False
    found = connection.execute("SELECT 1 FROM class WHERE id = ?", (label,)).fetchone()
    return found is not None


def _lease(connection: sqlite3.Connection, item: int, annotator: str, expires: float) -> None:
    connection.execute(
        "INSERT INTO assignment (item, annotator, expires) VALUES (?, ?, ?) "
        "ON CONFLICT DO UPDATE SET expires = excluded.expires",
        (item, annotator, expires),
    )


def _end_leases(connection: sqlite3.Connection, now: float, longest_seconds: float) -> None:
    """Forget those that have expired, and what a clock that was wrong has lent out for years."""
    connection.execute(  # twice: a clock that was set back a little takes nothing from anybody
        "DELETE FROM assignment WHERE NOT expires BETWEEN ? AND ?", (now, now + 2 * longest_seconds)
    )
