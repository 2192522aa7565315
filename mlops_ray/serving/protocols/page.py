"""`/docs`: the interface for people, as one page without scripts, fonts or anything else from elsewhere.

It teaches: which columns a request has and what each may hold, a command to copy, what comes back, which errors there
are. Every text from the project file is escaped, and the page's own policy forbids whatever should slip through to run
or to load.
"""

from __future__ import annotations

import base64
import hashlib
import html as markup
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from mlops_ray.config import Column, Project
from mlops_ray.serving.exchange import Reply
from mlops_ray.serving.protocols import arrow, parts, schemas
from mlops_ray.serving.protocols.document import TAGS, Also, openapi
from mlops_ray.serving.protocols.form import Form

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --line: #e0e1e6; --page: #fcfcfd; --card: #fff;
  --code: #f3f4f6; --accent: #1f5fa8; --get: #1f7a4d; --post: #1f5fa8; --warn: #a15c00; }
@media (prefers-color-scheme: dark) { :root { --ink: #edeef0; --soft: #b0b4ba; --line: #363a3f; --page: #111113;
  --card: #18191b; --code: #202225; --accent: #70b8ff; --get: #3dd68c; --post: #70b8ff; --warn: #ffca16; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 system-ui, sans-serif; }
.frame { display: grid; grid-template-columns: 13rem minmax(0, 1fr); max-width: 76rem; margin: 0 auto; }
nav { position: sticky; top: 0; align-self: start; padding: 2.2rem 1rem; font-size: .9rem; }
nav b { display: block; margin-bottom: .6rem; overflow-wrap: anywhere; }
nav a { display: block; padding: .2rem 0; color: var(--soft); text-decoration: none; }
nav a:hover, nav a:focus { color: var(--accent); }
main { padding: 2rem 1.25rem 5rem; min-width: 0; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .4rem; }
h3 { font-size: .95rem; margin: 1.2rem 0 .3rem; } p { margin: .3rem 0 .8rem; max-width: 46rem; }
a { color: var(--accent); } .soft { color: var(--soft); }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; background: var(--card); }
table { border-collapse: collapse; width: 100%; } th { text-align: left; font-weight: 500; color: var(--soft); }
th, td { padding: .45rem .75rem; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; } td { overflow-wrap: break-word; } td.name { white-space: nowrap; }
td:last-child:not(.name) { min-width: 13rem; }
code, pre { font: .87em/1.55 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
td code, p code { background: var(--code); border-radius: .25rem; padding: .05rem .3rem; }
pre { margin: .4rem 0 1rem; padding: .8rem 1rem; background: var(--code); border: 1px solid var(--line);
  border-radius: .5rem; overflow-x: auto; }
.tag { display: inline-block; border: 1px solid var(--line); border-radius: 1rem; padding: 0 .55rem; font-size: .8rem;
  color: var(--soft); white-space: nowrap; }
.need { color: var(--warn); border-color: currentColor; }
.get, .post { font-weight: 600; font-size: .8rem; } .get { color: var(--get); } .post { color: var(--post); }
@media (max-width: 52rem) { .frame { display: block; } nav { position: static; padding: 1.2rem 1.25rem 0; }
  nav a { display: inline-block; margin-right: .9rem; } main { padding-top: 1rem; } }
@media print { nav { display: none; } .frame { display: block; } pre { white-space: pre-wrap; } }
"""

_POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    + "'"
)
_SECTIONS = (
    ("predict", "Ask for a prediction"),
    ("columns", "Columns"),
    ("options", "Options"),
    ("bulk", "Many rows"),
    ("feedback", "Send the label"),
    ("routes", "Routes"),
    ("errors", "Errors"),
)


def json_document(project: Project, *, release: str, classes: Sequence[str | int] = (), also: Also = ((), ())) -> Reply:
    """`GET /openapi.json`. classes: of a multiclass project, where they are known."""
    found = openapi(project, release=release, classes=classes, also=also)
    return Reply(orjson.dumps(found, option=orjson.OPT_INDENT_2))


def docs(project: Project, *, release: str, also: Also = ((), ())) -> Reply:
    """`GET /docs`. release: this package's version."""
    body = _page(project, release, also).encode()
    return Reply(body, "text/html; charset=utf-8", headers=(("Content-Security-Policy", _POLICY),))


def _page(project: Project, release: str, also: Also) -> str:
    form = Form.of(project)
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in _SECTIONS)
    about = f"<p>{_text(project.about.intended_use)}</p>" if project.about.intended_use else ""
    owner = f" It belongs to {_text(project.about.owner)}." if project.about.owner else ""
    head = (
        f"<h1>{_text(project.project)}</h1>"
        f'<p class="soft">Predicts <code>{_text(project.target)}</code>: {_TASKS[project.task]}.{owner}</p>{about}'
        f"<p>Base address <code>{_text(_base(project))}</code>. The same for machines: "
        f'<a href="openapi.json">openapi.json</a> (OpenAPI 3.1).</p>{_token(project)}'
    )
    written = {
        "predict": _predict(project, form),
        "columns": _columns(form),
        "options": _options(form),
        "bulk": _bulk(project, form),
        "feedback": _feedback(project, form),
        "routes": _routes(project, release, also),
        "errors": _errors(project, form),
    }
    body = "".join(f'<h2 id="{name}">{title}</h2>{written[name]}' for name, title in _SECTIONS)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(project.project)}: interface</title><style>{_STYLE}</style></head><body>"
        f'<div class="frame"><nav><b>{_text(project.project)}</b>{links}</nav><main>{head}{body}'
        f'<p class="soft">mlops_ray {_text(release)}</p></main></div></body></html>\n'
    )


