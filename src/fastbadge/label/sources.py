"""Where items come from: a folder of images, a table with a column of texts, rows of features."""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastbadge.errors import InputError
from fastbadge.files import read_array
from fastbadge.label.project import Config, Found, Item, Kind, is_printable

_IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_OTHER_IMAGES = (".avif", ".cr2", ".dng", ".heic", ".heif", ".jp2", ".jxl", ".nef", ".svg")
_TABLES = (".csv", ".jsonl")
_LONGEST_TEXT = 1 << 20
_LARGEST_FILE = 1 << 30


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something in a source that is not an item, and why, in a few words.

    Args:
        name: as of an item; of a folder with a slash behind it.
        reason: see above.
        unread: whether items may be there for all we know.
    """

    name: str
    reason: str
    unread: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """What one reading of a source gives.

    Args:
        found: what item it is, or would be.
        content: of the file, or the text; None for a row of features.
        row: of features that are given for the source.
    """

    found: Found
    content: bytes | str | None
    row: int


@dataclass(frozen=True, slots=True)
class Source:
    """A source that was opened, to be read in any order.

    Args:
        unit: what it has, for messages.
        names: of what there is to read.
        read: reads what is at a position in names; an OSError where it cannot, an InputError
            where that is nothing to read.
        rows: how many rows features given for it must have.
        skipped: what is not read, and why.
        repeated: how many texts were left out as they are there already.
    """

    unit: str
    names: list[str]
    read: Callable[[int], Piece]
    rows: int
    skipped: list[Skipped]
    repeated: int = 0


def open_source(config: Config) -> Source:
    """The source of a project.

    Raises:
        InputError: it cannot be read, or there is nothing in it.
    """
    path = Path(config.source)
    if config.kind == "texts":
        return _open_texts(path, config.text_column)
    return _open_images(path) if config.kind == "images" else _open_rows(path)


def kind_of(source: Path) -> Kind:
    """What items a source has.

    Raises:
        InputError: nothing there, or nothing of these kinds.
    """
    if source.is_dir():
        return "images"
    if not source.is_file():
        raise InputError(f"{source} is not there; pass a folder of images, a table or an .npy file")
    suffix = source.suffix.lower()
    if suffix in _TABLES:
        return "texts"
    if suffix == ".npy":
        return "features"
    raise InputError(
        f"{source} ends in {suffix or 'nothing'}; expected a folder of images, a table "
        f"({', '.join(_TABLES)}) or features (.npy)"
    )


def find_images(folder: Path) -> tuple[list[str], list[Skipped]]:
    """Names of the images in a folder and the folders in it, and what was left out.

    A name is the path below the folder, with forward slashes; they are sorted as text. Hidden
    files and files without the suffix of an image are passed by; links to folders are not followed,
    links to files only where they lead into the folder.

    Raises:
        InputError: the folder cannot be read; of one in it, that is left out.
    """
    root = folder.resolve()
    names: list[str] = []
    skipped: list[Skipped] = []

    def left_out(error: OSError) -> None:
        path = Path(os.fsdecode(error.filename))
        if path == root:
            raise InputError(f"{folder} cannot be read: {error.strerror}") from error
        if not isinstance(error, FileNotFoundError):
            name = path.relative_to(root).as_posix()
            shown = name if is_printable(name) else ascii(name)
            skipped.append(Skipped(f"{shown}/", error.strerror or "", unread=True))

    for path, folders, files in os.walk(root, onerror=left_out):
        folders[:] = [name for name in folders if not name.startswith(".")]
        within = Path(path).relative_to(root).as_posix()
        for file in files:
            if file.startswith(".") or not file.lower().endswith(_IMAGES + _OTHER_IMAGES):
                continue
            whole = os.path.join(path, file)  # of 100,000 a Path takes a second
            name = file if within == "." else f"{within}/{file}"
            if not is_printable(name):  # bytes that are no text among them
                skipped.append(Skipped(ascii(name), "its name is not printable"))
            elif file.lower().endswith(_OTHER_IMAGES):
                skipped.append(Skipped(name, "images of this kind are not read; make it a PNG"))
            elif os.path.islink(whole) and not _leads_into(Path(whole), root):
                skipped.append(Skipped(name, "a link that leads out of the source or nowhere"))
            else:
                names.append(name)
    return sorted(names), sorted(skipped, key=lambda each: each.name)


def read_image(source: Path, item: Item) -> bytes:
    """The file of an item in a folder of images, with the content that made it this item.

    So whatever was put in its place, another picture or a link out of the folder, does not pass for
    it: not on the page, where it would be labelled, nor in an export, where it would have a label.

    Raises:
        InputError: it has gone, leads out of the folder, or is another than it was.
    """
    path = source / item.name
    if not _leads_into(path, source.resolve()):
        raise InputError(f"{item.name} is no longer in {source}; bring it back or run init again")
    try:
        content = read_file(path)
    except (OSError, InputError) as error:
        raise InputError(f"{item.name} cannot be read: {reason_of(error)}") from error
    if digest_of(content) != item.digest:
        raise InputError(
            f"{item.name} is another file than when it was read; run init again, for which it is "
            "another item"
        )
    return content


def read_file(path: Path) -> bytes:
    """All of a file.

    Raises:
        InputError: a pipe, which might never end, or the like; or too large for an image.
        OSError: it cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError("it is no file but a pipe or the like")
    if status.st_size > _LARGEST_FILE:
        raise InputError(f"it has {status.st_size:,} bytes; expected at most {_LARGEST_FILE:,}")
    return path.read_bytes()


