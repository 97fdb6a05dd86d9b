"""What the head reads of each item: made once, kept as features.npy in the project.

A maker is a function from the contents of some items (bytes of image files, or texts) to float32
[B, D]. Only TF-IDF has to see all texts before it can make any, and is made again for all when
texts are added.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastbadge.errors import InputError, ProjectError
from fastbadge.label.images import opened
from fastbadge.plugins import import_function

Content: TypeAlias = "bytes | str"
Maker: TypeAlias = "Callable[[Sequence[Any]], NDArray[np.float32]]"

FILE_NAME = "features.npy"
_HEADER_BYTES = 128  # of NumPy's format: room for any number of rows
_ADVICE = "run the same fastbadge label init again, which makes anew what is missing"

_PIXELS_SIZE = 28
_HOG_SIZE, _HOG_CELL, _HOG_ANGLES = 32, 4, 9
_COLOUR_SIZE = 8
_SVD_WIDTH = 256
_ENCODED_AT_ONCE = 32  # photographs in colour: 36 MB each


def maker(spec: str) -> Maker:
    """The maker of that name.

    Args:
        spec: "hog+colour", "hog" or "pixels" for images; or an encoder for images or texts,
            "MODULE:FUNCTION" (yours: from a list of PIL images in RGB, or of texts, to [B, D]),
            "timm:NAME", "transformers:NAME", "sentence-transformers:NAME".

    Raises:
        InputError: no such maker, or an encoder whose package is not installed.
    """
    if spec in _MAKERS:
        return _MAKERS[spec]
    package, found, name = spec.partition(":")
    if not found:
        raise InputError(
            f"features are {spec!r}; expected one of {', '.join([*_MAKERS, 'tfidf'])}, an .npy "
            "file, or an encoder such as MODULE:FUNCTION"
        )
    encode = _ENCODERS[package](name) if package in _ENCODERS else import_function(spec, "encoder")

    def make(contents: Sequence[Any]) -> NDArray[np.float32]:
        starts = range(0, len(contents), _ENCODED_AT_ONCE)
        parts = [contents[i : i + _ENCODED_AT_ONCE] for i in starts]
        return np.concatenate([_encoded(encode, part, spec) for part in parts])

    return make


def tfidf(texts: Sequence[str]) -> NDArray[np.float32]:
    """TF-IDF of words and pairs of words, then a truncated SVD to at most 256 columns: [N, D].

    Works with nothing downloaded. Rows have length 1 at most; one whose words are all rare is 0.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    rare = 1 if len(texts) < 1000 else 2
    vectors = TfidfVectorizer(
        min_df=rare,
        ngram_range=(1, 2),
        max_features=50_000,
        sublinear_tf=True,
        dtype=np.float32,
        token_pattern=r"(?u)\b\w+\b",
    )
    try:
        matrix = vectors.fit_transform(texts)
    except ValueError as error:
        raise InputError(f"the texts have no words to tell them by: {error}") from error
    width = min(_SVD_WIDTH, *(side - 1 for side in matrix.shape))
    if width < 1:
        return np.asarray(matrix.toarray(), dtype=np.float32)
    reduced = TruncatedSVD(width, random_state=0).fit_transform(matrix)
    return np.asarray(reduced, dtype=np.float32)


def pixels(images: Sequence[bytes]) -> NDArray[np.float32]:
    """Grey values 0 to 1 at 28 x 28: [B, 784]."""
    grey_BHW = np.stack([_grey(image, _PIXELS_SIZE) for image in images])
    return grey_BHW.reshape(len(images), -1).astype(np.float32) / np.float32(255)


def hog(images: Sequence[bytes]) -> NDArray[np.float32]:
    """Histograms of oriented gradients (Dalal & Triggs, CVPR 2005): [B, 576].

    At 32 x 32 grey values: in each of 8 x 8 cells the lengths of the gradients, by nine angles of
    180 degrees (shared between the two nearest), divided by the length of the histograms of the
    cell and the eight around it.
    """
    return _histograms(np.stack([_grey(image, _HOG_SIZE) for image in images]))


