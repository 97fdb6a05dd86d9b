"""A labelling project: items, classes, batches, models. One SQLite file, one transaction a call.

Every function takes the project's directory, opens the file, does one thing and has committed it
when it returns; so threads and processes may call them as they like, and kill -9 loses only what
has not returned. Clicks are in `clicks`.
"""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from fastbadge.errors import InputError, ProjectError
from fastbadge.label.schema import FILE, FILE_NAME, connected
from fastbadge.sqlitefile import is_empty, now_utc

Kind: TypeAlias = Literal["images", "texts", "features"]

Arrays: TypeAlias = Mapping[str, NDArray[Any]]

_LONGEST_NAME = 100
# What str.isprintable refuses though names have it: the spaces of macOS's screenshots and of
# Japanese, and what Persian puts between letters, Hindi and families of emoji to join them.
_ALSO_PRINTABLE = dict.fromkeys(map(ord, "\u00a0\u202f\u3000"), " ") | dict.fromkeys(
    map(ord, "\u200c\u200d"), ""
)
_ITEM = "id, name, text, missing, digest"


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What a project is about, fixed when it is made.

    Args:
        kind: what the items are.
        source: absolute path of the folder of images, the table of texts or the .npy file.
        text_column: of the table; "" for other kinds.
        features: how they are made, see `features.maker`.
        strategy: a name of the registry, for all batches but the first.
        batch: how many items a round chooses.
        share: of every batch that is drawn uniformly and used for validation alone.
        overlap: how many annotators answer each item.
        seed: of everything that is drawn.
        hidden: width of the head's hidden layer; 0 for a linear head.
    """

    kind: Kind
    source: str
    features: str
    text_column: str = ""
    strategy: str = "badge"
    batch: int = 20
    share: float = 0.15
    overlap: int = 1
    seed: int = 0
    hidden: int = 128

    def __post_init__(self) -> None:
        """Refuse what no project could be run with."""
        if self.kind not in get_args(Kind):
            raise InputError(f"kind is {self.kind!r}; expected one of {', '.join(get_args(Kind))}")
        for name, least in (("batch", 1), ("overlap", 1), ("seed", 0), ("hidden", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if not 0 <= self.share < 1:
            raise InputError(f"share is {self.share}; expected 0 to less than 1, such as 0.15")


@dataclass(frozen=True, slots=True)
class Found:
    """Something in the source: SHA-256 of its content, its name, and the text if it is one."""

    digest: str
    name: str
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """Something to be labelled.

    Args:
        id: from 1, stable for ever; its features are row id - 1.
        name: path below the source with forward slashes, or number of the row from 0.
        text: where items are texts.
        missing: whether it was not in the source when that was last read.
        digest: SHA-256 of its content.
    """

    id: int
    name: str
    text: str | None
    missing: bool
    digest: str


@dataclass(frozen=True, slots=True)
class Pick:
    """An item of a batch, and why it is there.

    Args:
        item: its id.
        reason: the strategy, or "validation".
        gradient_norm: of its gradient embedding, by the model that chose it; as the next two, None
            where there was no model.
        predicted: id of the class that the model predicted.
        confidence: and the probability it gave to that.
    """

    item: int
    reason: str
    gradient_norm: float | None = None
    predicted: int | None = None
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class ModelState:
    """A trained head, as recorded.

    Args:
        labels: how many items it was trained on.
        correct: of the validation slice as it was then.
        total: size of that slice.
        seconds: wall time of training and query.
        guesses: arrays `item` and `class`, ids: what it predicted for the reserve.
    """

    labels: int
    correct: int
    total: int
    seconds: float
    guesses: Arrays


@dataclass(frozen=True, eq=False, slots=True)
class Snapshot:
    """The project at one moment, as arrays over its N items in order of their ids 1 to N.

    Args:
        config: of the project.
        classes: names by id, in the order of the page.
        last_batch: id of the latest batch; 0 before the first.
        missing_N: no longer in the source.
        reserved_N: for validation alone.
        ticket_N: float64, the order in which validation items are drawn.
        batched_N: in a batch already.
        answered_N: with an answer that stands, "cannot tell" included.
        class_N: id of the class settled on; 0 for none.
        last_labels: what the latest model was trained on; 0 before the first.
    """

    config: Config
    classes: dict[int, str]
    last_batch: int
    missing_N: NDArray[np.bool_]
    reserved_N: NDArray[np.bool_]
    ticket_N: NDArray[np.float64]
    batched_N: NDArray[np.bool_]
    answered_N: NDArray[np.bool_]
    class_N: NDArray[np.int64]
    last_labels: int


@dataclass(frozen=True, slots=True)
class Status:
    """What a project holds, for people.

    Args:
        items: how many.
        missing: of these no longer in the source.
        batches: how many were chosen.
        waiting: items of batches that still want an answer.
        labelled: items with a class.
        cannot_tell: items that were answered, but have no class, as most could not tell.
        disputed: items on which annotators differ, "cannot tell" included; the majority, then the
            latest word, counts.
        per_class: labelled items by name of class, in the order of the page.
        per_annotator: answers that stand, by annotator.
    """

    items: int
    missing: int
    batches: int
    waiting: int
    labelled: int
    cannot_tell: int
    disputed: int
    per_class: dict[str, int]
    per_annotator: dict[str, int]


def create_project(directory: Path, config: Config, classes: Sequence[str]) -> None:
    """Make a project, or take up the one that is there; classes it lacks are added.

    Args:
        directory: made if it is not there, with its parents.
        config: must be that of a project that is there.
        classes: names in the order of the page; none to leave those of the project as they are.

    Raises:
        ProjectError: another configuration (the message shows the difference), or as `connected`.
        InputError: a name of a class that cannot be one.
    """
    directory = Path(directory)
    names = [checked_name(name, "class") for name in classes]
    make_directory(directory)
    with FILE.creation(directory / FILE_NAME) as (connection, new):
        if new:
            connection.execute(
                "INSERT INTO project (id, config, created) VALUES (1, ?, ?)",
                (json.dumps(asdict(config)), now_utc()),
            )
        else:
            recorded = config_in(connection, directory)
            if recorded != config:
                raise ProjectError(f"{directory} {_difference(recorded, config)}")
        _add_classes(connection, names)


def make_directory(directory: Path) -> None:
    """Make the directory of a project, with its parents, if it is not there."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProjectError(
            f"{directory} cannot be made a project: {error.strerror}; pass another --project"
        ) from error


