"""Reading a source into a project: items, and the features of each, in one pass."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastbadge.errors import InputError, ProjectError
from fastbadge.label.features import (
    FILE_NAME,
    append_features,
    as_float32,
    keep_features,
    maker,
    replace_features,
    tfidf,
)
from fastbadge.label.project import (
    Config,
    Found,
    Item,
    add_items,
    checked_name,
    create_project,
    is_made,
    make_directory,
    read_config,
    read_items,
    update_items,
)
from fastbadge.label.sources import Piece, Skipped, Source, open_source, read_features, reason_of
from fastbadge.lock import held
from fastbadge.progress import progress_bar

_Make: TypeAlias = Callable[[Sequence[Piece]], NDArray[np.float32]]

# So many items are read at a time, of large files fewer: two waits for the disk each time.
_CHUNK = 2048
_CHUNK_BYTES = 64 << 20


@dataclass(slots=True)
class Report:
    """What reading a source did.

    Args:
        added: new items.
        moved: items found under another name, or in another row.
        missing: names of items that the source no longer has.
        back: items that were missing and are there again.
        repeated: texts that the table holds more than once; they are one item.
        skipped: what is no item, and why.
    """

    added: int = 0
    moved: int = 0
    missing: list[str] = field(default_factory=list)
    back: int = 0
    repeated: int = 0
    skipped: list[Skipped] = field(default_factory=list)


def init_project(
    directory: Path, config: Config, classes: Sequence[str], *, progress: bool | None = None
) -> Report:
    """Make a project of a source, or bring one up to date with its source.

    Items are told by their content: a file that was renamed is the item it was, a file whose
    content changed is another item. Memory is that of some hundred files, or of all texts; a killed
    call goes on where it stopped.

    Args:
        directory: of the project, made if it is not there.
        config: of the project; of one that is there, the same, but for a source that was moved.
        classes: names in the order of the page.
        progress: whether to show how far it is; by default on a terminal only.

    Raises:
        InputError: a source that cannot be read, or that has nothing to label.
        ProjectError: another project in the directory, or another call at work on it.
    """
    with _alone(directory):
        return _init_project(directory, config, classes, progress)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep other calls away from the features and items; clicks and rounds go on.

    A directory that was made for a call which is refused goes again.
    """
    made = [each for each in (directory, *directory.parents) if not os.path.lexists(each)]
    make_directory(directory)
    taken = f"another label init is reading into {directory}; wait until it ends"
    with held(directory, taken, ProjectError):
        try:
            yield
        finally:
            with suppress(OSError):  # it is not empty
                for each in made:
                    each.rmdir()


def _init_project(
    directory: Path, config: Config, classes: Sequence[str], progress: bool | None
) -> Report:
    for name in classes:
        checked_name(name, "class")
    source = open_source(config)
    make = None if config.features == "tfidf" else _maker(config, source)
    create = partial(create_project, directory, config, classes)
    known = _taken_up(directory, config, classes, source)
    report = Report(repeated=source.repeated, skipped=source.skipped)
    rows = keep_features(directory, len(known))
    if rows < len(known) and make is None:
        replace_features(directory, tfidf([item.text or "" for item in known]))
        rows = len(known)
    adder = _Adder(directory, known, rows, create, make, report)
    with progress_bar(len(known) - rows, "making again", source.unit, show=progress) as advance:
        for lost in _lost(known[rows:], source, config):
            adder.add(lost)
            advance(1)
        adder.flush()

    digests = {item.digest for item in known}
    positions: list[int] = []
    found: list[Found] = []
    with progress_bar(len(source.names), "reading", source.unit, show=progress) as advance:
        for i in range(len(source.names)):
            piece = _read(source, i, report)
            if piece and piece.found.digest not in digests:
                adder.add(piece)
            elif piece:
                positions.append(i)
                found.append(piece.found)
            advance(1)
    # Only now is it known which items are where they were, and so what is one more copy.
    name_of, copies = reconcile(known, found)
    for j in copies:
        if piece := _read(source, positions[j], report):
            adder.add(piece)
    adder.flush()
    if not known and not report.added:
        first = report.skipped[0]
        raise InputError(
            f"none of the {len(source.names):,} {source.unit} in {config.source} can be used; "
            f"left out first: {first.name} ({first.reason})"
        )
    _update(directory, config, known, name_of, report)
    return report


