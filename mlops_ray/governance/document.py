"""A document of headings, paragraphs, tables and pictures, as one HTML file or as Markdown; every value escaped."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_STYLE = """
:root { color-scheme: light dark; --text: #1d2430; --soft: #5b6573; --line: #dfe3e8; --page: #fff; --card: #f6f7f9;
  --pass: #14713d; --fail: #b3261e; --open: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7ec; --soft: #9aa4b2; --line: #343b46; --page: #14171c;
  --card: #1c2027; --pass: #5fc48b; --fail: #f28b82; --open: #e0b050; } img { background: #fff; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--text); background: var(--page); margin: 0 auto;
  max-width: 54rem; padding: 2.5rem 1.5rem 5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem;
  padding-bottom: .3rem; border-bottom: 1px solid var(--line); } h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { margin: .5rem 0; } .lead, .none { color: var(--soft); } .none { font-style: italic; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; margin: .6rem 0; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 600; } thead th { overflow-wrap: normal; } tbody th { width: 11rem; }
.number { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
.pass { color: var(--pass); } .fail { color: var(--fail); } .inconclusive, .pending { color: var(--open); }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem;
  align-items: start; }
figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: 6px; padding: .8rem; }
figure img { width: 100%; height: auto; } figure.wide { grid-column: 1 / -1; }
@media print { body { max-width: none; padding: 0; } h2 { break-after: avoid; } tr, figure { break-inside: avoid; } }
"""
_VERDICTS = ("pass", "fail", "inconclusive", "pending")
_NUMBER = re.compile(r"^[-+±]?[\d,]+(\.\d+)?( to [-+]?[\d,.]+)?%?$")


@dataclass(frozen=True)
class Text:
    """Paragraphs, a blank line between them. `soft` is for what is not there."""

    text: str
    soft: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells; without `head`, the first cell of each row is its name."""

    rows: tuple[tuple[str, ...], ...]
    head: tuple[str, ...] = ()


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str


@dataclass(frozen=True)
class Pictures:
    """PNG files by their names; each shows its own title."""

    items: tuple[tuple[str, bytes], ...]


Block = Text | Table | Heading | Pictures


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """Title, a line below it, and sections."""

    title: str
    lead: str
    sections: tuple[Section, ...]

    def html(self) -> str:
        """One file without anything from outside: no script, no address, pictures within."""
        body = "".join(_section_html(section) for section in self.sections)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(self.title)}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{_STYLE}</style></head><body>\n"
            f'<h1>{escape(self.title)}</h1><p class="lead">{escape(self.lead)}</p>\n{body}</body></html>\n'
        )

    def markdown(self) -> str:
        """GitHub's Markdown; pictures are named and not shown, for a text holds none."""
        parts = [f"# {_plain(self.title)}", _plain(self.lead)]
        for section in self.sections:
            parts += [f"## {_plain(section.title)}", *(_block_markdown(block) for block in section.blocks)]
        return "\n\n".join(part for part in parts if part) + "\n"


def _section_html(section: Section) -> str:
    return f"<h2>{escape(section.title)}</h2>\n{''.join(_block_html(block) for block in section.blocks)}"


def _block_html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h3>{escape(block.text)}</h3>\n"
    if isinstance(block, Text):
        kind = ' class="none"' if block.soft else ""
        return "".join(f"<p{kind}>{escape(part)}</p>\n" for part in _paragraphs(block.text))
    if isinstance(block, Pictures):
        figures = "".join(
            f'<figure{_class("wide" if _is_wide(body) else "")}><img alt="{escape(name)}" '
            f'src="data:image/png;base64,{base64.b64encode(body).decode()}"></figure>'
            for name, body in block.items
        )
        return f'<div class="pictures">{figures}</div>\n'
    right = _numeric(block.rows)
    head = "".join(f"<th{_class('number' if right[i] else '')}>{escape(h)}</th>" for i, h in enumerate(block.head))
    rows = "".join(f"<tr>{_cells(row, right, named=not block.head)}</tr>" for row in block.rows)
    top = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'<div class="scroll"><table>{top}<tbody>{rows}</tbody></table></div>\n'


def _is_wide(png: bytes) -> bool:
    """Whether a picture of several panels needs the whole line: its header (RFC 2083) says width and height."""
    width, height = int.from_bytes(png[16:20]), int.from_bytes(png[20:24])
    return width > 1.6 * height


def _cells(row: Sequence[str], right: Sequence[bool], *, named: bool) -> str:
    cells = []
    for i, cell in enumerate(row):
        kind = cell if cell in _VERDICTS else "number" if right[i] and not named else ""
        tag = "th" if named and i == 0 else "td"
        cells.append(f"<{tag}{_class(kind)}>{escape(cell)}</{tag}>")
    return "".join(cells)


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _numeric(rows: Sequence[Sequence[str]]) -> list[bool]:
    """Whether each column holds numbers only."""
    width = max((len(row) for row in rows), default=0)
    columns = [[row[i] for row in rows if i < len(row) and row[i]] for i in range(width)]
    return [bool(cells) and all(_NUMBER.match(cell) for cell in cells) for cells in columns]


def _block_markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"### {_plain(block.text)}"
    if isinstance(block, Text):
        parts = [_plain(part) for part in _paragraphs(block.text)]
        return "\n\n".join(f"*{part}*" if block.soft else part for part in parts)
    if isinstance(block, Pictures):
        return "Pictures: " + ", ".join(_plain(name) for name, _ in block.items) + "."
    head = block.head or ("", "")
    right = _numeric(block.rows)
    rule = [" ---: " if block.head and right[i] else " --- " for i in range(len(head))] if block.rows else [" --- "]
    lines = ["|" + "|".join(f" {_plain(cell)} " for cell in head) + "|", "|" + "|".join(rule) + "|"]
    lines += ["|" + "|".join(f" {_plain(cell)} " for cell in row) + "|" for row in block.rows]
    return "\n".join(lines)


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip()) if part.strip()]


def _plain(text: str) -> str:
    """`text` that Markdown shows as it is: no markup, no HTML, no link, one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&!])", r"\\\1", " ".join(text.split()))
