"""Reading a source into a project: items, and the features of each, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastbadge.errors import InputError
from fastbadge.label.features import FeatureWriter, maker, replace_features, tfidf
from fastbadge.label.project import (
    Config,
    Found,
    Item,
    add_items,
    create_project,
    read_items,
    update_items,
)
from fastbadge.label.sources import (
    Skipped,
    digest_of,
    find_images,
    read_features,
    read_texts,
)
from fastbadge.progress import progress_bar

T = TypeVar("T")
_Read: TypeAlias = tuple[str, bytes, str]  # name, content and digest of a file

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
    content changed is another item. Memory is that of a few hundred items; a killed call goes on
    where it stopped. Only TF-IDF holds all texts at once.

    Args:
        directory: of the project, made if it is not there.
        config: of the project; of one that is there, the same.
        classes: names in the order of the page.
        progress: whether to show how far it is; by default on a terminal only.

    Raises:
        InputError: a source that cannot be read, or that has nothing to label.
        ProjectError: another project in the directory.
    """
    source = Path(config.source)
    if config.kind == "texts":
        texts = list(read_texts(source, config.text_column))
        if not texts:
            raise InputError(f"{source} has no text in column {config.text_column!r}")
        create_project(directory, config, classes)
        return _add_texts(directory, config, texts, progress)
    if config.kind == "features":
        feature_ND = read_features(source)
        create_project(directory, config, classes)
        return _add_rows(directory, source, feature_ND, progress)
    names, skipped = find_images(source)
    if not names:
        raise InputError(f"{source} has no images; expected files such as .png or .jpg")
    make = _maker_of_images(config.features, names)
    create_project(directory, config, classes)
    return _add_images(directory, source, names, skipped, make, progress)


def _add_images(
    directory: Path,
    source: Path,
    names: list[str],
    skipped: list[Skipped],
    make: Callable[[Sequence[_Read]], NDArray[np.float32]],
    progress: bool | None,
) -> Report:
    known = read_items(directory)
    exact = {(item.name, item.digest): item.id for item in known}
    by_digest: dict[str, list[int]] = {}
    for item in known:
        by_digest.setdefault(item.digest, []).append(item.id)
    report, seen = Report(skipped=skipped), set[int]()
    renamed: dict[int, str] = {}

    def new_files() -> Iterator[_Read]:
        elsewhere: list[tuple[str, str]] = []
        with progress_bar(len(names), "reading", "images", show=progress) as advance:
            for name in names:
                read = _read(source, name, report)
                if read and (id := exact.get((name, read[2]))):
                    seen.add(id)
                elif read and read[2] in by_digest:
                    elsewhere.append((name, read[2]))
                elif read:
                    yield read
                advance(1)
        # Only now is it known which items are where they were: names may have gone round in a ring.
        for name, digest in elsewhere:
            free = next((id for id in by_digest[digest] if id not in seen), None)
            if free is not None:
                seen.add(free)
                renamed[free] = name
            elif read := _read(source, name, report):
                yield read  # one more copy

    writer = FeatureWriter(directory, len(known))
    for chunk in _of_some_bytes(new_files()):
        features, found = _made(make, chunk, report)
        if found:
            _append(directory, writer, np.concatenate(features), found)
            report.added += len(found)
    if not known and not report.added:
        first = report.skipped[0]
        raise InputError(
            f"none of the {len(names):,} images in {source} can be read; left out first: "
            f"{first.name} ({first.reason})"
        )
    _update(directory, known, seen, renamed, report)
    return report


def _of_some_bytes(reads: Iterator[_Read]) -> Iterator[list[_Read]]:
    """The files in chunks."""
    chunk: list[_Read] = []
    size = 0
    for read in reads:
        chunk.append(read)
        size += len(read[1])
        if len(chunk) == _CHUNK or size > _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _maker_of_images(
    spec: str, names: list[str]
) -> Callable[[Sequence[_Read]], NDArray[np.float32]]:
    """What makes features of files that were read: of their contents, or rows given for them."""
    if not spec.endswith(".npy"):
        make = maker(spec)
        return lambda chunk: make([content for _, content, _ in chunk])
    feature_ND = read_features(Path(spec))
    if len(feature_ND) != len(names):
        raise InputError(
            f"{spec} has {len(feature_ND)} rows for {len(names)} images; expected one for each, in "
            "the order of their paths"
        )
    row_of = {name: row for row, name in enumerate(names)}
    return lambda chunk: feature_ND[[row_of[name] for name, _, _ in chunk]]


def _read(source: Path, name: str, report: Report) -> _Read | None:
    """Name, content and digest of a file; None if it cannot be read."""
    try:
        content = (source / name).read_bytes()
    except OSError as error:
        report.skipped.append(Skipped(name, error.strerror or "gone"))
        return None
    return name, content, digest_of(content)


