"""Where items come from: a folder of images, a table with a column of texts, rows of features."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastbadge.errors import InputError
from fastbadge.files import read_array
from fastbadge.label.project import Item, Kind, is_printable

_IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_TABLES = (".csv", ".jsonl")
_LONGEST_TEXT = 1 << 20


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something in a source that is not an item, and why, in a few words."""

    name: str
    reason: str


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
    """Names of the images in a folder and the folders in it, sorted, and what was left out.

    A name is the path below the folder, with forward slashes. Hidden files and files without the
    suffix of an image are passed by; links to folders are not followed, links to files only where
    they lead into the folder.
    """
    root = folder.resolve()
    names: list[str] = []
    skipped: list[Skipped] = []
    for path, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(files):
            if file.startswith(".") or Path(file).suffix.lower() not in _IMAGES:
                continue
            whole = Path(path, file)
            name = whole.relative_to(root).as_posix()
            if not is_printable(name):  # bytes that are no text among them
                skipped.append(Skipped(ascii(name), "its name is not printable"))
            elif whole.is_symlink() and not _leads_into(whole, root):
                skipped.append(Skipped(name, "a link that leads out of the source or nowhere"))
            else:
                names.append(name)
    return names, skipped


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
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{item.name} cannot be read: {error.strerror}") from error
    if digest_of(content) != item.digest:
        raise InputError(
            f"{item.name} is another file than when it was read; run init again, for which it is "
            "another item"
        )
    return content


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
