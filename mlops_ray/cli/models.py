"""`mlops-ray lineage | card | reproduce | export | approve | reject`: one version, looked at from all sides."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlops_ray.cli.output import AsJson, Config, progress, say, table_console, writable
from mlops_ray.texts import harmless, harmless_lines

if TYPE_CHECKING:
    from rich.tree import Tree

    from mlops_ray.governance.lineage import Node

Reason = Annotated[str, typer.Option("--reason", "--why", help="Why, for the ledger.")]
TokenEnv = Annotated[str, typer.Option(metavar="NAME", help="Environment variable with your token.")]
Version = Annotated[int, typer.Argument(help="A registered version, such as 3; `mlops-ray status` lists them.")]


def lineage(config: Config, version: Version, as_json: AsJson = False) -> None:
    """Where a version comes from: data, code, environment, run, gates, approvals, rollouts.

    mlops-ray lineage -c configs/flights.yaml 3
    """
    from mlops_ray.verbs import models

    found = models.lineage(config, os.environ, version)
    if as_json:
        say(found.to_dict(), True, str)
    else:
        table_console().print(_tree(found.tree()))


def card(
    config: Config,
    version: Version,
    html: Annotated[Path | None, typer.Option(help="Write the page to this file.", callback=writable)] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown to this file.", callback=writable)] = None,
) -> None:
    """The model card of a version, from recorded facts only; Markdown on standard output unless a file is named.

    What people must say (owner, intended use, limits) stands in the project file's `about:` block.
    """
    from mlops_ray.verbs import models

    found = models.card(config, os.environ, version)
    for path, text in ((html, found["html"]), (markdown, found["markdown"])):
        if path is not None:
            path.write_text(text, encoding="utf-8")
            typer.echo(f"the card of v{version} is in {path}")
    if html is None and markdown is None:
        typer.echo(harmless_lines(found["markdown"]))


def reproduce(
    config: Config,
    version: Version,
    search: Annotated[bool, typer.Option("--search", help="Repeat the whole search, not only its winner.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a version again from its recipe and compare predictions on the holdout: bit-equal, equal, or different.

    Says what differs in code, environment and project file. Exit code 3 when the predictions are different.
    """
    from mlops_ray.verbs import models

    with progress(as_json) as on_progress:
        result = models.reproduce(config, os.environ, version, on_progress, search=search)
    say(result, as_json, _reproduced)
    if result["same"] == "different":
        raise typer.Exit(3)


def export(
    config: Config,
    version: Version,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A new directory.")],
    onnx: Annotated[
        bool, typer.Option("--onnx", help="The graph, and a script that needs ONNX Runtime alone.")
    ] = False,
    dockerfile: Annotated[bool, typer.Option("--dockerfile", help="A Dockerfile that serves it.")] = False,
    conda: Annotated[bool, typer.Option("--conda", help="conda.yaml of the recorded environment.")] = False,
    requirements: Annotated[bool, typer.Option("--requirements", help="requirements.txt of the same.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a folder that serves or embeds a version elsewhere, without this package where that is possible.

    mlops-ray export -c configs/flights.yaml 3 -o flights-v3 --onnx --dockerfile
    """
    from mlops_ray.verbs import models

    if not (onnx or dockerfile or conda or requirements):
        raise typer.BadParameter("say what to write: --onnx, --dockerfile, --conda, --requirements")
    wanted = {"onnx": onnx, "dockerfile": dockerfile, "conda": conda, "requirements": requirements}
    result = models.export(config, os.environ, version, output, **wanted)
    say(result, as_json, lambda r: f"v{r['version']} in {r['folder']}: {', '.join(r['files'])}")


def approve(
    config: Config, version: Version, reason: Reason, token_env: TokenEnv = "MLOPS_RAY_TOKEN", as_json: AsJson = False
) -> None:
    """Approve a version that waits for it (`gates.approval`), or its open rollout (`rollout.approval`).

    You are the subject of your token with `serving.auth: token`, else the user of this machine. Nobody approves what
    they proposed. The ledger keeps who and why.
    """
    from mlops_ray.verbs import models

    say(models.approve(config, os.environ, version, reason, token_env=token_env), as_json, _decided)


def reject(
    config: Config, version: Version, reason: Reason, token_env: TokenEnv = "MLOPS_RAY_TOKEN", as_json: AsJson = False
) -> None:
    """Reject a version, or a rollout, that waits for an approval: it gets no traffic until you approve it yourself."""
    from mlops_ray.verbs import models

    say(models.reject(config, os.environ, version, reason, token_env=token_env), as_json, _decided)


def _decided(result: dict[str, Any]) -> str:
    what = f"rollout {result['rollout']}" if result["rollout"] else f"v{result['version']}"
    if result["already"] and not result["approvers"] and not result["rejecters"]:
        return f"{what} needs no approval: it is {result['status']} already; the ledger has no new entry"
    again = f"{result['who']} had decided so before, the ledger has no new entry; " if result["already"] else ""
    status = "" if result["rollout"] else f", {result['status']}"
    return f"{again}{what} is {result['says']}{status}"


def _tree(node: Node) -> Tree:
    from rich.markup import escape
    from rich.tree import Tree

    tree = Tree(escape(harmless(node.text)))
    for child in node.children:
        tree.add(_tree(child))
    return tree


def _reproduced(result: dict[str, Any]) -> str:
    gap = "" if result["same"] == "bit-equal" else f" (largest difference {result['max_gap']:.3g})"
    lines = [f"v{result['version']}: {result['n_rows']:,} predictions on the holdout are {result['same']}{gap}"]
    if result["search"] is not None:
        found = result["search"]
        lines.append(
            f"  the search found {'the same winner' if found['same'] else 'another winner: ' + found['winner']}"
        )
    return "\n".join([*lines, *(f"  {said}" for said in result["differences"])])
