"""Files that users hand over, which are data and never code, and files they get, whole or not."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import MAGIC_PREFIX
from numpy.typing import NDArray

from fastbadge.errors import InputError


def read_array(path: Path) -> NDArray[Any]:
    """The array of an .npy file, mapped from the disk rather than read.

    Raises:
        InputError: no such file, or one that is not a whole .npy file of plain numbers.
    """
    _check_readable(path)
    with path.open("rb") as file:
        start = file.read(len(MAGIC_PREFIX))
    if start.startswith(b"PK"):
        raise InputError(f"{path} is an .npz archive; expected one array as an .npy file")
    if start != MAGIC_PREFIX:
        found = "not an .npy file" if start else "empty"
        raise InputError(f"{path} is {found}; write an array with numpy.save")
    try:
        # Not "c": Linux refuses a private mapping larger than memory.
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # whatever numpy and Python's tokenizer make of a mangled header
        raise InputError(
            f"{path} is cut short or holds other things than numbers ({error}); "
            "write it again with numpy.save"
        ) from error
    return array


def read_positions(path: Path) -> NDArray[Any]:
    """Positions from an .npy file, or from a text file with one a line.

    A first line `position`, as `fastbadge select` writes it, is skipped.

    Returns:
        int64 [M] from text; from .npy whatever it holds (positions or a boolean mask).

    Raises:
        InputError: no such file, or a line that is no whole number; the message gives its number.
    """
    if path.suffix == ".npy":
        return read_array(path)
    _check_readable(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file; expected one position a line") from error
    positions = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or (number == 1 and text == "position"):
            continue
        # 18 digits fit into int64; no pool has more rows.
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise InputError(f"{path}, line {number}: {text!r} is no position from 0")
        positions.append(int(text))
    return np.array(positions, dtype=np.int64)


def check_new(path: Path, *, force: bool = False) -> None:
    """Refuse, before any work is done for it, a file that may not or cannot be written.

    Raises:
        InputError: the file is there and force is not given, or its directory takes no new file.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a file; pass the name of a file to write")
    if path.exists() and not force:
        raise InputError(f"{path} is there already; pass another name, or --force to overwrite it")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path.parent} is not a directory; make it first")
    draft = _draft_of(path)
    try:
        # Only the attempt tells of permissions, read-only mounts, quotas and names too long.
        draft.touch()
        draft.unlink()
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror}; pass another name"
        ) from error


def check_not_input(path: Path, inputs: Iterable[Path | None]) -> None:
    """Refuse to write a result over what it is computed from, even when told to overwrite.

    Raises:
        InputError: the path leads to one of the inputs.
    """
    for given in inputs:
        if given is not None and os.path.realpath(given) == os.path.realpath(path):
            raise InputError(f"{path} is an input of this command; pass another name to write")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that others see all of it or, after a kill, what was there before.

    Args:
        path: of the file.
        content: bytes, or text, which becomes UTF-8.

    Raises:
        InputError: it cannot be written.
    """
    draft = _draft_of(path)
    try:
        with draft.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(os.path.realpath(path))  # a link stays a link
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):  # it is not there, or a name that cannot be
            draft.unlink()


def _draft_of(path: Path) -> Path:
    # Not Path.resolve, which raises RuntimeError for a link to itself.
    path = Path(os.path.realpath(path))
    return path.with_name(f".{path.name}.{os.getpid()}.draft")


def _check_readable(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path} is not there or is not a file; check the path")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} may not be read; check its permissions")
