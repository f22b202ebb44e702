"""Pages: HTML files that contain their style and charts, so that they load nothing from the network.

The templates escape every text, except charts (`markupsafe.Markup` of svg.py). A content security policy in the head
forbids scripts and all requests. Missing content would therefore not be loaded.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from stsbp.errors import printable
from stsbp.files import OutputKind

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["PAGE", "page"]

PAGE = OutputKind(
    "a page of stsbp report or predict --draw",
    # As in templates/base.html. Older pages have the policy in place of the generator.
    re.compile(
        rb'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        rb'<meta (name="generator" content="stsbp"|http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        rb"style-src 'unsafe-inline'; img-src data:\")>"
    ),
)
"""The kind of file that a page may replace."""


@cache
def _templates() -> Environment:
    # Imported here, because commands that write no page start faster without it.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("stsbp.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )


def page(template: str, **values: Any) -> str:
    """An HTML file from a template in `templates`. Control characters in text from outside become escapes."""
    return printable(_templates().get_template(template).render(values), lines=True)
