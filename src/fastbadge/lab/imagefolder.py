"""Images in folders, one for each class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastbadge.errors import DataError, InputError
from fastbadge.lab.arrays import Array

if TYPE_CHECKING:
    import PIL.Image

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_SIZE = ":size="
# Where Pillow's 32-bit mode I holds what the file has in 16.
_SIXTEEN_BITS = ("PNG", "PPM")
_DEFAULT_SIZE = 32  # what the models for images are made for


def folder_and_size(argument: str) -> tuple[Path, int]:
    """PATH or PATH:size=64 as folder and size.

    Raises:
        DataError: no such folder.
        InputError: a size that is no whole number of at least 1.

    >>> folder_and_size(".:size=64")[1]
    64
    """
    given, size = argument, str(_DEFAULT_SIZE)
    if _SIZE in argument:
        given, _, size = argument.rpartition(_SIZE)
    if not (size.isascii() and size.isdecimal() and int(size)):
        raise InputError(f"size is {size!r}; expected a whole number, such as {_DEFAULT_SIZE}")
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a directory; expected imagefolder:PATH with classes in it"
        )
    return folder, int(size)


def is_divided(folder: Path) -> bool:
    """Whether the folder holds `train` and `test` rather than classes."""
    return (folder / "train").is_dir() and (folder / "test").is_dir()


def read_images(
    folder: Path, size: int, classes: list[str] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    """All images of a folder of classes, in colour and of one size.

    Args:
        folder: holds a folder for each class; other files in it are left alone, and so are hidden
            ones and those without the suffix of an image.
        size: images are squeezed to size x size.
        classes: names of the classes where they are known already.

    Returns:
        uint8 [N, 3, size, size], int64 [N], and the names of the classes in order of their numbers.

    Raises:
        DataError: a class without an image, an unknown class, a file that cannot be read.
    """
    found = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    if not found:
        raise DataError(f"{folder} has no folders; expected one for each class")
    for name in found:
        if classes is not None and name not in classes:
            raise DataError(
                f"{folder / name} is a class that the training images lack; expected "
                f"{', '.join(classes)}"
            )
    names = classes or found
    pixels: list[Array] = []
    labels: list[int] = []
    for name in found:
        paths = sorted(p for p in (folder / name).iterdir() if _is_image(p))
        if not paths:
            raise DataError(
                f"{folder / name} has no image; expected files that end in {', '.join(SUFFIXES)}"
            )
        pixels += [_read(path, size) for path in paths]
        labels += [names.index(name)] * len(paths)
    return np.stack(pixels), np.array(labels, dtype=np.int64), names


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.name[0] != "."


def _read(path: Path, size: int) -> Array:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            if image.mode in ("F", "I") and image.format not in _SIXTEEN_BITS:
                raise DataError(
                    f"{path} has pixels of 32 bits, whose range nobody knows; expected 8 or 16 "
                    "bits a channel"
                )
            # Upright first: cameras turn by a note in the file.
            upright = _in_bytes(ImageOps.exif_transpose(image)).convert("RGB")
            small = upright.resize((size, size), Image.Resampling.BILINEAR)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} is a link that leads nowhere; remove or mend it") from error
    except Exception as error:  # Pillow answers a broken file with errors of many kinds
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{path} cannot be read as an image: {reason}") from error
    return np.asarray(small).transpose(2, 0, 1)


def _in_bytes(image: PIL.Image.Image) -> PIL.Image.Image:
    """The high byte of an image in grey of 16 bits; any other as it is.

    `convert` would not scale it: all above 255, which is all but the darkest 0.4 %, would be white.
    """
    from PIL import Image

    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