def is_made(directory: Path) -> bool:
    """Whether there is a project; a process killed before its first commit leaves a file only."""
    path = Path(directory) / FILE_NAME
    if not path.exists():
        return False
    with FILE.connection(path) as connection:
        return not is_empty(connection)


def read_config(directory: Path) -> Config:
    """The configuration of a project."""
    with connected(directory) as connection:
        return config_in(connection, Path(directory))


def read_classes(directory: Path) -> dict[int, str]:
    """Names of the classes by id, in the order of the page."""
    with connected(directory) as connection:
        return _classes(connection)


def add_class(directory: Path, name: str) -> int:
    """The id of the class of that name, which is added behind the others if it is not there."""
    name = checked_name(name, "class")
    with connected(directory, write=True) as connection:
        _add_classes(connection, [name])
        (found,) = connection.execute("SELECT id FROM class WHERE name = ?", (name,)).fetchone()
    return int(found)


def read_item(directory: Path, item: int) -> Item:
    """One item.

    Raises:
        InputError: no such item.
    """
    with connected(directory) as connection:
        return item_in(connection, item)


def item_in(connection: sqlite3.Connection, item: int) -> Item:
    """`read_item` in a transaction that is open."""
    found = None
    if 0 < item < 2**63:  # what SQLite holds
        found = connection.execute(f"SELECT {_ITEM} FROM item WHERE id = ?", (item,)).fetchone()
    if found is None:
        raise InputError(f"item {item} is not in the project")
    return _as_item(found)


