"""JSON Schemas (2020-12) of what a project's requests and answers hold, from its columns.

They say what the parsers take and no more, as far as a schema can: that columns are equally long, that a time lies
before tomorrow and that no member stands twice is beyond it, and stands in descriptions.
"""

from __future__ import annotations

import math
import re
from typing import Any

from mlops_ray.config import Column
from mlops_ray.serving.protocols.cells import END_S, FIRST_S, LARGEST, MOST_KEY
from mlops_ray.serving.protocols.form import Form

Schema = dict[str, Any]

# Integers whose digits all arrive.
_LOWEST, _HIGHEST = -(2**63), 2**64 - 1
_TIME = "ISO 8601, UTC where it has no zone; or seconds since the epoch."
A_TIME: Schema = {
    "description": f"From 1970 to tomorrow. {_TIME} Now when absent.",
    "anyOf": [{"type": "string", "format": "date-time"}, {"type": "number", "minimum": 0}],
}


def ref(name: str) -> Schema:
    """A pointer to a schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def of_object(properties: Schema, required: list[str] | None = None, **more: Any) -> Schema:
    """An object of these members and no others."""
    found = {"type": "object", "properties": properties, "additionalProperties": False, **more}
    return found | {"required": required} if required else found


# Values ---------------------------------------------------------------------------------------------------------------


def of_value(spec: Column, form: Form) -> Schema:
    """What one cell of the column may hold."""
    if spec is form.event_time:
        return A_TIME
    found = _of_dtype(spec, form)
    if spec is form.key:
        if spec.dtype == "string":
            found |= {"minLength": 1, "maxLength": MOST_KEY}
        else:
            found |= {"minimum": max(found["minimum"], _LOWEST), "maximum": min(found["maximum"], _HIGHEST)}
    if spec.nullable and spec is not form.key:
        found = {**found, "type": [found["type"], "null"]} if "type" in found else _or_null(found)
        if "enum" in found:
            found["enum"] = [*found["enum"], None]
    if says := said(spec, form):
        found["description"] = says
    return found


def _or_null(found: Schema) -> Schema:
    return {"anyOf": [*found["anyOf"], {"type": "null"}]}


def _of_dtype(spec: Column, form: Form) -> Schema:
    held = bool(form.rules[spec.name])
    if spec.dtype == "timestamp":
        numbers = {"type": "number", "minimum": FIRST_S, "exclusiveMaximum": END_S}
        return {"anyOf": [{"type": "string", "format": "date-time"}, numbers]}
    if spec.dtype == "bool":
        return {"type": "boolean"}
    if spec.dtype == "string":
        found: Schema = {"type": "string"}
        if held and spec.values is not None:
            found["enum"] = list(spec.values)
        if held and spec.pattern is not None:
            found["pattern"] = f"^(?:{spec.pattern})$"
        return found
    low = spec.min if held and spec.min is not None else -LARGEST
    high = spec.max if held and spec.max is not None else LARGEST
    return {"type": "integer" if spec.dtype == "int" else "number", "minimum": low, "maximum": high}


def said(spec: Column, form: Form) -> str:
    """The column's part and rules in words; which of them a request is held to depends on `serving.request_rules`."""
    parts = []
    if spec is form.key:
        parts.append("Whose row it is: assignment to a version sticks to it.")
    if spec is form.event_time:
        parts.append("When the row is from: from 1970 to tomorrow, now when absent.")
    if spec.dtype == "timestamp":
        parts.append(_TIME)
    rules = []
    if spec.min is not None and spec.max is not None:
        rules.append(f"from {spec.min:g} to {spec.max:g}")
    elif spec.min is not None:
        rules.append(f"at least {spec.min:g}")
    elif spec.max is not None:
        rules.append(f"at most {spec.max:g}")
    if spec.values is not None:
        rules.append("one of " + ", ".join(spec.values))
    if spec.pattern is not None:
        rules.append(f"matches {spec.pattern}")
    if rules:
        text = " and ".join(rules)
        parts.append(f"{text[:1].upper()}{text[1:]}." if form.rules[spec.name] else f"Usually {text}.")
    return " ".join(parts)


