"""The docs site: `make docs` builds it into docs/_build, warnings are errors."""

import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

project = "fastbadge"
author = "the fastbadge maintainers"
copyright = f"2026, {author}"
version = release = metadata.version("fastbadge")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"fastbadge {release}"
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_type_aliases = {
    name: name for name in ("ArrayLike", "GradientPool", "PathLike", "Pool", "Positions", "Task")
}

# Docstrings name modules from the root of the package, as the code does.
sys.path.insert(0, str(Path(__file__).parents[1] / "src"))


def setup(app: Sphinx) -> None:
    """Show an alias by its name alone; autodoc of Sphinx 9 shows TypeAliasForwardRef('Pool')."""

    def shown(_app: Sphinx, _what: str, _name: str, _obj: Any, _options: Any, *parts: str | None):  # type: ignore[no-untyped-def]
        return tuple(
            part and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", part) for part in parts
        )

    app.connect("autodoc-process-signature", shown)