def hog_and_colour(images: Sequence[bytes]) -> NDArray[np.float32]:
    """`hog`, and red, green and blue in 8 x 8 squares, 0 to 0.5 each: [B, 768].

    Histograms see neither brightness nor colour, in which stains, seasons and species differ. At
    half the weight the colours cost little where only shapes count.
    """
    from PIL import Image

    greys, colours = [], []
    for content in images:
        with opened(content, ("RGB", 2 * _HOG_SIZE)) as image:
            flat = image.convert("RGB")
            greys.append(_scaled(flat.convert("L"), _HOG_SIZE))
            squares = flat.resize((_COLOUR_SIZE, _COLOUR_SIZE), Image.Resampling.BOX)
            colours.append(np.asarray(squares).reshape(-1))
    half_BD = np.stack(colours).astype(np.float32) / np.float32(510)
    return np.concatenate([_histograms(np.stack(greys)), half_BD], axis=1)


def _histograms(grey_BHW: NDArray[np.uint8]) -> NDArray[np.float32]:
    down_BHW, right_BHW = np.gradient(grey_BHW.astype(np.float32) / 255, axis=(1, 2))
    length_BHW = np.hypot(down_BHW, right_BHW)
    angle_BHW = np.arctan2(down_BHW, right_BHW) / np.pi * _HOG_ANGLES % _HOG_ANGLES
    low_BHW = np.floor(angle_BHW).astype(np.int64)
    share_BHW = angle_BHW - low_BHW
    B, cells = len(grey_BHW), _HOG_SIZE // _HOG_CELL
    side = np.arange(_HOG_SIZE) // _HOG_CELL
    cell_BHW = (np.arange(B)[:, None, None] * cells + side[:, None]) * cells + side
    histograms = np.zeros(B * cells * cells * _HOG_ANGLES)
    for nearest_BHW, weight_BHW in ((low_BHW, 1 - share_BHW), (low_BHW + 1, share_BHW)):
        place_BHW = cell_BHW * _HOG_ANGLES + nearest_BHW % _HOG_ANGLES
        weight_BHW = (weight_BHW * length_BHW).reshape(-1)
        histograms += np.bincount(place_BHW.reshape(-1), weight_BHW, len(histograms))
    cell_BKA = histograms.reshape(B, cells, cells, _HOG_ANGLES)
    energy_BKK = np.pad((cell_BKA**2).sum(axis=-1), ((0, 0), (1, 1), (1, 1)))
    around_BKK = sum(
        energy_BKK[:, i : i + cells, j : j + cells] for i in range(3) for j in range(3)
    )
    feature_BD = cell_BKA / np.sqrt(around_BKK + 1e-2)[..., None]
    return feature_BD.reshape(B, -1).astype(np.float32)


def as_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """The numbers, without a word where one is too large and becomes inf."""
    with np.errstate(over="ignore"):
        return np.asarray(array, dtype=np.float32)


def keep_features(directory: Path, rows: int) -> int:
    """Cut off what a killed call has left behind the first `rows`; how many of these there are."""
    try:
        feature_ND = _open(directory)
    except ProjectError:
        return 0
    if len(feature_ND) > rows > 0:
        width = feature_ND.shape[1]
        with (directory / FILE_NAME).open("r+b") as file:
            file.write(_header(rows, width))  # before the cut: who reads meanwhile finds all rows
            file.flush()
            file.truncate(_HEADER_BYTES + 4 * width * rows)
    return min(len(feature_ND), rows)


def append_features(directory: Path, feature_BD: NDArray[np.float32], *, rows: int) -> None:
    """Write more rows behind those there are, so many, and wait for the disk.

    Raises:
        ProjectError: of another width than those.
    """
    path, width = directory / FILE_NAME, feature_BD.shape[1]
    if rows and width != (known := open_features(directory, rows).shape[1]):
        raise ProjectError(
            f"new items have {width} features but those in {path} have {known}; expected the same "
            "source and encoder"
        )
    with path.open("r+b" if rows else "wb") as file:
        file.seek(_HEADER_BYTES + 4 * width * rows)
        file.write(np.ascontiguousarray(feature_BD, dtype="<f4").tobytes())
        file.seek(0)
        file.write(_header(rows + len(feature_BD), width))
        file.flush()
        os.fsync(file.fileno())


def replace_features(directory: Path, feature_ND: NDArray[np.float32]) -> None:
    """Write all rows anew; others see the old ones until the new ones are whole."""
    draft = directory / f".{FILE_NAME}.draft"  # one name: what a killed call has left is used again
    try:
        with draft.open("wb") as file:
            file.write(_header(*feature_ND.shape))
            file.write(np.ascontiguousarray(feature_ND, dtype="<f4").tobytes())
            file.flush()
            os.fsync(file.fileno())
        draft.replace(directory / FILE_NAME)
    finally:
        draft.unlink(missing_ok=True)


