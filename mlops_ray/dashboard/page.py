"""The page: one HTML file that asks no other host for anything. Live it asks the endpoint for the document; a snapshot
carries the document with it.

Style and script stand in files beside this one, and in the page under a policy that names their hashes: nothing else
runs (Content Security Policy Level 3, 'sha256-...').
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from html import escape
from pathlib import Path
from string import Template

_FOLDER = Path(__file__).parent / "static"
_SCRIPTS = ("words.js", "charts.js", "sections.js", "live.js")


@cache
def _file(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _script() -> str:
    return "\n".join(_file(name) for name in _SCRIPTS)


def policy(*, header: bool = True) -> str:
    """The page's Content-Security-Policy. header: as sent by a server; a `meta` element may not speak of frames."""
    style, script = (_hash(text) for text in (_file("style.css"), _script()))
    rules = [
        "default-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "connect-src 'self'",
        "img-src data:",
        f"style-src '{style}'",
        f"script-src '{script}'",
    ]
    return "; ".join([*rules, "frame-ancestors 'none'"] if header else rules)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def live(project: str) -> str:
    """The page that asks `<project>/dashboard/data`, beside which it is served."""
    return _page(project, f"{project}: dashboard", "")


def snapshot(project: str, document: bytes, *, taken: float) -> str:
    """The page with its document inside, for a disk or a mail. taken: machine time, seconds since the epoch."""
    # Within a script element only "<" can end it or begin a comment: JSON may write it as an escape.
    body = document.decode().replace("<", "\\u003c")
    data = f'<script type="application/json" id="snapshot">{{"taken": {taken:.0f}, "document": {body}}}</script>\n'
    return _page(project, f"{project}: snapshot of the dashboard", data)


def _page(project: str, title: str, data: str) -> str:
    return Template(_file("shell.html")).substitute(
        policy=escape(policy(header=False)),
        title=escape(title),
        name=escape(project),
        style=_file("style.css"),
        data=data,
        script=_script(),
    )
