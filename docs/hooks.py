"""Docstrings name code as Sphinx does, ``:func:`slim.trace```; the site shows the name alone."""

from __future__ import annotations

import re
from typing import Any


def on_page_content(html: str, **_: Any) -> str:
    """Remove roles in front of code."""
    return re.sub(r":(?:func|class|mod|meth|attr|data):(?=<code>)", "", html)