_TASKS = {
    "binary": "the probability that it is 1, and a decision",
    "multiclass": "a probability for each class, and the likeliest",
    "regression": "a number",
}


# Pieces --------------------------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    return markup.escape(str(value))


def _code(text: str) -> str:
    return f"<pre><code>{_text(text)}</code></pre>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are markup already."""
    top = "".join(f"<th>{head}</th>" for head in heads)
    body = "".join(
        f'<tr><td class="name">{row[0]}</td>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _base(project: Project) -> str:
    return f"http://{project.cluster.host}:{project.cluster.http_port}/{project.project}"


def _token(project: Project) -> str:
    if project.serving.auth == "off":
        return ""
    return "<p>Every request needs a token: set <code>TOKEN</code> to yours before you copy a command.</p>"


def _curl(project: Project, path: str, document: Any) -> str:
    """A command that sends JSON, with quotes that a shell leaves alone."""
    quoted = "\n    ".join(_wrapped(document)).replace("'", "'\\''")
    token = ' \\\n  -H "Authorization: Bearer $TOKEN"' if project.serving.auth == "token" else ""
    return f"curl -s {_base(project)}{path}{token} \\\n  -H 'Content-Type: application/json' \\\n  -d '{quoted}'"


def _wrapped(document: Any) -> list[str]:
    """JSON in lines of some ninety characters, cut behind commas that stand between members."""
    pieces = json.dumps(document, ensure_ascii=False, indent=0).split("\n")
    lines = [""]
    for piece in pieces:
        if len(lines[-1]) + len(piece) > 90 and lines[-1].endswith(","):
            lines.append("")
        spaced = " " if lines[-1].endswith(",") else ""
        lines[-1] += spaced + piece
    return lines


# Sections ------------------------------------------------------------------------------------------------------------


def _row(form: Form) -> dict[str, Any]:
    """The example without its time, which is now when absent."""
    return {name: value for name, value in schemas.example(form).items() if name != form.event_time.name}


def _predict(project: Project, form: Form) -> str:
    decided: dict[str, dict[str, Any]] = {
        "binary": {"probability": 0.83, "label": 1},
        "multiclass": {"probabilities": {"a": 0.7, "b": 0.3}, "label": "a"},
        "regression": {"prediction": 12.5},
    }
    prediction = {"prediction_id": "visit-17:0", **decided[form.task], "version": 1, "variant": "stable"}
    answer = json.dumps({"request_id": "visit-17", "predictions": [prediction]}, indent=2)
    sent = _curl(project, "/predict", {"rows": [_row(form)]})
    sent = sent.replace(" \\\n  -d", " \\\n  -H 'Idempotency-Key: visit-17' \\\n  -d")
    return (
        f"{_code(sent)}<p>It answers, in this shape:</p>{_code(answer)}"
        "<p><code>Idempotency-Key</code> may be left out. With it the request can be sent again: the same key and "
        "body are the same prediction, and its id can be rebuilt when the label becomes known. <code>version</code> "
        "says who answered, <code>variant</code> whom the key was assigned to.</p>"
        '<p>Columns instead of rows: <code>{"columns": {"…": [1, 2], …}}</code>. At most '
        f"{form.max_rows:,} rows and {form.max_bytes / 2**20:g} MiB, which may travel with "
        "<code>Content-Encoding: gzip</code>.</p>"
    )


def _columns(form: Form) -> str:
    def needed(spec: Column) -> str:
        if form.needs(spec):
            return '<span class="tag need">required</span>'
        return '<span class="tag">optional</span>'

    rows = [
        (
            f"<code>{_text(spec.name)}</code>",
            _text(spec.dtype)
            + ("&nbsp;or&nbsp;null" if spec.nullable and spec not in (form.key, form.event_time) else ""),
            needed(spec),
            _text(schemas.said(spec, form)) or '<span class="soft">a feature</span>',
        )
        for spec in form.columns
    ]
    usually = any("Usually" in row[3] for row in rows)
    drift = " What is said to be usual is no demand: another value is answered, and counts as drift." if usually else ""
    says = f"<p>No others are taken, and no NaN or infinity: what is missing is null.{drift}</p>"
    return says + _table(("name", "type", "", "what"), rows)


def _options(form: Form) -> str:
    options: dict[str, Any] = schemas.requests(form)["Options"]["properties"]
    ranges = {name: f"{spec['minimum']} to {spec['maximum']}" for name, spec in options.items() if "minimum" in spec}
    ranges |= {"version": "a version's number", "probabilities": "true or false"}
    rows = [
        (f"<code>{name}</code>", ranges[name], _markdown(spec["description"]))
        for name, spec in options.items()
        if (name != "explain" or form.explain) and (name != "probabilities" or form.task == "multiclass")
    ]
    return '<p>Beside the rows: <code>{"rows": […], "options": {…}}</code>.</p>' + _table(
        ("name", "value", "what"), rows
    )


def _bulk(project: Project, form: Form) -> str:
    columns = ", ".join(f'"{name}": [...]' for name in list(_row(form))[:3])
    token = ', "Authorization": f"Bearer {token}"' if project.serving.auth == "token" else ""
    script = (
        "import httpx\nimport pyarrow as pa\n\n"
        f"table = pa.table({{{columns}, ...}})\n"
        "sink = pa.BufferOutputStream()\n"
        "with pa.ipc.new_stream(sink, table.schema) as writer:\n    writer.write_table(table)\n"
        f'headers = {{"Content-Type": "{arrow.MEDIA_TYPE}"{token}}}\n'
        f'answer = httpx.post("{_base(project)}/predict", content=sink.getvalue().to_pybytes(), headers=headers)\n'
        "answer.raise_for_status()\n"
        "predictions = pa.ipc.open_stream(answer.content).read_all()\n"
    )
    return (
        "<p>An Arrow IPC stream is read without parsing text, and answered with one: a column each, of any width, unit "
        f"or encoding.</p>{_code(script)}"
    )


def _feedback(project: Project, form: Form) -> str:
    label = {"binary": 1, "multiclass": "a", "regression": 12.5}[form.task]
    sent = {"labels": [{"prediction_id": "visit-17:0", "label": label}]}
    key = {"key": schemas.example_value(form.key, form), "label": label, "time": "2024-02-01T00:00:00Z"}
    return (
        f"<p>Whenever it becomes known, and again if it is corrected.</p>{_code(_curl(project, '/feedback', sent))}"
        "<p>By the row's key, where you kept no id; <code>time</code> says when it became known, now when absent:</p>"
        + _code(json.dumps({"labels": [key]}, ensure_ascii=False))
        + _business(form)
    )


def _business(form: Form) -> str:
    if not form.business:
        return ""
    entry = {"prediction_id": "visit-17:0", "values": dict.fromkeys(form.business, 12.5)}
    return (
        "<p>Business numbers, beside the label or alone; send the zeros too, for what is absent is not known:</p>"
        + _code(json.dumps({"labels": [entry]}, ensure_ascii=False))
    )


def _routes(project: Project, release: str, also: Also) -> str:
    document = openapi(project, release=release, also=also)
    tokens = project.serving.auth == "token"
    sections = []
    for tag, says in (*TAGS, *also[0]):
        rows = [
            (
                f'<span class="{method}">{method.upper()}</span>',
                f"<code>{_text(path)}</code>",
                _markdown(operation["summary"]),
                *([_role(operation)] if tokens else []),
            )
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
            if operation["tags"] == [tag]
        ]
        heads = ("", "path", "what", *(["role"] if tokens else []))
        sections.append(f"<h3>{tag}</h3><p>{_markdown(says)}</p>{_table(heads, rows)}")
    return "".join(sections)


def _role(operation: Mapping[str, Any]) -> str:
    needed = operation["security"]
    return f"<code>{needed[0]['bearer'][0]}</code>" if needed else '<span class="soft">none</span>'


def _errors(project: Project, form: Form) -> str:
    spec = next(spec for spec in form.columns if spec.name in form.features)
    detail = f"row 0, column {spec.name!r}: expected {spec.dtype}, got an object"
    place = {"pointer": f"#/rows/0/{spec.name}", "row": 0, "column": spec.name, "expected": spec.dtype}
    example = {
        "type": "about:blank",
        "title": "wrong value",
        "status": 422,
        "detail": detail,
        "instance": f"/{project.project}/predict",
        "errors": [place | {"received": "an object"}],
    }
    rows = [
        (f"<code>{status}</code>", _markdown(says))
        for status, says in parts.STATUSES.items()
        if project.serving.auth == "token" or status not in (401, 403)
    ]
    return (
        '<p>Each one is <code>application/problem+json</code> (<a href="https://www.rfc-editor.org/rfc/rfc9457">RFC '
        f"9457</a>) and names the place:</p>{_code(json.dumps(example, indent=2))}{_table(('status', 'when'), rows)}"
    )


def _markdown(text: str) -> str:
    """A sentence of ours with code between backquotes."""
    pieces = _text(text).split("`")
    return "".join(f"<code>{piece}</code>" if i % 2 else piece for i, piece in enumerate(pieces))