def read_items(directory: Path) -> list[Item]:
    """All items in order of their ids."""
    with connected(directory) as connection:
        return [
            _as_item(row) for row in connection.execute(f"SELECT {_ITEM} FROM item ORDER BY id")
        ]


def _as_item(row: tuple[Any, ...]) -> Item:
    id, name, text, missing, digest = row
    return Item(id, name, text, bool(missing), digest)


def count_items(directory: Path) -> int:
    """How many items there are, missing ones included."""
    with connected(directory) as connection:
        return _count(connection)


def add_items(directory: Path, found: Sequence[Found], *, first: int) -> None:
    """Append items; the first gets the id `first`, which must be the next one that is free.

    Each draws its ticket here, and with it whether it is reserved for validation.

    Raises:
        ProjectError: `first` is taken: two read at a time, where there are no locks.
    """
    with connected(directory, write=True) as connection:
        if _count(connection) + 1 != first:
            raise ProjectError(
                f"{directory} has got items from elsewhere meanwhile; run this command again"
            )
        config = config_in(connection, Path(directory))
        tickets = [_ticket(config.seed, new.digest) for new in found]
        connection.executemany(
            "INSERT INTO item (id, digest, name, text, ticket, reserved, missing, added) "
            "VALUES (?, ?, ?, ?, ?, ?, 0, ?)",
            (
                (
                    first + i,
                    new.digest,
                    new.name,
                    new.text,
                    ticket,
                    ticket < config.share,
                    now_utc(),
                )
                for i, (new, ticket) in enumerate(zip(found, tickets, strict=True))
            ),
        )


def update_items(
    directory: Path,
    *,
    renamed: Mapping[int, str] | None = None,
    missing: Collection[int] = (),
    back: Collection[int] = (),
    source: str | None = None,
) -> None:
    """Note what became of items: another name, gone from the source, there again; and of that."""
    with connected(directory, write=True) as connection:
        if source is not None:
            config = replace(config_in(connection, directory), source=source)
            connection.execute("UPDATE project SET config = ?", (json.dumps(asdict(config)),))
        connection.executemany(
            "UPDATE item SET name = ? WHERE id = ?",
            ((name, item) for item, name in (renamed or {}).items()),
        )
        for flag, items in ((1, missing), (0, back)):
            connection.executemany(
                "UPDATE item SET missing = ? WHERE id = ?", ((flag, item) for item in items)
            )


def take_snapshot(directory: Path) -> Snapshot:
    """All that a round needs to know, of one moment."""
    with connected(directory) as connection:
        config = config_in(connection, Path(directory))
        rows = connection.execute("SELECT missing, reserved, ticket FROM item ORDER BY id")
        item_N3 = np.array(rows.fetchall(), dtype=np.float64).reshape(-1, 3)
        batched = _ids(connection, "SELECT item FROM batch_item")
        answered = _ids(connection, "SELECT DISTINCT item FROM answer")
        settled = connection.execute("SELECT item, class FROM settled").fetchall()
        (last_batch,) = connection.execute("SELECT coalesce(max(id), 0) FROM batch").fetchone()
        (last_labels,) = connection.execute(
            "SELECT coalesce((SELECT labels FROM model ORDER BY id DESC LIMIT 1), 0)"
        ).fetchone()
        classes = _classes(connection)
    N = len(item_N3)
    class_N = np.zeros(N, dtype=np.int64)
    if settled:
        item_L, class_L = np.array(settled).T
        class_N[item_L - 1] = class_L
    batched_N, answered_N = np.zeros(N, dtype=bool), np.zeros(N, dtype=bool)
    batched_N[batched - 1] = True
    answered_N[answered - 1] = True
    return Snapshot(
        config,
        classes,
        last_batch,
        item_N3[:, 0] == 1,
        item_N3[:, 1] == 1,
        item_N3[:, 2],
        batched_N,
        answered_N,
        class_N,
        last_labels,
    )


