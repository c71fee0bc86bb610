"""Self-contained HTML pages: one file that makes no request and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined


def render_page(package: str, data: dict[str, Any], scripts: Sequence[str] = ("script.js",), **values: Any) -> str:
    """Render a package's ``template.html`` with its ``style.css``, its scripts and the data of the scripts.

    The template names ``style``, ``script``, ``data`` and, for its Content-Security-Policy, ``style_hash`` and
    ``script_hash``. Every other value is escaped. The style follows the one that all pages share.

    Args:
        package: the package that holds the files.
        data: what the scripts read from the element with the id ``data``; JSON without NaN and infinity.
        scripts: files of the package, joined in this order into the page's one script.
        values: further values of the template.
    """
    style = _file(__package__, "base.css") + _file(package, "style.css")
    script = "".join(_file(package, name) for name in scripts)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_file(package, "template.html")).render(
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=_embedded(data),
        **values,
    )


def _file(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    """As a Content-Security-Policy names an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _embedded(data: dict[str, Any]) -> str:
    """JSON for a script element: without ``<`` nothing in it can end that element."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")
