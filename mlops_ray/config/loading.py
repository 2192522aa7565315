"""Reading a project file: YAML and overlays in, a `Project` or one `ConfigError` with every mistake out.

Nothing here touches Ray, MLflow or the network, so that `mlops-ray check` answers in well under a second.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from mlops_ray.config.alerts import bare_secrets
from mlops_ray.config.operation import Storage
from mlops_ray.config.project import Loc, Project, cross_checks
from mlops_ray.config.recorded import LogPlan
from mlops_ray.config.sources import FILE_READERS, Source
from mlops_ray.config.training import PRESETS
from mlops_ray.errors import ConfigError

_M = TypeVar("_M", bound=BaseModel)


def load_project(paths: Sequence[str | Path] | str | Path, *, env: Mapping[str, str]) -> Project:
    """The project that `paths` describe: the first is the base, each further one an overlay that wins.

    Mappings merge key by key; lists and scalars are replaced, and so is a block whose `kind:` an overlay changes.
    `${NAME}` inside a string is taken from `env`.
    Raises: ConfigError with every mistake found, each with file, line, field, value and remedy.
    """
    files = [Path(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
    label = " + ".join(map(str, files))
    written: dict[str, Any] = {}
    lines: dict[Loc, tuple[str, int]] = {}
    unreadable: list[str] = []
    for file in files:
        try:
            written = _merge(written, _read_yaml(file, lines))
        except ConfigError as exc:
            unreadable += exc.problems
    if unreadable:
        raise ConfigError(label, tuple(unreadable))
    unset: list[tuple[Loc, str]] = []
    raw = _expand(written, env, (), unset)
    project, wrong = _validate(raw, written)
    if project is None or unset:
        order = [str(file) for file in files]
        placed = {
            (*_place(loc, lines, label), ".".join(map(str, loc)) or "(file)", what) for loc, what in unset + wrong
        }
        placed_in_order = sorted(placed, key=lambda p: (order.index(p[0]) if p[0] in order else -1, *p[1:]))
        raise ConfigError(
            label, tuple(f"{file}:{line}: {field}: {what}" for file, line, field, what in placed_in_order)
        )
    return project


def load_source(paths: Sequence[str | Path], *, env: Mapping[str, str]) -> Source:
    """The `source:` of a project file that may lack all its other blocks, or have mistakes in them.

    Raises: ConfigError with the mistakes in `source:`, or in the file's syntax.
    """
    label = " + ".join(map(str, paths))
    lines: dict[Loc, tuple[str, int]] = {}
    written: dict[str, Any] = {}
    for file in paths:
        written = _merge(written, _read_yaml(Path(file), lines))
    unset: list[tuple[Loc, str]] = []
    raw = _expand({"source": written.get("source")} if "source" in written else {}, env, (), unset)
    _, wrong = _validate(raw, written)
    problems = [(loc, what) for loc, what in [*unset, *wrong] if loc[:1] == ("source",)]
    if problems:
        placed = sorted((*_place(loc, lines, label), ".".join(map(str, loc)), what) for loc, what in problems)
        raise ConfigError(label, tuple(f"{file}:{line}: {field}: {what}" for file, line, field, what in placed))
    return Source.model_validate(raw["source"])


def _absolute(path: str) -> str:
    """`path` from the file system's root; addresses and what the environment will fill in stay as they are."""
    return path if "://" in path or path.startswith("${") else str(Path(path).expanduser().absolute())


def load_log_plan(path: str | Path) -> LogPlan:
    """The plan of `mlops-ray analyze` in this file. Raises: ConfigError with every mistake found, as `load_project`."""
    lines: dict[Loc, tuple[str, int]] = {}
    written = _read_yaml(Path(path), lines)
    plan, wrong = _validate_as(LogPlan, written, written)
    if plan is None:
        placed = sorted(
            (*_place(loc, lines, str(path)), ".".join(map(str, loc)) or "(file)", what) for loc, what in wrong
        )
        raise ConfigError(str(path), tuple(f"{file}:{line}: {field}: {what}" for file, line, field, what in placed))
    return plan


