"""The ledger: shown, verified against the heads that were kept elsewhere, taken out, and asked who served when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_ray.errors import BackendUnavailable, DataError, NoAnchor
from mlops_ray.verbs import Env, Paths, known_store, load

if TYPE_CHECKING:
    from mlops_ray.config import Project
    from mlops_ray.governance.served import Served
    from mlops_ray.ledger import Anchor, Entry


# Of decisions that are missing, in a sentence.
_SHOWN = 5


def show(
    paths: Paths, env: Env, *, since: float | None = None, kind: str | None = None, subject: str | None = None
) -> dict[str, Any]:
    """Entries of the project's ledger, oldest first.

    Args: since: only those dated then or later, seconds since the epoch. kind: only those whose kind begins so.
        subject: only those about it (`v3`, a rollout's or a retrain's id).
    """
    from mlops_ray import ledger

    project = load(paths, env).project
    with known_store(project).read() as tx:
        found = ledger.entries(tx, project.project)
    wanted = [
        entry
        for entry in found
        if (since is None or entry.at >= since)
        and (kind is None or entry.kind.startswith(kind))
        and (subject is None or subject in (entry.subject, entry.evidence.get("rollout")))
    ]
    return {"entries": [asdict(entry) for entry in wanted], "n": len(found)}


def verify(
    paths: Paths,
    env: Env,
    *,
    anchors: Sequence[str] = (),
    anchors_file: str | Path | None = None,
    accept_loss: Sequence[str] = (),
) -> dict[str, Any]:
    """Whether the project's chain is unbroken, against all heads that promotions have left in MLflow and those that are
    given, and whether it holds what the state's rows say was decided; `says` names what cannot be proven, `unasked` why
    MLflow could not be asked, `unrecorded` which decisions are missing.

    Args: anchors: as SEQ:HASH. anchors_file: with one a line, or an export. accept_loss: heads, as SEQ:HASH, that need
        not be met, because whoever asks knows why they are lost.
    Raises: NoAnchor for an anchor, or a file of them, that cannot be read.
    """
    from mlops_ray import ledger
    from mlops_ray.governance.unrecorded import unrecorded

    project = load(paths, env).project
    given = [ledger.parse_anchor(text) for text in anchors]
    if anchors_file is not None:
        try:
            text = Path(anchors_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise NoAnchor(str(anchors_file), f"cannot be read as a file of anchors ({exc})") from exc
        given += ledger.parse_anchors(text, str(anchors_file))
    lost = [ledger.parse_anchor(text) for text in accept_loss]
    store = known_store(project)
    kept, unasked = _kept(project)
    entries: list[Entry] = []
    with store.read() as tx:
        found = ledger.verify(tx, project.project, *given, *kept, accepted=lost, heard=entries.append)
        # Of a chain that does not hold there is nothing more to say than where it breaks.
        missing = unrecorded(tx, project.project, entries) if found.ok else ()
    says = str(found) + (f"; {unasked}" if unasked else "")
    if missing:
        more = f"; and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        says = f"ledger is broken: it does not say {'; '.join(missing[:_SHOWN])}{more}, as the state's rows do"
    return asdict(found) | {
        "ok": found.ok and not missing,
        "says": says,
        "unrecorded": list(missing),
        "anchors": {"given": len(given), "mlflow": len(kept)},
        "unasked": unasked,
    }


def export(paths: Paths, env: Env, output: str | Path | None = None) -> dict[str, Any]:
    """All entries, each a line of JSON with its hash, in `lines`, or in the file `output`.

    Kept elsewhere it is a file of anchors for `verify`. Raises: DataError when the file cannot be written."""
    from mlops_ray import ledger
    from mlops_ray.state import canonical

    project = load(paths, env).project
    with known_store(project).read() as tx:
        found = ledger.entries(tx, project.project)
    lines = [canonical(asdict(entry), "ledger entry") for entry in found]
    if output is not None:
        try:
            Path(output).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        except OSError as exc:
            raise DataError(str(output), f"cannot be written ({exc.strerror}); name another file") from exc
    head = found[-1] if found else None
    return {
        "n": len(lines),
        "head": [head.seq, head.hash] if head else None,
        "output": str(output) if output is not None else None,
        "lines": lines if output is None else None,
    }


def at(paths: Paths, env: Env, moment: float) -> Served:
    """What served at a time, seconds since the epoch, and who approved it."""
    from mlops_ray import ledger
    from mlops_ray.governance.served import served

    project = load(paths, env).project
    with known_store(project).read() as tx:
        found = ledger.entries(tx, project.project)
    return served(found, moment)


def _kept(project: Project) -> tuple[list[Anchor], str | None]:
    """The heads in MLflow, and why they could not be read. Without an MLflow of ours there is nothing to ask, nor to
    import, which takes seconds."""
    file = project.storage.tracking.removeprefix("sqlite:///")
    if file != project.storage.tracking and not Path(file).exists():
        return [], None
    from mlops_ray.training.on_registry import anchors

    try:
        return anchors(project), None
    except (BackendUnavailable, DataError) as exc:
        return [], f"the anchors that promotions keep in MLflow were not looked at: {exc}"