def record_round(
    directory: Path,
    picks: Sequence[Pick],
    *,
    strategy: str,
    seed: int,
    model: ModelState | None,
    weights: Arrays | None = None,
    after: int,
) -> int | None:
    """Record a batch and the model that chose it, both or neither.

    Args:
        directory: of the project.
        picks: in the order in which they are to be handed out; may be none.
        strategy: that chose those which are not for validation.
        seed: of its choice.
        model: None before there are labels.
        weights: of the model; those of earlier ones are dropped, a head of 128 takes 0.4 MB.
        after: `last_batch` of the snapshot it was chosen from.

    Returns:
        The id of the batch; None where another process has recorded one since the snapshot, and
        then nothing is recorded.
    """
    with connected(directory, write=True) as connection:
        (last,) = connection.execute("SELECT coalesce(max(id), 0) FROM batch").fetchone()
        if last != after:
            return None
        model_id = None
        if model is not None:
            connection.execute("UPDATE model SET weights = NULL")
            model_id = connection.execute(
                "INSERT INTO model (labels, correct, total, seconds, guesses, weights, created) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    model.labels,
                    model.correct,
                    model.total,
                    model.seconds,
                    as_npz(model.guesses),
                    as_npz(weights or {}),
                    now_utc(),
                ),
            ).lastrowid
        batch = connection.execute(
            "INSERT INTO batch (strategy, seed, model, created) VALUES (?, ?, ?, ?)",
            (strategy, seed, model_id, now_utc()),
        ).lastrowid
        connection.executemany(
            "INSERT INTO batch_item (item, batch, position, reason, gradient_norm, predicted, "
            "confidence, done) VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
            (
                (p.item, batch, i, p.reason, p.gradient_norm, p.predicted, p.confidence)
                for i, p in enumerate(picks)
            ),
        )
        overlap = config_in(connection, Path(directory)).overlap
        for pick in picks:  # one may have been imported with its label
            settle(connection, pick.item, overlap)
    return batch


def read_models(directory: Path) -> list[ModelState]:
    """All recorded models, oldest first."""
    with connected(directory) as connection:
        rows = connection.execute(
            "SELECT labels, correct, total, seconds, guesses FROM model ORDER BY id"
        ).fetchall()
    return [
        ModelState(labels, correct, total, seconds, _of_npz(guesses))
        for labels, correct, total, seconds, guesses in rows
    ]


def read_weights(directory: Path) -> Arrays | None:
    """The weights of the latest model, see `head.Head`; None before there is one."""
    with connected(directory) as connection:
        found = connection.execute("SELECT weights FROM model ORDER BY id DESC LIMIT 1").fetchone()
    return None if found is None else _of_npz(found[0])


def read_pick(directory: Path, item: int) -> Pick | None:
    """Why an item is in a batch, and the model's guess at the time; None where it is in none.

    The guess biases who sees it: show it to people who ask for it.
    """
    with connected(directory) as connection:
        row = connection.execute(
            "SELECT item, reason, gradient_norm, predicted, confidence FROM batch_item "
            "WHERE item = ?",
            (item,),
        ).fetchone()
    return None if row is None else Pick(*row)


def count_waiting(directory: Path) -> int:
    """Items of batches that still want an answer: few enough is when to call `rounds.advance`."""
    with connected(directory) as connection:
        return _waiting(connection)


def read_status(directory: Path) -> Status:
    """How far the labelling is."""
    with connected(directory) as connection:
        one = connection.execute
        counts = dict(one("SELECT class, count(*) FROM settled GROUP BY class"))
        labelled = sum(counts.values())
        (answered,) = one("SELECT count(DISTINCT item) FROM answer").fetchone()
        return Status(
            items=_count(connection),
            missing=one("SELECT count(*) FROM item WHERE missing = 1").fetchone()[0],
            batches=one("SELECT count(*) FROM batch").fetchone()[0],
            waiting=_waiting(connection),
            labelled=labelled,
            cannot_tell=answered - labelled,
            disputed=one("SELECT count(*) FROM disputed").fetchone()[0],
            per_class={name: counts.get(id, 0) for id, name in _classes(connection).items()},
            per_annotator=dict(
                one("SELECT annotator, count(*) FROM answer GROUP BY annotator ORDER BY annotator")
            ),
        )