def _validate(raw: dict[str, Any], written: Mapping[str, Any]) -> tuple[Project | None, list[tuple[Loc, str]]]:
    """The project and nothing, or None and every mistake."""
    project, problems = _validate_as(Project, raw, written)
    bare = [(("alerts", "channels", *loc), what) for loc, what in bare_secrets(written.get("alerts"))]
    if project is not None and not bare:
        return project, []
    # `cross_checks` places what spans blocks
    return None, [*((loc, what) for loc, what in problems if loc), *cross_checks(raw), *bare]


def _validate_as(
    model: type[_M], raw: dict[str, Any], written: Mapping[str, Any]
) -> tuple[_M | None, list[tuple[Loc, str]]]:
    """What is described and nothing, or None and every mistake.

    A block's own rule speaks only once all its fields are sound, so wrong fields are taken out (their defaults stand
    in) and the rest is looked at again, until nothing new turns up.
    """
    problems: dict[Loc, str] = {}
    rest: Any = raw
    while True:
        try:
            found_model = model.model_validate(rest)
        except ValidationError as exc:
            found = [(_real(e["loc"]), e) for e in exc.errors()]
        else:
            return (None, [*problems.items()]) if problems else (found_model, [])
        # A wrong item makes its list "too short", a field taken out is "missing": echoes, not mistakes.
        inner = [*problems, *(loc for loc, _ in found)]
        above = {loc[:i] for loc in inner for i in range(len(loc))}
        new: dict[Loc, str] = {}
        for loc, error in found:
            echo = error["type"] in ("missing", "too_short") and loc in above
            if loc not in problems and loc not in new and not echo:
                new[loc] = _sentence(error, loc, written, model)
        if not new:
            return None, [*problems.items()]
        problems |= new
        for loc in filter(None, new):
            rest = _without(rest, loc)


def _without(value: Any, loc: Loc) -> Any:
    """A copy of `value` without the field at `loc`. Lists keep their indexes: with a wrong item goes its whole list."""
    head, tail = loc[0], loc[1:]
    if isinstance(value, dict):
        if not tail or (len(tail) == 1 and isinstance(tail[0], int)):
            return {k: v for k, v in value.items() if k != head}
        return {k: _without(v, tail) if k == head else v for k, v in value.items()}
    if isinstance(value, list) and tail:
        return [_without(v, tail) if i == head else v for i, v in enumerate(value)]
    return value


def portable(paths: Sequence[str | Path]) -> str:
    """Base and overlays as one YAML text that means the same in any directory: what `up` hands to the jobs it starts.

    `storage.root`, SQLite's files and a local `source.path` become absolute; `${NAME}` stays, so that no secret is
    written down.
    """
    lines: dict[Loc, tuple[str, int]] = {}
    raw: dict[str, Any] = {}
    for file in paths:
        raw = _merge(raw, _read_yaml(Path(file), lines))
    here: dict[str, Any] = {"storage": {"root": _absolute((raw.get("storage") or {}).get("root", Storage().root))}}
    for field in ("state_url", "tracking_uri"):
        url = str((raw.get("storage") or {}).get(field) or "")
        if url.startswith("sqlite:///") and not url.startswith("sqlite:////"):
            here["storage"][field] = "sqlite:///" + _absolute(url.removeprefix("sqlite:///"))
    if isinstance(raw.get("source"), dict):
        here["source"] = _placed(raw["source"])
    raw = _merge(raw, here)
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


def _placed(source: Mapping[str, Any]) -> dict[str, Any]:
    """A source, and those in it, with absolute paths; what a service is told (a table's name) is no path."""
    placed = dict(source)
    path = source.get("path")
    if path and source.get("kind") in FILE_READERS:
        placed["path"] = [_absolute(p) for p in path] if isinstance(path, list) else _absolute(path)
    if isinstance(source.get("sources"), list):
        placed["sources"] = [_placed(part) if isinstance(part, dict) else part for part in source["sources"]]
    return placed