def _taken_up(
    directory: Path, config: Config, classes: Sequence[str], source: Source
) -> list[Item]:
    """The items of the project that is there; none if there is no project yet."""
    if not is_made(directory):
        if (directory / FILE_NAME).exists():
            raise ProjectError(
                f"{directory} has no project but a {FILE_NAME}, which would be written over; pass "
                "another --project"
            )
        return []
    known, recorded = read_items(directory), read_config(directory)
    moved = _has_moved(recorded, config, known, source)
    create_project(directory, recorded if moved else config, classes)
    if config.kind == "features":
        _check_rows(known, source, config.source)
    return known


def reconcile(known: Sequence[Item], found: Sequence[Found]) -> tuple[dict[int, str], list[int]]:
    """Which of the items known before are what was found.

    An item is where it was, if its content still is; else wherever its content is. The first go
    before the second: names may have gone round in a ring.

    Returns:
        Names of the items that are there, by their ids, and the positions of the rest in `found`.

    >>> known = [Item(1, "a", None, False, "x"), Item(2, "b", None, False, "y")]
    >>> reconcile(known, [Found("y", "a"), Found("x", "b"), Found("x", "c"), Found("z", "d")])
    ({2: 'a', 1: 'b'}, [2, 3])
    """
    id_of = {(item.name, item.digest): item.id for item in known}
    ids = [id_of.get((each.name, each.digest)) for each in found]
    name_of = {id: each.name for id, each in zip(ids, found, strict=True) if id is not None}
    free: dict[str, list[int]] = {}
    for item in reversed(known):  # so that the oldest is found first
        if item.id not in name_of:
            free.setdefault(item.digest, []).append(item.id)
    rest = []
    for i, each in enumerate(found):
        if ids[i] is None and free.get(each.digest):
            name_of[free[each.digest].pop()] = each.name
        elif ids[i] is None:
            rest.append(i)
    return name_of, rest


def _update(
    directory: Path,
    config: Config,
    known: Sequence[Item],
    name_of: Mapping[int, str],
    report: Report,
) -> None:
    """Note what became of the items known, of which those with a name are there."""
    unread = tuple(f"{each.name.rstrip('/')}/" for each in report.skipped if each.unread)
    there = [item for item in known if item.id in name_of]
    gone = [
        item
        for item in known
        if not (item.id in name_of or item.missing or f"{item.name}/".startswith(unread))
    ]
    renamed = {item.id: name_of[item.id] for item in there if name_of[item.id] != item.name}
    back = [item.id for item in there if item.missing]
    update_items(
        directory,
        renamed=renamed,
        missing=[item.id for item in gone],
        back=back,
        source=config.source,
    )
    report.moved, report.back = len(renamed), len(back)
    report.missing = [item.name for item in gone]