def read_disputes(directory: Path) -> dict[int, dict[str, int | None]]:
    """What each says of the items on which they differ: class or None by annotator."""
    with connected(directory) as connection:
        rows = connection.execute(
            "SELECT item, annotator, class FROM answer WHERE item IN disputed "
            "ORDER BY item, annotator"
        )
        disputes: dict[int, dict[str, int | None]] = {}
        for item, annotator, label in rows:
            disputes.setdefault(item, {})[annotator] = label
    return disputes


def settle(connection: sqlite3.Connection, item: int, overlap: int) -> None:
    """Note whether an item of a batch has the answers it wants, in a transaction that is open."""
    connection.execute(
        "UPDATE batch_item SET done = (SELECT count(*) FROM answer WHERE item = ?1) >= ?2 "
        "WHERE item = ?1",
        (item, overlap),
    )


def config_in(connection: sqlite3.Connection, directory: Path) -> Config:
    """`read_config` in a transaction that is open."""
    found = connection.execute("SELECT config FROM project").fetchone()
    try:
        return Config(**json.loads(found[0]))
    except (TypeError, ValueError, InputError) as error:
        raise ProjectError(f"{directory} holds no readable configuration: {error}") from error


def _difference(recorded: Config, config: Config) -> str:
    names = [
        field.name
        for field in fields(Config)
        if getattr(recorded, field.name) != getattr(config, field.name)
    ]
    changed = ", ".join(
        f"{name} {getattr(recorded, name)!r} -> {getattr(config, name)!r}" for name in names
    )
    moved = "; a source that moved must hold an item of the project and be gone from its old place"
    return (
        f"holds a project of another configuration ({changed}); pass its settings or another "
        f"--project{moved if names == ['source'] else ''}"
    )


def _classes(connection: sqlite3.Connection) -> dict[int, str]:
    return dict(connection.execute("SELECT id, name FROM class ORDER BY position"))


def _add_classes(connection: sqlite3.Connection, names: Sequence[str]) -> None:
    connection.executemany(
        "INSERT INTO class (name, position) VALUES (?, (SELECT count(*) FROM class)) "
        "ON CONFLICT DO NOTHING",
        ((name,) for name in names),
    )


def is_printable(name: str) -> bool:
    """Whether there is something to see in a name, and nothing that ends or turns a line."""
    plain = name.translate(_ALSO_PRINTABLE)
    return plain.isprintable() and not plain.isspace() and plain != ""


def checked_name(name: str, what: str) -> str:
    """The name without white space around it; an InputError for what cannot be one."""
    name = name.strip()
    if len(name) > _LONGEST_NAME or not is_printable(name):
        raise InputError(
            f"{what} is {name[:_LONGEST_NAME]!r}; expected 1 to {_LONGEST_NAME} printable "
            "characters"
        )
    return name


def _count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT coalesce(max(id), 0) FROM item").fetchone()[0])


def _waiting(connection: sqlite3.Connection) -> int:
    waiting = connection.execute(
        "SELECT count(*) FROM batch_item JOIN item ON item.id = batch_item.item "
        "WHERE done = 0 AND missing = 0"
    )
    return int(waiting.fetchone()[0])


def _ids(connection: sqlite3.Connection, query: str) -> NDArray[np.int64]:
    return np.array(connection.execute(query).fetchall(), dtype=np.int64).reshape(-1)


def _ticket(seed: int, digest: str) -> float:
    """53 random bits, as a number in [0, 1)."""
    # Of the content, not of the id: copies come to one side, or the model would have learned by
    # heart what it is then measured on.
    return (int.from_bytes(sha256(f"{seed}/{digest}".encode()).digest()[:8]) >> 11) / 2**53


def as_npz(arrays: Arrays) -> bytes:
    """Arrays as the content of an .npz file, without pickle."""
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _of_npz(content: bytes) -> dict[str, NDArray[Any]]:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)