def parse_portable(text: str, *, env: Mapping[str, str]) -> Project:
    """The project that `portable` wrote down, with `${NAME}` taken from `env`.

    Raises: ConfigError when the environment lacks a name, or the text is another release's.
    """
    problems: list[tuple[Loc, str]] = []
    written = yaml.safe_load(text)
    project, wrong = _validate(_expand(written, env, (), problems), written)
    if project is None or problems:
        raise ConfigError(
            "the project file kept by `up`", tuple(f"{'.'.join(map(str, at))}: {w}" for at, w in problems + wrong)
        )
    return project


def portable_storage(text: str) -> str:
    """The `storage:` of what `portable` wrote down: all that is needed to find the state database."""
    return yaml.safe_dump({"storage": yaml.safe_load(text).get("storage")}, sort_keys=False, allow_unicode=True)


def parse_storage(text: str, *, env: Mapping[str, str]) -> Storage:
    """What `portable_storage` wrote down, with `${NAME}` taken from `env`.

    Raises: ConfigError when the environment lacks a name."""
    problems: list[tuple[Loc, str]] = []
    written = _expand(yaml.safe_load(text), env, (), problems)
    if problems:
        raise ConfigError("the storage kept by `up`", tuple(f"{'.'.join(map(str, at))}: {w}" for at, w in problems))
    return Storage.model_validate(written["storage"] or {})


def _real(loc: Loc) -> Loc:
    """Pydantic names the member of a union in its path ("int", "uniform"); the file has no such level."""
    if "space" in loc:
        at = loc.index("space") + 2
        loc = loc[:at] + tuple(p for p in loc[at:] if p not in ("uniform", "log_uniform", "categorical", "int"))
    loc = tuple(p for p in loc if p not in ("one block", "a list"))
    if loc[:2] in (("validation", "expectations"), ("rollout", "analyses")) and len(loc) > 3:
        loc = loc[:3] + loc[4:]
    if loc[:2] == ("alerts", "channels") and len(loc) > 3:
        loc = loc[:3] + loc[4:]
    if loc[:1] == ("analyses",) and len(loc) > 2:  # of a plan by itself
        loc = loc[:2] + loc[3:]
    if loc and loc[-1] in ("str", "float", "int", "bool"):
        loc = loc[:-1]
    return tuple(p for p in loc if not (isinstance(p, str) and p.startswith(("tuple[", "constrained-"))))


