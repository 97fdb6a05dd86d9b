"""A configuration as a TOML file: written beside a run, and read in place of flags."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastbadge.errors import InputError
from fastbadge.lab.protocol import Config, deviations, nearest, typed_like

FILE_NAME = "config.toml"


def as_toml(config: Config) -> str:
    """All settings, under comments that tell what differs from the publication.

    >>> print(as_toml(Config()).splitlines()[1])
    dataset = "digits"
    """
    comments = [f"# {line}" for line in deviations(config)]
    if comments:
        comments.insert(0, "# Differs from what was published:")
    lines = [f"{name} = {_written(value)}" for name, value in asdict(config).items()]
    return "\n".join([*comments, *lines, ""])


def read_toml(path: Path) -> dict[str, Any]:
    """The settings of a file, some or all of `Config`'s, for `config_for`.

    Raises:
        InputError: no such file, no TOML, a name that no setting has, a value of another type.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path} cannot be read as TOML: {reason}") from error
    defaults = asdict(Config())
    for name in content:
        if name not in defaults:
            raise InputError(f"{path} has {name!r}, no setting; {nearest(name, defaults)}")
    return {
        name: typed_like(value, defaults[name], f"{path}: {name}")
        for name, value in content.items()
    }


def _written(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, str):
        # A JSON string is a TOML string, but for this one character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)
