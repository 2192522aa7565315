"""`mlops-ray profile` and `mlops-ray drift`: look at any data, with or without a project."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mlops_ray.cli.output import AsJson, Kind, say, table_console, writable

if TYPE_CHECKING:
    from rich.console import Console


Mode = Literal["exact", "profile"]

Project = Annotated[
    list[Path] | None,
    typer.Option("--config", "-c", help="Project file (then overlays): its dtypes, and `version:3`, `source` as data."),
]
Html = Annotated[
    Path | None,
    typer.Option(metavar="FILE", callback=writable, help="Also write a page that needs nothing else."),
]


def profile(
    data: Annotated[
        str, typer.Argument(help="File, pattern in quotes, directory or Delta table; with -c also version:3, source.")
    ],
    config: Project = None,
    kind: Kind = None,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """What data holds, column by column: missing and distinct values, moments, quartiles, most frequent categories.

    Any Parquet, CSV or JSON lines file, or a Delta table, without a project file:

      mlops-ray profile flights.parquet

      mlops-ray profile 'logs/2024-*.csv' --html page.html
    """
    from mlops_ray.verbs import profile as verbs

    result = verbs.profile(data, config or (), os.environ, kind)
    if html is not None:
        from mlops_ray.data.profile_report import profile_page

        html.write_text(profile_page(result), encoding="utf-8")
    if as_json:
        say(result, True, str)
    else:
        show_profile(result, table_console())


def drift(
    reference: Annotated[str, typer.Option(help="What is usual: data as for `profile`.", show_default=False)],
    current: Annotated[str, typer.Option(help="What is to be compared with it.", show_default=False)],
    config: Project = None,
    mode: Annotated[
        Mode, typer.Option(help="exact compares the values; profile only their profiles, with the error that leaves.")
    ] = "exact",
    kind: Kind = None,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """How far current data lies from a reference, feature by feature: distances and p-values.

    There is no verdict: which distance is too large depends on how much the reference itself moves from window to
    window, and that is the monitor's to find out.

      mlops-ray drift --reference january.parquet --current july.parquet

      mlops-ray drift --reference version:1 --current version:latest -c configs/flights.yaml
    """
    from mlops_ray.verbs import profile as verbs

    result = verbs.drift(reference, current, config or (), os.environ, mode, kind)
    if html is not None:
        from mlops_ray.data.profile_report import drift_page

        html.write_text(drift_page(result), encoding="utf-8")
    if as_json:
        say(result, True, str)
    else:
        show_drift(result, table_console())


# Tables ---------------------------------------------------------------------------------------------------------------

_BARS = " ▁▂▃▄▅▆▇█"


def spark(counts: list[int]) -> str:
    """Counts as a row of little bars; an empty bin is a blank."""
    most = max(counts, default=0)
    return "".join(_BARS[-(-8 * n // most)] if most else " " for n in counts)


def show_profile(result: dict[str, Any], console: Console) -> None:
    """The result of `verbs.profile` for people."""
    from rich.table import Table
    from rich.text import Text

    title = Text(f"{result['data']}: {result['rows']:,} rows, {len(result['columns'])} columns")
    table = Table(title=title, title_justify="left")
    for name in ("column", "kind", "missing", "distinct", "low", "quartiles", "high", "mean ± std", "values"):
        table.add_column(name, justify="right" if name in ("missing", "distinct", "low", "high") else "left")
    for c in result["columns"]:
        numeric, time = c["kind"] == "numeric", c["kind"] == "time"
        values = _listed(c.get("top", []), result["rows"])
        if numeric:
            values = spark(c["counts"])
        elif time and c["low"] is not None:
            values = f"{c['low'][:16]} to {c['high'][:16]}"
        table.add_row(
            Text(c["name"]),
            c["kind"],
            f"{c['missing']:.1%}",
            f"{c['distinct']:,}" if "distinct" in c else "",
            _short(c["low"]) if numeric else "",
            " ".join(_short(c[q]) for q in ("q25", "median", "q75")) if numeric else "",
            _short(c["high"]) if numeric else "",
            f"{_short(c['mean'])} ± {_short(c['std'])}" if numeric else "",
            Text(values),
        )
    console.print(table)


def show_drift(result: dict[str, Any], console: Console) -> None:
    """The result of `verbs.drift` for people."""
    from rich.table import Table
    from rich.text import Text

    rows = result["rows"]
    title = f"{result['current']} ({rows[1]:,} rows) against {result['reference']} ({rows[0]:,} rows), {result['mode']}"
    table = Table(title=Text(title), title_justify="left", show_lines=True)
    for name in ("feature", "PSI", "JS", "KS", "chi²", "p", "W / std", "L∞", "then, now", "in words"):
        left = name in ("feature", "then, now", "in words")
        table.add_column(name, justify="left" if left else "right", no_wrap=name != "in words")
    for f in result["features"]:
        s = f["statistics"]
        p = s.get("kolmogorov_smirnov_p", s.get("chi_square_p"))
        table.add_row(
            Text(f["name"]),
            *(_near(f, name) for name in ("psi", "jensen_shannon", "kolmogorov_smirnov")),
            _short(s.get("chi_square")),
            "" if p is None else ("<0.001" if p < 0.001 else f"{p:.3f}"),
            *(_near(f, name) for name in ("wasserstein_normed", "l_infinity")),
            f"{spark(f['reference'])}\n{spark(f['current'])}",
            Text("; ".join(f["words"])),
        )
    console.print(table)
    for note in result["notes"]:
        console.print(Text(f"not compared: {note}"), soft_wrap=True)


def _near(feature: dict[str, Any], name: str) -> str:
    value, error = feature["statistics"].get(name), feature["errors"].get(name)
    if value is None:
        return ""
    return f"{value:.3f}" + (f" ±{error:.3f}" if error is not None else "")


def _listed(top: list[list[Any]], rows: int) -> str:
    return ", ".join(f"{name} {n / rows:.0%}" for name, n in top[:4]) + (", ..." if len(top) > 4 else "")


def _short(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:.3e}"