def _made(
    make: Callable[[Sequence[_Read]], NDArray[np.float32]],
    chunk: Sequence[_Read],
    report: Report,
) -> tuple[list[NDArray[np.float32]], list[Found]]:
    """Features of a chunk; item by item where one of them cannot be read."""
    try:
        return [make(chunk)], [Found(digest, name) for name, _, digest in chunk]
    except InputError as error:
        if len(chunk) == 1:
            report.skipped.append(Skipped(chunk[0][0], str(error)))
            return [], []
    halves = [_made(make, half, report) for half in _chunks(chunk, -(-len(chunk) // 2))]
    return [f for features, _ in halves for f in features], [f for _, fs in halves for f in fs]


def _add_texts(
    directory: Path, config: Config, texts: list[tuple[int, str]], progress: bool | None
) -> Report:
    known = read_items(directory)
    report = Report()
    item_of = {item.digest: item for item in known}
    seen: set[str] = set()
    found: list[Found] = []
    renamed: dict[int, str] = {}
    for number, text in texts:
        digest = digest_of(text)
        if digest in seen:
            report.repeated += 1
        elif digest not in item_of:
            found.append(Found(digest, str(number), text))
        elif item_of[digest].name != str(number):
            renamed[item_of[digest].id] = str(number)
        seen.add(digest)
    if found and config.features == "tfidf":
        old = [item.text or "" for item in known]
        replace_features(directory, tfidf([*old, *(new.text or "" for new in found)]))
        add_items(directory, found, first=len(known) + 1)
    elif found:
        make, writer = _maker_of_texts(config.features, texts), FeatureWriter(directory, len(known))
        with progress_bar(len(found), "reading", "texts", show=progress) as advance:
            for chunk in _chunks(found, _CHUNK):
                _append(directory, writer, make(chunk), chunk)
                advance(len(chunk))
    report.added = len(found)
    there = {item.id for item in known if item.digest in seen}
    _update(directory, known, there, renamed, report)
    return report


def _maker_of_texts(
    spec: str, texts: list[tuple[int, str]]
) -> Callable[[Sequence[Found]], NDArray[np.float32]]:
    if not spec.endswith(".npy"):
        make = maker(spec)
        return lambda chunk: make([new.text for new in chunk])
    feature_ND = read_features(Path(spec))
    if len(feature_ND) <= texts[-1][0]:
        raise InputError(
            f"{spec} has {len(feature_ND)} rows but the table at least {texts[-1][0] + 1}; "
            "expected one for each"
        )
    return lambda chunk: feature_ND[[int(new.name) for new in chunk]]


def _add_rows(
    directory: Path, source: Path, feature_ND: NDArray[np.float32], progress: bool | None
) -> Report:
    """Rows of features are told by their number: later ones may be appended to the file."""
    known = read_items(directory)
    if len(known) > len(feature_ND):
        raise InputError(
            f"{source} has {len(feature_ND)} rows but the project {len(known)} items; "
            "expected the same file, or one with rows appended"
        )
    writer = FeatureWriter(directory, len(known))
    with progress_bar(len(feature_ND), "reading", "rows", show=progress) as advance:
        for start in range(0, len(feature_ND), 4096):
            chunk_BD = np.asarray(feature_ND[start : start + 4096], dtype=np.float32)
            bad_B = ~np.isfinite(chunk_BD).all(axis=1)
            if bad_B.any():
                raise InputError(f"{source} has NaN or inf in row {start + int(bad_B.argmax())}")
            digests = [digest_of(row_D.tobytes()) for row_D in chunk_BD]
            for item, digest in zip(known[start : start + 4096], digests, strict=False):
                if item.digest != digest:
                    raise InputError(
                        f"{source} has other numbers in row {item.name} than when it was read; "
                        "expected the same file, or one with rows appended"
                    )
            fresh = slice(max(0, len(known) - start), len(chunk_BD))
            if fresh.start < fresh.stop:
                names = range(start + fresh.start, start + fresh.stop)
                found = [Found(d, str(n)) for d, n in zip(digests[fresh], names, strict=True)]
                _append(directory, writer, chunk_BD[fresh], found)
            advance(len(chunk_BD))
    return Report(added=len(feature_ND) - len(known))


def _append(
    directory: Path, writer: FeatureWriter, feature_BD: NDArray[np.float32], found: Sequence[Found]
) -> None:
    """Add new items; their features first, see `FeatureWriter`."""
    first = writer.rows + 1
    writer.append(feature_BD)
    add_items(directory, found, first=first)


def _update(
    directory: Path, known: list[Item], there: set[int], renamed: dict[int, str], report: Report
) -> None:
    """Note what became of the items known before, of which the source still has those `there`."""
    gone = [item for item in known if item.id not in there and not item.missing]
    back = [item.id for item in known if item.id in there and item.missing]
    update_items(directory, renamed=renamed, missing=[item.id for item in gone], back=back)
    report.moved, report.back = len(renamed), len(back)
    report.missing = [item.name for item in gone]


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