# Requests -------------------------------------------------------------------------------------------------------------


def requests(form: Form) -> dict[str, Schema]:
    """Schemas of native request bodies, by name."""
    required = [spec.name for spec in form.columns if form.needs(spec)]
    cells = {spec.name: of_value(spec, form) for spec in form.columns}
    lists = {name: {"type": "array", "minItems": 1, "maxItems": form.max_rows, "items": v} for name, v in cells.items()}
    rows = {"type": "array", "minItems": 1, "maxItems": form.max_rows, "items": ref("Row")}
    together = "All rows have the key or none, and so with the time."
    return {
        "Row": of_object(cells, required, minProperties=1),
        "Columns": of_object(lists, required, minProperties=1, description="Lists of the same length."),
        "Options": _options(form),
        "PredictRows": of_object(
            {"rows": {**rows, "description": together}, "options": ref("Options")}, ["rows"], title="Rows"
        ),
        "PredictColumns": of_object(
            {"columns": ref("Columns"), "options": ref("Options")}, ["columns"], title="Columns"
        ),
        **_feedback(form),
        "Watermark": of_object({"time": _without_now(A_TIME)}, ["time"]),
    }


def _options(form: Form) -> Schema:
    options: Schema = {
        "version": {
            "type": "integer",
            "minimum": 1,
            "maximum": 2**31 - 1,
            "description": "The version that is to answer; it must be loaded. With tokens, for the role `operate`.",
        },
        "explain": {
            "type": "integer",
            "minimum": 0,
            "maximum": form.explain,
            "description": "How many contributions of features to tell for each row, largest first.",
        },
        "probabilities": {
            "type": "boolean",
            "default": True,
            "description": "Whether a multiclass answer tells the probability of each class.",
        },
    }
    if form.task == "binary":
        says = "Probability from which this request's labels are 1."
        options["threshold"] = {"type": "number", "minimum": 0, "maximum": 1, "description": says}
    return of_object(options)


def _feedback(form: Form) -> dict[str, Schema]:
    labels: dict[str, Schema] = {
        "binary": {"enum": [0, 1, True, False]},
        "multiclass": {"type": ["string", "integer"], "description": "A class of a loaded version."},
        "regression": {"type": "number"},
    }
    label = labels[form.task]
    time = {**A_TIME, "anyOf": [*A_TIME["anyOf"], {"type": "null"}]}
    time["description"] = f"When the label became known. {A_TIME['description']}"
    key: Schema = {"type": "string", "minLength": 1, "maxLength": MOST_KEY}
    if form.key.dtype == "int":
        key = {"anyOf": [key, {"type": "integer", "minimum": _LOWEST, "maximum": _HIGHEST}]}
    told = {"label": label, "time": time}
    if form.business:
        numbers = of_object({name: {"type": "number"} for name in form.business}, minProperties=1)
        told["values"] = {**numbers, "description": "Business numbers, beside or instead of the label."}
    by_id = {"prediction_id": {"type": "string", "minLength": 1, "maxLength": MOST_KEY}, **told}
    by_key = {"key": key, **told}
    entry: Schema = {
        "oneOf": [of_object(by_id, ["prediction_id"]), of_object(by_key, ["key"])],
        "anyOf": [{"required": [name]} for name in ("label", "values") if name in told],
        "description": "By the prediction's id; or by the row's key, where the client kept no id.",
    }
    listed = {"type": "array", "minItems": 1, "maxItems": form.max_rows, "items": entry}
    return {"Feedback": of_object({"labels": listed}, ["labels"])}


def _without_now(schema: Schema) -> Schema:
    return {**schema, "description": f"From 1970 to tomorrow. {_TIME}"}


# Answers --------------------------------------------------------------------------------------------------------------