def reason_of(error: OSError | InputError) -> str:
    """Why something cannot be read, without its name."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def read_texts(table: Path, column: str) -> Iterator[tuple[int, str]]:
    """Row numbers from 0 and texts of a column of a .csv with a header, or of a .jsonl.

    Rows without a text are passed by.

    Raises:
        InputError: no such column (the message lists those there are), or a row that is damaged.
    """
    rows: Iterator[dict[str, Any]] = (
        _csv_rows(table) if table.suffix.lower() == ".csv" else _jsonl_rows(table)
    )
    try:
        for number, row in enumerate(rows):
            if column not in row:
                known = ", ".join(map(str, row)) or "no columns"
                raise InputError(
                    f"{table}, row {number} has {known} but no {column!r}; pass --text-column"
                )
            text = row[column]
            if isinstance(text, str) and text.strip():
                if len(text) > _LONGEST_TEXT:
                    raise InputError(
                        f"{table}, row {number} has {len(text):,} characters; expected at most "
                        f"{_LONGEST_TEXT:,}"
                    )
                if any("\ud800" <= character <= "\udfff" for character in set(text)):
                    raise InputError(
                        f"{table}, row {number} has half a character (a lone surrogate); mend it"
                    )
                yield number, text
    except UnicodeDecodeError as error:
        raise InputError(f"{table} is not UTF-8 text; convert it") from error
    except (csv.Error, json.JSONDecodeError) as error:
        raise InputError(f"{table} cannot be read: {error}") from error


def read_features(path: Path) -> NDArray[np.float32]:
    """[N, D] finite numbers, mapped from the disk.

    Raises:
        InputError: another shape, or no real numbers.
    """
    array = read_array(path)
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiub":
        raise InputError(
            f"{path} holds {array.dtype} {array.shape}; expected one row of numbers an item"
        )
    return array


def digest_of(content: bytes | str) -> str:
    """SHA-256, in hexadecimal."""
    return sha256(content if isinstance(content, bytes) else content.encode()).hexdigest()


def _open_images(folder: Path) -> Source:
    names, skipped = find_images(folder)
    if not names:
        raise InputError(f"{folder} has no images; expected files such as .png or .jpg")

    def read(i: int) -> Piece:
        content = read_file(folder / names[i])
        return Piece(Found(digest_of(content), names[i]), content, i)

    return Source("images", names, read, len(names), skipped)


def _open_texts(table: Path, column: str) -> Source:
    """All texts are held: a table that is damaged in its last row is refused before the first."""
    number_of: dict[str, int] = {}
    repeated = rows = 0
    for number, text in read_texts(table, column):
        rows = number + 1
        repeated += number_of.setdefault(text, number) != number
    if not number_of:
        raise InputError(f"{table} has no text in column {column!r}")
    texts, names = list(number_of), [str(number) for number in number_of.values()]

    def read(i: int) -> Piece:
        return Piece(Found(digest_of(texts[i]), names[i], texts[i]), texts[i], int(names[i]))

    return Source("texts", names, read, rows, [], repeated)


def _open_rows(path: Path) -> Source:
    feature_ND = np.asarray(read_features(path))  # no memmap, of which each row is slow to make

    def read(i: int) -> Piece:
        row_D = np.asarray(feature_ND[i], dtype=np.float32)
        return Piece(Found(digest_of(row_D.tobytes()), str(i)), None, i)

    return Source("rows", list(map(str, range(len(feature_ND)))), read, len(feature_ND), [])


def _leads_into(path: Path, root: Path) -> bool:
    try:
        whole = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):  # gone, a loop, a name with a zero byte
        return False
    return whole.is_relative_to(root) and whole.is_file()


def _csv_rows(table: Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(2 * _LONGEST_TEXT)
    with table.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)


def _jsonl_rows(table: Path) -> Iterator[dict[str, Any]]:
    with table.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file):
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise InputError(f"{table}, row {number} is not an object; expected {{...}}")
                yield row
