"""Self-contained HTML pages: one file each, which loads nothing, in light and dark, on phones and screens."""

from __future__ import annotations

import base64
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jinja2

import igr
from igr.experiments.files import write_atomically


def embedded(image: bytes) -> str:
    """An SVG or PNG as the address of a picture."""
    kind = "png" if image.startswith(b"\x89PNG") else "svg+xml"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def render(template: str, **values: Any) -> str:
    """The text of a page from a file of `templates`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("igr.experiments"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template(template).render(version=igr.__version__, made=made, **values)


def write(path: Path, text: str) -> int:
    """Write a page and return its size in bytes."""
    page = text.encode()
    write_atomically(path, page)
    return len(page)
