"""HTML in which text is escaped unless it was made by `element`: names come from users."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TypeAlias

_VOID = {"img", "meta", "link"}


class Html(str):
    """Markup that is right as it is; any other string is text."""

    __slots__ = ()


# What stands between tags: text, markup, or several of these; None and False stand for nothing.
Content: TypeAlias = "str | bool | Iterable[Content] | None"
Attribute: TypeAlias = "str | float | bool | None"


def element(name: str, /, *content: Content, **attributes: Attribute) -> Html:
    """One element with its content.

    Args:
        name: of the element.
        content: see `Content`.
        attributes: "_" stands for "-", and one at the end is dropped (class_). True writes the
            name alone; None and False leave the attribute out.

    >>> element("p", "1 < 2", element("b", "so"), class_="answer", hidden=True)
    '<p class="answer" hidden>1 &lt; 2<b>so</b></p>'
    """
    written = "".join(
        f" {_name(key)}" if value is True else f' {_name(key)}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(content)}</{name}>")


def join(content: Content) -> Html:
    """Content one after the other.

    >>> join(["<", Html("<br>"), None, ["x"]])
    '&lt;<br>x'
    """
    if content is None or isinstance(content, bool):
        return Html("")
    if isinstance(content, Html):
        return content
    if isinstance(content, str):
        return Html(escape(content))
    return Html("".join(map(join, content)))


def table(
    caption: Content,
    header: Sequence[Content],
    rows: Iterable[Sequence[Content]],
    **attributes: Attribute,
) -> Html:
    """A table whose first column names its rows, under its caption."""
    body = [
        element("tr", element("th", row[0], scope="row"), [element("td", cell) for cell in row[1:]])
        for row in rows
    ]
    head = element("tr", [element("th", cell, scope="col") for cell in header])
    return captioned(
        caption,
        element("table", element("thead", head), element("tbody", body), **attributes),
    )


def captioned(caption: Content, table: Html) -> Html:
    """A table under its caption; where it is too wide it scrolls, and the caption does not."""
    # Focusable, so that the keyboard can scroll it.
    scroll = element("div", table, class_="scroll", tabindex=0)
    return element("figure", element("figcaption", caption), scroll, class_="table")


def _name(key: str) -> str:
    return key.removesuffix("_").replace("_", "-")