def _sentence(error: Any, loc: Loc, written: Any, model: type[BaseModel]) -> str:
    """One pydantic error as: what is wrong, the value, the way out.

    The value is shown as it stands in the file (`written`), so that no secret behind a `${NAME}` is printed.
    """
    kind, ctx, value = error["type"], error.get("ctx", {}), error["input"]
    for part in loc:
        written = written[part] if _has(written, part) else None
    if isinstance(written, str) and "${" in written:
        value = written
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(loc[-1]), _fields_at(model, loc[:-1]), 1, 0.5)
        return f"unknown field {str(loc[-1])!r}; " + (f"did you mean {near[0]!r}?" if near else "remove it")
    if kind == "missing":
        return "is missing; add it"
    shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    if kind == "value_error":
        return f"{ctx.get('error', error['msg'])}" + ("" if isinstance(value, Mapping) else f"; got {shown}")
    if kind == "string_pattern_mismatch" and loc[-1] == "estimator":
        near = difflib.get_close_matches(str(value), PRESETS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{shown} is no estimator; {hint}presets are {', '.join(PRESETS)}, or an import path module:Class"
    if kind == "string_pattern_mismatch":
        return f"{shown} does not match {ctx['pattern']}; change it"
    if kind == "string_type":
        hint = "" if isinstance(value, dict | list | None) else " (put it in quotes)"
        return f"should be text{hint}; got {shown}"
    if kind == "invalid_key":
        return f"{value!r} is no field's name; YAML reads on, off, yes and no as truth values (a join takes `keys:`)"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"should be a block of fields; got {shown}"
    if kind == "tuple_type":
        return f"should be a list; got {shown}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        field, tags = ctx["discriminator"].strip("'"), ctx.get("expected_tags", "")
        if not tags:
            return f"`{field}:` is missing; add it"
        near = difflib.get_close_matches(str(ctx["tag"]), re.findall(r"'(\w+)'", tags), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{field} should be one of {tags}; got {ctx['tag']!r}{hint}"
    message = error["msg"].removeprefix("Input s").replace("hould be", "should be", 1)
    return f"{message}; got {shown}"


def _has(value: Any, part: str | int) -> bool:
    if isinstance(value, dict):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and part < len(value)


def _fields_at(model: type[BaseModel], loc: Loc) -> list[str]:
    """Names of the fields of the block at `loc`, for suggestions."""
    models: list[Any] = [model]
    for part in loc:
        if isinstance(part, int):
            continue
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        models = [model for field in fields for model in _models_in(field.annotation)]
    return list(dict.fromkeys(name for model in models for name in model.model_fields))


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for arg in getattr(annotation, "__args__", ()):
        yield from _models_in(arg)


def _place(loc: Loc, lines: Mapping[Loc, tuple[str, int]], label: str) -> tuple[str, int]:
    """File and line of the innermost thing around `loc` that stands in a file."""
    return next((lines[loc[:i]] for i in range(len(loc), -1, -1) if loc[:i] in lines), (label, 1))


def _read_yaml(file: Path, lines: dict[Loc, tuple[str, int]]) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as exc:
        raise ConfigError(str(file), (f"{file}: cannot be read ({exc.strerror}); check the path",)) from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(
            str(file), (f"{file}:1: is not UTF-8 text ({exc.reason} at byte {exc.start}); save it as UTF-8",)
        ) from exc
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        detail = getattr(exc, "problem", None) or " ".join(str(exc).split())
        raise ConfigError(str(file), (f"{file}:{line}: not YAML: {detail}; check indentation and quotes",)) from exc
    repeated: list[str] = []
    if node is not None:
        _index_lines(node, (), str(file), lines, repeated)
    if repeated:
        raise ConfigError(str(file), tuple(repeated))
    if not isinstance(content, dict):
        raise ConfigError(str(file), (f"{file}:1: must be a mapping of fields, like configs/quickstart.yaml",))
    return content


def _index_lines(node: yaml.Node, loc: Loc, file: str, lines: dict[Loc, tuple[str, int]], repeated: list[str]) -> None:
    if loc or loc not in lines:  # what is missing at the top is missing from the base file, not from an overlay
        lines[loc] = (file, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            at = (*loc, key.value)
            if key.value in seen:
                repeated.append(f"{file}:{key.start_mark.line + 1}: {'.'.join(map(str, at))}: stands twice; remove one")
            seen.add(key.value)
            _index_lines(value, at, file, lines, repeated)
            lines[at] = (file, key.start_mark.line + 1)
    elif isinstance(node, yaml.SequenceNode):
        for stale in [k for k in lines if k[: len(loc)] == loc and k != loc]:
            del lines[stale]  # an overlay's list replaces the base's
        for i, item in enumerate(node.value):
            _index_lines(item, (*loc, i), file, lines, repeated)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if (
            isinstance(old, dict)
            and isinstance(value, Mapping)
            and value.get("kind", old.get("kind")) == old.get("kind")
        ):
            value = _merge(old, value)
        # A block of another kind has other fields: what stood there for the old one would only be in the way.
        merged[key] = value
    return merged


def _expand(value: Any, env: Mapping[str, str], loc: Loc, problems: list[tuple[Loc, str]]) -> Any:
    """`value` with every `${NAME}` replaced from `env`; names that are not set are added to `problems`."""
    if isinstance(value, dict):
        return {k: _expand(v, env, (*loc, k), problems) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, env, (*loc, i), problems) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replacement(match: re.Match[str]) -> str:
        name = match[1]
        if not re.fullmatch(r"\w+", name):
            problems.append((loc, f"{match[0]!r} is not understood; write ${{NAME}}, there are no defaults"))
        elif not env.get(name):
            state = "is empty" if name in env else "is not set"
            problems.append((loc, f"environment variable {name} {state}; export {name}=..."))
        return env.get(name) or match[0]

    return re.sub(r"\$\{([^}]*)\}", replacement, value)
