"""Sphinx's configuration: the Markdown pages as they are, and the Python interface from docstrings. `make docs`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from sweeper import __version__

project = "sweeper"
author = "The sweeper developers"
copyright = author
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.apidoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"sweeper {release}"
html_show_copyright = False
html_show_sourcelink = html_copy_source = False

myst_heading_anchors = 3  # GitHub's anchors, so that links work in both places

exclude_patterns = ["api/*/modules.rst"]  # api.md is in their place
# One page for each package: furo's time grows with the square of the number of pages
apidoc_modules = [
    {
        "path": f"../{package}",
        "destination": f"api/{package}",
        "exclude_patterns": ["**/__main__.py", "**/cli/**"],  # the command line, which --help documents
        "module_first": True,
        "max_depth": 1,
    }
    for package in ("sweeper", "models", "attacks", "analysis")
]
apidoc_automodule_options = {"members", "show-inheritance"}
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # those of other libraries are written for their own pages
autodoc_typehints_format = "short"
# Links that autodoc guesses from the names in signatures may be ambiguous; docstrings contain no links
suppress_warnings = ["ref.python"]
default_role = "code"  # docstrings mark code as Markdown does


def markdown_to_rst(app: Any, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are Markdown: a lone asterisk or bar is only that, and a paragraph that is indented is code."""
    before = ["", ""]
    for number, line in enumerate(lines):
        parts = re.split(r"(`[^`]*`|\*\*\w[^*]*\*\*)", line)  # code and bold are every second part
        parts[::2] = [re.sub(r"([*|]|_(?!\w))", r"\\\1", part) for part in parts[::2]]
        lines[number] = "".join(parts)
        if line.startswith("    ") and not before[1] and not before[0].startswith(" "):
            lines[number] = "::\n\n" + line
        before = [before[1], line]
    if what in ("attribute", "data", "property"):
        lines.insert(0, "\\")  # an empty first line, because napoleon takes what is before its colon for a type
    lines[:] = "\n".join(lines).split("\n")


def add_contents(app: Any, document: str, source: list[str]) -> None:
    """Sphinx's table of contents is the list of links in index.md, which GitHub can show, too."""
    if document == "index":
        pages = re.findall(r"\]\(([\w/-]+)\.md\)", source[0])
        source[0] += "\n```{toctree}\n:hidden:\n\n" + "\n".join(pages) + "\n```\n"


def setup(app: Any) -> None:
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", markdown_to_rst, priority=400)  # before napoleon, at 500