class _Adder:
    """Adds what is new, some thousand at a time; without a maker, by TF-IDF, all at once.

    The features of an item are on the disk before it is committed, so it has them whenever the
    process is killed. Before the first there is no project: nothing is left of a call that finds
    none, whose configuration may be wrong.
    """

    def __init__(
        self,
        directory: Path,
        known: Sequence[Item],
        rows: int,
        create: Callable[[], None],
        make: _Make | None,
        report: Report,
    ) -> None:
        """Behind the first rows of features; while there are fewer of them, for the items known."""
        self.directory, self.known, self.rows, self.create = directory, known, rows, create
        self.make, self.report = make, report
        self.pieces: list[Piece] = []
        self.size = 0

    def add(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.size += len(piece.content or "")
        if self.make and (len(self.pieces) == _CHUNK or self.size > _CHUNK_BYTES):
            self.flush()

    def flush(self) -> None:
        if not self.pieces:
            return
        new = self.rows >= len(self.known)  # else their rows are made again
        if self.make:
            features, found, skipped = _made(self.make, self.pieces)
            write: Callable[..., None] = partial(append_features, rows=self.rows)
        else:
            found, skipped = [piece.found for piece in self.pieces], []
            texts = [
                *(item.text or "" for item in self.known),
                *(each.text or "" for each in found),
            ]
            features = [tfidf(texts)]
            write = replace_features
        if skipped and not new:
            raise _cannot_remake(skipped[0].name, skipped[0].reason)
        if found:
            if not (self.rows or self.known):
                self.create()
            write(self.directory, np.concatenate(features))
            self.rows += len(found)
        if found and new:
            add_items(self.directory, found, first=self.rows - len(found) + 1)
            self.report.added += len(found)
        self.report.skipped += skipped
        self.pieces, self.size = [], 0


def _has_moved(recorded: Config, config: Config, known: Sequence[Item], source: Source) -> bool:
    """Whether a source is that of the project in another place: one of its items will do."""
    if replace(recorded, source=config.source) != config or Path(recorded.source).exists():
        return False
    digests = {item.digest for item in known}
    return any(found.digest in digests for _, found in _readable(source))


def _readable(source: Source) -> Iterator[tuple[int, Found]]:
    """All that can be read, with its position."""
    for i in range(len(source.names)):
        with suppress(OSError, InputError):
            yield i, source.read(i).found


def _lost(items: Sequence[Item], source: Source, config: Config) -> Iterator[Piece]:
    """What the features of some items were made of, wherever it is in the source."""
    of_place: dict[tuple[str, str], int] = {}
    of_digest: dict[str, int] = {}
    for i, found in _readable(source) if items else ():
        of_place[found.name, found.digest] = of_digest[found.digest] = i
    positions = [
        of_place.get((item.name, item.digest), of_digest.get(item.digest)) for item in items
    ]
    kept = config.kind == "texts" and not config.features.endswith(".npy")  # in the project
    if None in positions and not kept:  # before the first is made
        name = items[positions.index(None)].name
        raise _cannot_remake(name, f"it is no longer in {config.source}")
    for item, position in zip(items, positions, strict=True):
        if position is None:
            yield Piece(Found(item.digest, item.name), item.text, 0)
            continue
        piece = source.read(position)
        if piece.found.digest != item.digest:
            raise _cannot_remake(item.name, "it has just changed")
        yield piece


def _cannot_remake(name: str, reason: str) -> ProjectError:
    return ProjectError(
        f"{FILE_NAME} has lost the features of {name}, which cannot be made again ({reason}); "
        "restore it, or export the labels and import them into a new project of the source"
    )


def _read(source: Source, i: int, report: Report) -> Piece | None:
    """What is there; None if it cannot be read."""
    try:
        return source.read(i)
    except (OSError, InputError) as error:
        unread = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        report.skipped.append(Skipped(source.names[i], reason_of(error), unread))
        return None


def _maker(config: Config, source: Source) -> _Make:
    """What makes features of what was read: of the contents, or rows that are given for them."""
    given = config.source if config.kind == "features" else config.features
    if config.kind != "features" and not given.endswith(".npy"):
        make = maker(given)
        return lambda pieces: make([piece.content for piece in pieces])
    feature_ND = read_features(Path(given))
    many = len(feature_ND)
    if config.kind == "images" and many != source.rows:
        raise InputError(
            f"{given} has {many} rows for {source.rows} images; expected one for each, in the "
            "order of their paths"
        )
    if many < source.rows:
        raise InputError(
            f"{given} has {many} rows but the table at least {source.rows}; expected one for each"
        )
    for start in range(0, many, _CHUNK):
        finite_B = np.isfinite(as_float32(feature_ND[start : start + _CHUNK])).all(axis=1)
        if not finite_B.all():
            row = start + int(finite_B.argmin())
            whose = f", that of {source.names[row]}" if config.kind == "images" else ""
            raise InputError(f"{given} has NaN or inf in row {row}{whose}; expected finite numbers")
    return lambda pieces: as_float32(feature_ND[[piece.row for piece in pieces]])


def _check_rows(known: Sequence[Item], source: Source, path: str) -> None:
    """Rows of features are told by their number: later ones may be appended to the file."""
    if len(known) > len(source.names):
        raise InputError(
            f"{path} has {len(source.names)} rows but the project {len(known)} items; "
            "expected the same file, or one with rows appended"
        )
    for i, item in enumerate(known):
        if source.read(i).found.digest != item.digest:
            raise InputError(
                f"{path} has other numbers in row {i} than when it was read; expected the same "
                "file, or one with rows appended"
            )


def _made(
    make: _Make, pieces: Sequence[Piece]
) -> tuple[list[NDArray[np.float32]], list[Found], list[Skipped]]:
    """Features and whose they are; item by item where one of them cannot be made."""
    try:
        feature_BD = make(pieces)
    except InputError as error:
        if len(pieces) == 1:
            return [], [], [Skipped(pieces[0].found.name, str(error))]
    else:
        bad = np.flatnonzero(~np.isfinite(feature_BD).all(axis=1)).tolist()
        skipped = [Skipped(pieces[i].found.name, "its features have NaN or inf") for i in bad]
        return (
            [np.delete(feature_BD, bad, axis=0)],
            [piece.found for i, piece in enumerate(pieces) if i not in bad],
            skipped,
        )
    middle = len(pieces) // 2
    one, two = _made(make, pieces[:middle]), _made(make, pieces[middle:])
    return one[0] + two[0], one[1] + two[1], one[2] + two[2]
