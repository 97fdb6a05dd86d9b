"""What Label Studio shows, and what an annotation there says here. Nothing here speaks to it."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from fastbadge.errors import InputError, ProjectError
from fastbadge.label.clicks import ClickKind
from fastbadge.label.images import as_shown, opened
from fastbadge.label.project import Config, Item, checked_name
from fastbadge.label.sources import read_image

# The tags that the view must keep, whatever else is changed in it there.
_CONTROL, _OBJECT = "class", "item"

ITEM = "fastbadge_item"  # in a task's meta, which can be read without its data: images are in these

# An image up to this size goes into its task as it is; a larger one as a JPEG of so many pixels a
# side, some 200 KB, which is a photo as large as a page shows it.
_LARGEST_BYTES = 256 << 10
_LONGEST_SIDE = 1280


@dataclass(frozen=True, slots=True)
class Answer:
    """What an annotation says.

    Args:
        annotation: its id there.
        annotator: whose it is.
        kind: "label", or "cannot tell" where the task was skipped or no class was chosen.
        label: id of the class.
        seconds: that it took, if Label Studio knows.
        updated: when it was last changed, ISO 8601.
    """

    annotation: int
    annotator: str
    kind: ClickKind
    label: int | None
    seconds: float | None
    updated: str


def make_view(kind: str, classes: Mapping[int, str]) -> str:
    """The labelling view of a project of images or texts, XML.

    >>> make_view("texts", {1: "R & D"})
    '<View><Text name="item" value="$text" valueType="text" /><Choices name="class" toName="item" \
choice="single" showInLine="true" required="true"><Choice value="R &amp; D" /></Choices></View>'
    """
    view = ElementTree.Element("View")
    if kind == "images":
        ElementTree.SubElement(view, "Image", name=_OBJECT, value="$image")
    else:  # of type text: a text that looks like an address is not fetched
        ElementTree.SubElement(view, "Text", name=_OBJECT, value="$text", valueType="text")
    choices = ElementTree.SubElement(
        view,
        "Choices",
        {
            "name": _CONTROL,
            "toName": _OBJECT,
            "choice": "single",
            "showInLine": "true",
            "required": "true",
        },
    )
    for name in classes.values():
        choices.append(_choice(name))
    return ElementTree.tostring(view, encoding="unicode")


def extend_view(view: str, classes: Mapping[int, str]) -> str:
    """The view with the classes that it lacks; as it was, if it lacks none.

    Raises:
        ProjectError: it was changed there so that no class can be chosen in it.
    """
    try:
        root = ElementTree.fromstring(view)
        (choices,) = (each for each in root.iter("Choices") if each.get("name") == _CONTROL)
    except (ElementTree.ParseError, ValueError) as error:
        raise ProjectError(
            f'the labelling view there has no <Choices name="{_CONTROL}"> any more; bring it back '
            "or pass --new-project"
        ) from error
    there = {each.get("alias") or each.get("value") for each in choices.iter("Choice")}
    lacking = [name for name in classes.values() if name not in there]
    for name in lacking:
        choices.append(_choice(name))
    return ElementTree.tostring(root, encoding="unicode") if lacking else view


def _choice(name: str) -> ElementTree.Element:
    # Its page takes "$5" for a field of the task, in what it shows and so in what it records; the
    # alias is recorded as it is.
    if "$" not in name:
        return ElementTree.Element("Choice", value=name)
    return ElementTree.Element("Choice", value=name.replace("$", "$\u200b"), alias=name)


def make_task(item: Item, config: Config, image_url: str | None) -> dict[str, Any]:
    """An item as a task.

    Args:
        item: of the project.
        config: of the project.
        image_url: address of an image with {name} for its path below the source, or {item} for its
            id; None to put the image itself into the task.

    Raises:
        InputError: an image that cannot be read.
    """
    data: dict[str, Any] = {"item": item.id, "name": item.name}  # for people and exports
    if config.kind == "texts":
        data["text"] = item.text
    elif image_url is None:
        data["image"] = image_as_uri(item.name, read_image(Path(config.source), item))
    else:
        name = quote(item.name)
        data["image"] = image_url.replace("{name}", name).replace("{item}", str(item.id))
    return {"data": data, "meta": {ITEM: item.id}}


def make_prediction(name: str, confidence: float, version: str) -> dict[str, Any]:
    """A class as the pre-label of a task."""
    chosen = {
        "from_name": _CONTROL,
        "to_name": _OBJECT,
        "type": "choices",
        "value": {"choices": [name]},
    }
    return {"result": [chosen], "score": confidence, "model_version": version}


def image_as_uri(name: str, content: bytes) -> str:
    """The image as a data: address, as browsers show it, scaled down if it is large.

    Raises:
        InputError: it cannot be decoded and would have to be.
    """
    try:
        content, kind = as_shown(content)
        if len(content) > _LARGEST_BYTES:
            content, kind = _scaled_down(content), "image/jpeg"
    except InputError as error:
        raise InputError(f"{name} cannot be decoded: {error}") from error
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _scaled_down(content: bytes) -> bytes:
    smaller = io.BytesIO()
    with opened(content) as image:
        colour = image.convert("RGB")
        colour.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        colour.save(smaller, "JPEG", quality=85)
    return smaller.getvalue()


def item_of(task: Mapping[str, Any]) -> int | None:
    """Which item a task shows; None for one that we did not make."""
    meta = task.get("meta")
    item = meta.get(ITEM) if isinstance(meta, dict) else None
    return item if isinstance(item, int) else None


def read_annotation(
    annotation: Mapping[str, Any], classes: Mapping[str, int], emails: Mapping[int, str]
) -> Answer:
    """What an annotation says.

    Args:
        annotation: as Label Studio gives it.
        classes: ids by name.
        emails: of its users, by id.

    Raises:
        InputError: it chooses something else than one class of the project.
    """
    kind: ClickKind = "cannot tell"
    label = None
    if not annotation["was_cancelled"]:
        chosen = [
            name
            for result in annotation["result"]
            if result.get("from_name") == _CONTROL
            for name in result["value"].get("choices", [])
        ]
        if chosen:
            kind, label = "label", classes.get(chosen[0])
            if label is None or len(chosen) > 1:
                raise InputError(
                    f"{', '.join(map(str, chosen))!r} is chosen there; expected one class of the "
                    "project; add classes with: fastbadge label init SOURCE --classes"
                )
    seconds = annotation["lead_time"]
    if not (isinstance(seconds, int | float) and math.isfinite(seconds) and seconds >= 0):
        seconds = None
    user = annotation["completed_by"]
    try:
        annotator = checked_name(emails[user], "annotator")
    except (KeyError, InputError):  # deleted since, or longer than a name here
        annotator = f"Label Studio user {user}"
    return Answer(annotation["id"], annotator, kind, label, seconds, annotation["updated_at"])