def open_features(directory: Path, rows: int) -> NDArray[np.float32]:
    """The features of the first `rows` items, float32 [N, D], mapped from the disk.

    Raises:
        ProjectError: they are not there, or not all.
    """
    array = _open(directory)
    if len(array) < rows:
        raise ProjectError(
            f"{directory / FILE_NAME} has {len(array)} rows for {rows} items: {_ADVICE}"
        )
    return array[:rows]


def _open(directory: Path) -> NDArray[np.float32]:
    path = directory / FILE_NAME
    try:
        array: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ProjectError(f"{path} cannot be read: {_ADVICE}") from error
    if array.ndim != 2 or array.dtype != np.float32:
        raise ProjectError(f"{path} holds {array.dtype} {array.shape}: {_ADVICE}")
    return array


def _grey(content: bytes, size: int) -> NDArray[np.uint8]:
    with opened(content, ("L", 2 * size)) as image:
        return _scaled(image.convert("L"), size)


def _scaled(grey: Any, size: int) -> NDArray[np.uint8]:
    from PIL import Image

    if grey.size != (size, size):
        grey = grey.resize((size, size), Image.Resampling.BILINEAR)
    values: NDArray[np.uint8] = np.asarray(grey)
    return values


def _colour(content: bytes) -> Any:
    with opened(content) as image:
        return image.convert("RGB")


def _encoded(encode: Callable[..., Any], contents: Sequence[Any], spec: str) -> NDArray[np.float32]:
    import torch

    parts = [_colour(part) if isinstance(part, bytes) else part for part in contents]
    with torch.inference_mode():
        made = encode(parts)
    array = made.cpu().float().numpy() if isinstance(made, torch.Tensor) else np.asarray(made)
    if array.ndim != 2 or len(array) != len(contents) or array.dtype.kind not in "fiub":
        raise InputError(
            f"{spec} gave {array.dtype} {array.shape} for {len(contents)} items; expected one row "
            "of numbers each"
        )
    return as_float32(array)


def _package(package: str, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"{extra} is not installed ({error}); pip install 'fastbadge[{extra}]'"
        ) from error


def _timm(name: str) -> Callable[..., Any]:
    timm = _package("timm", "timm")
    model = timm.create_model(name, pretrained=True, num_classes=0).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))

    def encode(images: Iterable[Any]) -> Any:
        import torch

        return model(torch.stack([transform(image) for image in images]))

    return encode


def _transformers(name: str) -> Callable[..., Any]:
    transformers = _package("transformers", "transformers")
    model = transformers.AutoModel.from_pretrained(name).eval()
    # Read at the first batch, which shows what it is of, and not again at each.
    prepared = functools.cache(lambda kind: getattr(transformers, kind).from_pretrained(name))

    def encode(parts: list[Any]) -> Any:
        if isinstance(parts[0], str):
            batch = prepared("AutoTokenizer")(
                parts, padding=True, truncation=True, return_tensors="pt"
            )
            mask_BT1 = batch["attention_mask"][..., None]
            hidden_BTD = model(**batch).last_hidden_state
            return (hidden_BTD * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1)
        hidden = model(
            **prepared("AutoImageProcessor")(parts, return_tensors="pt")
        ).last_hidden_state
        return hidden.mean(dim=(2, 3) if hidden.ndim == 4 else 1)  # of a map, or of patches

    return encode


def _sentence_transformers(name: str) -> Callable[..., Any]:
    model = _package("sentence_transformers", "sentence-transformers").SentenceTransformer(name)
    return lambda texts: model.encode(texts, show_progress_bar=False)


def _header(rows: int, width: int) -> bytes:
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
    np.lib.format.write_array_header_1_0(file, header)
    content = file.getvalue()
    assert len(content) == _HEADER_BYTES
    return content


_MAKERS: dict[str, Maker] = {"hog+colour": hog_and_colour, "hog": hog, "pixels": pixels}
_ENCODERS: dict[str, Callable[[str], Callable[..., Any]]] = {
    "timm": _timm,
    "transformers": _transformers,
    "sentence-transformers": _sentence_transformers,
}
