"""`mlops-ray token create | list | revoke | rotate`: who may ask what of a project that serves."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated, Any

import typer

from mlops_ray.cli.output import AsJson, Config, day, say, table_console

app = typer.Typer(no_args_is_help=True, help="Bearer tokens for a project's endpoints (serving.auth: token).")

Id = Annotated[str, typer.Argument(help="The token's id, as `mlops-ray token list` shows it.")]


class Role(StrEnum):
    """The roles of `mlops_ray.serving.access`, named here so that --help need not import the serving room."""

    predict = "predict"
    feedback = "feedback"
    read = "read"
    operate = "operate"
    approve = "approve"


@app.command()
def create(
    config: Config,
    name: Annotated[str, typer.Argument(help="Whose token it is, such as checkout-service.")],
    role: Annotated[list[Role], typer.Option("--role", "-r", help="What it allows; give it again for more roles.")],
    expires_days: Annotated[float | None, typer.Option(min=0, help="Days until it ends; default: never.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token and print it, this once: the database keeps only its hash.

    mlops-ray token create -c configs/flights.yaml checkout-service --role predict --role feedback
    """
    from mlops_ray.verbs.access import token_create

    say(token_create(config, os.environ, name, role, expires_days=expires_days), as_json, lambda r: str(r["token"]))


@app.command("list")
def list_(config: Config, as_json: AsJson = False) -> None:
    """All tokens: id, name, roles, when they end; never a secret."""
    from rich.table import Table

    from mlops_ray.verbs.access import token_list

    result = token_list(config, os.environ)
    if as_json:
        say(result, True, str)
        return
    if result["auth"] == "off":
        typer.echo("serving.auth is off: no request needs a token", err=True)
    table = Table("id", "name", "roles", "created", "ends")
    for token in result["tokens"]:
        table.add_row(token["id"], token["name"], " ".join(token["roles"]), day(token["created"]), _ends(token))
    table_console().print(table)


@app.command()
def revoke(config: Config, token: Id, as_json: AsJson = False) -> None:
    """End a token now; replicas refuse it within two seconds."""
    from mlops_ray.verbs.access import token_revoke

    say(token_revoke(config, os.environ, token), as_json, lambda r: f"token {r['id']} of {r['name']} has ended")


@app.command()
def rotate(
    config: Config,
    token: Id,
    overlap_s: Annotated[float, typer.Option(min=0, help="How long the old one still works.")] = 3600.0,
    as_json: AsJson = False,
) -> None:
    """Make a new token with the same name and roles; the old one ends after the overlap. Nothing restarts."""
    from mlops_ray.verbs.access import token_rotate

    say(token_rotate(config, os.environ, token, overlap_s=overlap_s), as_json, lambda r: str(r["token"]))


def _ends(token: dict[str, Any]) -> str:
    if token["expires"] is None:
        return "never"
    return day(token["expires"]) + ("" if token["valid"] else " (ended)")