def answers(form: Form) -> dict[str, Schema]:
    """Schemas of native answers, by name."""
    share = {"type": "number", "minimum": 0, "maximum": 1}
    decided: dict[str, Schema] = {
        "binary": {"probability": share, "label": {"enum": [0, 1]}},
        "multiclass": {
            "probabilities": {"type": "object", "additionalProperties": share},
            "label": {"type": ["string", "integer"]},
        },
        "regression": {"prediction": {"type": "number"}},
    }
    contribution = of_object(
        {"feature": {"type": "string"}, "contribution": {"type": "number"}}, ["feature", "contribution"]
    )
    prediction = {
        "prediction_id": {"type": "string", "description": "Send the row's label under this id."},
        **decided[form.task],
        "version": {"type": "integer", "description": "Who answered."},
        "variant": {"enum": ["stable", "canary"], "description": "Whom the row's key was assigned to."},
        "contributions": {"type": "array", "items": contribution},
    }
    needed = [name for name in prediction if name not in ("contributions", "probabilities")]
    captured = {
        "const": False,
        "description": "There only when the rows stand in no log: sampled, or its disk is full.",
    }
    answer = {
        "request_id": {"type": "string"},
        "predictions": {"type": "array", "items": ref("Prediction")},
        "captured": captured,
    }
    return {
        "Prediction": of_object(prediction, needed),
        "Predictions": of_object(answer, ["request_id", "predictions"]),
        "Accepted": of_object({"accepted": {"type": "integer", "minimum": 1}}, ["accepted"]),
        "Problem": _problem(),
    }


def _problem() -> Schema:
    text = {"type": "string"}
    place = {
        "pointer": {"type": "string", "description": "The place in the body: a JSON pointer as a URI fragment."},
        "row": {"type": "integer"},
        "column": text,
        "field": text,
        "expected": {},
        "received": {},
        "rule": text,
    }
    about = {
        "type": {"type": "string", "format": "uri-reference"},
        "title": text,
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": text,
        "instance": text,
        "errors": {"type": "array", "items": {"type": "object", "properties": place}},
    }
    return {
        "type": "object",
        "description": "Problem details (RFC 9457).",
        "properties": about,
        "required": ["type", "title", "status", "detail"],
    }


# Examples -------------------------------------------------------------------------------------------------------------

_TEXTS = ("text", "a", "A", "1", "a-1", "AB", "2024-01-31", "00000", "AB-123")


def example(form: Form) -> dict[str, Any]:
    """A row that the project takes."""
    return {spec.name: example_value(spec, form) for spec in form.columns}


def example_value(spec: Column, form: Form) -> Any:
    """A value of the column that keeps its rules, as far as a pattern is simple enough to be followed."""
    if spec.dtype == "timestamp":
        return "2024-01-31T08:00:00Z"
    if spec.dtype == "bool":
        return True
    if spec.dtype == "string":
        if spec.values:
            return spec.values[0]
        if spec.pattern is not None:
            tried = (_spelled(spec.pattern), *_TEXTS)
            return next((text for text in tried if re.fullmatch(spec.pattern, text)), tried[0])
        return "customer-17" if spec is form.key else "text"
    low = spec.min if spec.min is not None else (0.0 if spec.max is None else spec.max - 1)
    high = spec.max if spec.max is not None else low + 1
    middle = (low + high) / 2
    return middle if spec.dtype == "float" else min(math.ceil(middle), math.floor(high))


def _spelled(pattern: str) -> str:
    """A text that a simple pattern matches: its classes and repetitions written out."""
    text = re.sub(r"\\d", "1", re.sub(r"\\w", "a", pattern))
    text = re.sub(r"\[\^?(\w)[^]]*\]", r"\1", text)
    text = re.sub(r"(.)\{(\d+)(?:,\d*)?\}", lambda found: found[1] * int(found[2]), text)
    return re.sub(r"\\(.)", r"\1", re.sub(r"(.)[+]", r"\1", re.sub(r"(.)[*?]", "", text)))
