"""`mlops-ray data ...`: dataset versions."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlops_ray.cli.output import AsJson, Config, day, say, table_console

if TYPE_CHECKING:
    from rich.console import RenderableType

app = typer.Typer(
    no_args_is_help=True,
    help="Dataset versions: list them, look at one, compare two, and remove what nobody needs. Needs no cluster.",
)

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def _span(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no span of time; write 90m, 12h, 1d or 2w")
    return float(found[1]) * _UNITS[found[2]]


def _instant(text: str) -> float:
    try:
        found = datetime.fromisoformat(text)
    except ValueError as exc:
        raise typer.BadParameter(f"{text!r} is no date; write 2026-01-31 or 2026-01-31T12:00:00+00:00") from exc
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


@app.command("list")
def list_versions(config: Config, as_json: AsJson = False) -> None:
    """Every dataset version that stands, newest first: rows, size, content, origin, and the models trained on it.

    A star marks what the source said last: training takes that one.
    """
    from mlops_ray.verbs import data

    result = data.list_versions(config, os.environ)
    if as_json or not result["versions"]:
        say(result, as_json, lambda r: f"{r['project']} has no dataset version yet; run `mlops-ray prepare`")
    else:
        table_console().print(_table(result["versions"]))


@app.command()
def show(
    config: Config,
    version: Annotated[int, typer.Argument(help="A dataset version, as `data list` numbers them.")],
    as_json: AsJson = False,
) -> None:
    """One version: where its rows came from, its columns with nulls and bounds, its files."""
    from mlops_ray.verbs import data

    result = data.show(config, os.environ, version)
    if as_json:
        say(result, True, str)
    else:
        table_console().print(_details(result))


@app.command()
def diff(
    config: Config,
    before: Annotated[int, typer.Argument(help="The version to start from.")],
    after: Annotated[int, typer.Argument(help="The version to compare it with.")],
    examples: Annotated[int, typer.Option(min=0, help="How many rows of each kind to show.")] = 5,
    as_json: AsJson = False,
) -> None:
    """What changed between two versions: columns, and rows added, removed and changed by key, with examples."""
    from mlops_ray.verbs import data

    say(data.diff(config, os.environ, before, after, examples), as_json, _changes)


@app.command()
def gc(
    config: Config,
    older_than: Annotated[
        str, typer.Option(help="Grace: what a run touched since then stays, for the run may still be under way.")
    ] = "1d",
    keep: Annotated[
        int | None, typer.Option(min=1, help="Also remove versions, all but the newest so many.", show_default=False)
    ] = None,
    before: Annotated[
        str | None, typer.Option(help="Also remove versions committed before that date (UTC).", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without this, only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove files that killed runs left behind and, when asked, old versions.

    A version that a registered model was trained on stays, so does the newest, and what the source said last.
    A removed version says so when it is read.
    """
    from mlops_ray.verbs import data

    limit = _instant(before) if before is not None else None
    result = data.gc(config, os.environ, older_than_s=_span(older_than), keep=keep, before=limit, really=yes)
    say(result, as_json, _collected)


def _table(versions: list[dict[str, Any]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in ("version", "committed", "rows", "size", "content", "made by", "source", "parents", "models"):
        table.add_column(name, justify="right" if name in ("version", "rows", "size") else "left")
    for found in versions:
        table.add_row(
            f"{'* ' if found['current'] else ''}{found['version']}",
            day(found["committed"]),
            f"{found['rows']:,}",
            _size(found["bytes"]),
            found["content_hash"][:12] + (" (redacted)" if found["redacted"] else ""),
            Text(_maker(found)),
            Text(_sources(found["uris"])),
            ", ".join(str(parent["version"]) for parent in found["parents"]),
            ", ".join(f"v{number}" for number in found["models"]),
        )
    return table


def _details(found: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    lineage = found["lineage"]
    code = lineage.get("code")
    head = Table.grid(padding=(0, 2))
    facts = {
        "version": f"{found['version']} of {found['uri']}",
        "committed": f"{day(found['committed'])} UTC by {_maker(found)}",
        "content": found["content_hash"] + (f"; {found['redacted']}" if found["redacted"] else ""),
        "rows": f"{found['rows']:,} in {len(found['files'])} files, {_size(found['bytes'])}",
        "sources": _sources(found["uris"]),
        "parents": ", ".join(str(parent["version"]) for parent in found["parents"]) or "none",
        "code": (code["commit"] + (" with changes" if code["dirty"] else "")) if code else "unknown",
        "config": lineage.get("config_sha256", "unknown"),
        "mlops-ray": lineage.get("mlops_ray", "unknown"),
        "validation": _report(found["report"]),
        "models": ", ".join(f"v{number}" for number in found["models"]) or "none",
        "beside it": ", ".join(f"{name} ({_size(n)})" for name, n in found["beside"].items()) or "nothing",
    }
    for name, value in facts.items():
        head.add_row(name, Text(str(value)))
    columns = Table("column", "type", "nulls", "smallest", "largest", box=None, pad_edge=False)
    for name, column in found["columns"].items():
        bounds = [Text(str(column.get(bound, ""))) for bound in ("min", "max")]
        columns.add_row(Text(name), column["dtype"], f"{column['nulls']:,}", *bounds)
    return Group(head, Text(), columns)


def _changes(found: dict[str, Any]) -> str:
    by = f"by {', '.join(found['key'])}" if found["key"] else "as whole rows, for they share no key"
    lines = [
        f"version {found['before']['version']} -> {found['after']['version']}, {by}",
        f"rows: {found['n_added']:,} added, {found['n_removed']:,} removed, {found['n_changed']:,} changed, "
        f"{found['n_same']:,} the same",
    ]
    lines += [f"column + {name}: {dtype}" for name, dtype in found["columns_added"].items()]
    lines += [f"column - {name}: {dtype}" for name, dtype in found["columns_removed"].items()]
    lines += [f"column ~ {name}: {old} -> {new}" for name, (old, new) in found["columns_retyped"].items()]
    lines += [f"+ {row}" for row in found["added"]]
    lines += [f"- {row}" for row in found["removed"]]
    for old, new in found["changed"]:
        names = [name for name in dict.fromkeys((*old, *new)) if old.get(name) != new.get(name)]
        what = ", ".join(f"{name} {old.get(name)} -> {new.get(name)}" for name in names)
        lines.append(f"~ { ({name: new[name] for name in found['key']}) }: {what}")
    return "\n".join(lines)


def _collected(result: dict[str, Any]) -> str:
    lines = []
    for table in result["tables"]:
        versions = ", ".join(str(version["version"]) for version in table["versions"])
        what = f"{len(table['files'])} files, {_size(table['bytes'])}" + (f"; versions {versions}" if versions else "")
        lines.append(f"{'removed' if result['removed'] else 'would remove'} from {table['uri']}: {what}")
        lines += [f"  version {entry['version']} stays: {entry['why']}" for entry in table["kept"]]
    if not result["removed"]:
        lines.append("add --yes to do it")
    return "\n".join(lines)


def _maker(found: dict[str, Any]) -> str:
    made_by = found["made_by"]
    return " ".join(filter(None, (made_by.get("verb", "unknown"), made_by.get("decision"))))


def _report(report: dict[str, Any] | None) -> str:
    if report is None:
        return "no report is kept"
    return ", ".join(f"{name} {value:,}" for name, value in report.items() if isinstance(value, int))


def _sources(uris: list[str]) -> str:
    return ", ".join(uris[:2]) + (f" and {len(uris) - 2} more" if len(uris) > 2 else "")


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"
