"""What is in an image file: opened for whoever computes with it, and as browsers show it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastbadge.errors import InputError

# How files of images that browsers show begin, whatever their names say.
_SIGNATURES = {
    rb"\x89PNG\r\n\x1a\n": "image/png",
    rb"\xff\xd8\xff": "image/jpeg",
    rb"GIF8[79]a": "image/gif",
    rb"BM": "image/bmp",
    rb"RIFF....WEBP": "image/webp",
}
_GROUND = (128, 128, 128)  # under transparent pixels: neither a black shape nor a white one is lost


@contextmanager
def opened(content: bytes, draft: tuple[str, int] | None = None) -> Iterator[Any]:
    """A PIL image of 8 bits without transparency, turned as the camera's note in the file says.

    Args:
        content: of the file.
        draft: mode and side of what is needed: of a JPEG no more is decoded.

    Raises:
        InputError: it cannot be read as an image.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        file = Image.open(io.BytesIO(content))
        if draft is not None:
            file.draft(draft[0], (draft[1], draft[1]))
        image = _of_8_bits(ImageOps.exif_transpose(file))
        if image.has_transparency_data:
            opaque = Image.new("RGBA", image.size, _GROUND)
            opaque.alpha_composite(image.convert("RGBA"))
            image = opaque
        yield image
    except UnidentifiedImageError as error:  # whose text names an object
        raise InputError("it is no image, or of a kind that Pillow cannot read") from error
    except Exception as error:  # Pillow answers a broken file with errors of many kinds
        raise InputError(str(error).partition("\n")[0] or type(error).__name__) from error


def _of_8_bits(image: Any) -> Any:
    """Grey values of more bits, as of microscopes, from the least to the largest in the image.

    Of 16 bits a camera may use 12, and Pillow clips what is above 255.
    """
    from PIL import Image

    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    value_HW = np.asarray(image, dtype=np.float64)
    low, high = value_HW.min(), value_HW.max()
    return Image.fromarray(((value_HW - low) * (255 / max(high - low, 1e-9))).round().astype("u1"))


def as_shown(content: bytes) -> tuple[bytes, str]:
    """An image as browsers show it, and its type: as it is, or a PNG in its place.

    That is for kinds that they do not know, such as TIFF, and for 16 bits, which they show black
    where a camera uses 12.

    Raises:
        InputError: it cannot be read as an image.
    """
    kind = type_of_image(content)
    if kind and not re.match(rb"\x89PNG.{20}\x10\0", content, re.DOTALL):
        return content, kind
    with opened(content) as image:
        file = io.BytesIO()
        (image if image.mode == "L" else image.convert("RGB")).save(file, "PNG")
    return file.getvalue(), "image/png"


def type_of_image(content: bytes) -> str | None:
    """The content type of a file by how it begins; None for no image that browsers show.

    >>> type_of_image(b"GIF89a...")
    'image/gif'
    """
    for signature, kind in _SIGNATURES.items():
        if re.match(signature, content, re.DOTALL):
            return kind
    return None
