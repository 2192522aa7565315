"""What the interface's documents say of rollouts and approvals (OpenAPI 3.1 operations)."""

from __future__ import annotations

from typing import Any

from mlops_ray.endpoint import board
from mlops_ray.endpoint.orders import LARGEST_VERSION, MOST_ARMS, ROLLOUT_ID
from mlops_ray.rollout.canary import LEGAL, Move, Phase
from mlops_ray.serving.protocols.bodies import JSON
from mlops_ray.serving.protocols.parts import PARAMETERS, Operation, answered, refusals
from mlops_ray.serving.protocols.schemas import of_object
from mlops_ray.texts import CONTROLS, MOST_REASON

TAGS = (("operation", "Rollouts and approvals, as `mlops-ray rollout` and `mlops-ray approve` have them."),)

# Not of spaces alone, and without control characters.
_WHY = {
    "type": "string",
    "minLength": 1,
    "maxLength": MOST_REASON,
    "pattern": rf"^[^{CONTROLS}]*[^\s{CONTROLS}][^{CONTROLS}]*$",
}
_VERSION = {"type": "integer", "minimum": 1, "maximum": LARGEST_VERSION}
_ROLLOUT = {
    "name": "rollout",
    "in": "path",
    "required": True,
    "description": "The id of a rollout, or `open`.",
    "schema": {"type": "string", "pattern": f"^{ROLLOUT_ID}$"},
}
_NUMBER = {
    "name": "version",
    "in": "path",
    "required": True,
    "description": "The version's number.",
    "schema": _VERSION,
}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": (
        "Sent again with the same body by the same subject, the order changes nothing and is answered as it was; with "
        "another body it is refused (422)."
    ),
    "schema": PARAMETERS["Idempotency-Key"]["schema"],
}
WHICH = {Move.PROMOTE: "version", Move.ROLLBACK: "to"}
"""Orders that may name a version, and in which field."""
_SAYS = {
    Move.PAUSE: "Hold the rollout at its step",
    Move.RESUME: "Let a paused rollout go on",
    Move.PROMOTE: "Promote without waiting for evidence",
    Move.ABORT: "End the rollout; stable answers all again",
    Move.ROLLBACK: "Go back to the version before, or to an older one whatever is under way",
}


def operations() -> tuple[Operation, ...]:
    """One for each of the routes."""
    rollouts = of_object({"rollouts": {"type": "array", "items": {"type": "object"}}}, ["rollouts"])
    state = of_object(
        {
            "rollout": {"type": "object"},
            "share": {"type": "number"},
            "stable": {"type": ["integer", "null"]},
            "outlook": {"type": "object"},
        },
        ["rollout", "share", "stable", "outlook"],
    )
    entries = of_object(
        {"rollout": {"type": "string"}, "entries": {"type": "array", "items": {"type": "object"}}},
        ["rollout", "entries"],
    )
    return (
        ("get", "/rollouts", "read", _get("All rollouts, newest first", rollouts)),
        ("get", "/rollouts/{rollout}", "read", _get("How a rollout stands", state, 404, of=_ROLLOUT)),
        (
            "get",
            "/rollouts/{rollout}/decisions",
            "read",
            _get("What was decided about it, with the evidence as the ledger keeps it", entries, 404, of=_ROLLOUT),
        ),
        ("post", "/rollouts", "operate", _start()),
        *(("post", f"/rollouts/{{rollout}}/{move}", "operate", _move(move)) for move in Move),
        *(("post", f"/versions/{{version}}/{d}", "approve", _decide(d)) for d in ("approve", "reject")),
        *board.operations(),
    )


def _get(summary: str, schema: dict[str, Any], *refused: int, of: dict[str, Any] | None = None) -> dict[str, Any]:
    content = answered({JSON: {"schema": schema}}, versioned=False)
    return {
        "tags": ["operation"],
        "summary": summary,
        **({"parameters": [of]} if of else {}),
        "responses": {"200": content, **refusals(*refused, 408, 413, 500, 503)},
    }


def _post(
    summary: str,
    description: str,
    body: dict[str, Any],
    answer: dict[str, Any],
    example: Any,
    *,
    of: dict[str, Any] | None = None,
    status: int = 200,
    needs_body: bool = True,
    keyed: bool = True,
) -> dict[str, Any]:
    given = answered({JSON: {"schema": answer}}, versioned=False, says="It is saved.")
    parameters = [*([of] if of else []), *([_KEY] if keyed else [])]
    return {
        "tags": ["operation"],
        "summary": summary,
        "description": description,
        **({"parameters": parameters} if parameters else {}),
        "requestBody": {"required": needs_body, "content": {JSON: {"schema": body, "example": example}}},
        "responses": {str(status): given, **refusals(400, 404, 408, 409, 413, 415, 422, 500, 503)},
    }


def _start() -> dict[str, Any]:
    several = {"type": "array", "items": _VERSION, "minItems": 1, "maxItems": MOST_ARMS}
    more = {"why": _WHY, "supersede": {"type": "boolean"}}
    one = of_object({"version": _VERSION, **more}, ["version"])
    body = {"oneOf": [one, of_object({"versions": several, **more}, ["versions"])]}
    answer = of_object({"rollout": {"type": "string"}}, ["rollout"])
    says = (
        "As the project file's `rollout:` says; several `versions` in mode `ab`. `supersede`: take the place of an "
        "open one that is undecided."
    )
    example = {"version": 7, "why": "the one from Tuesday"}
    found = _post("Start a rollout of a registered version", says, body, answer, example, status=201)
    location = {"description": "Where its state stands.", "schema": {"type": "string"}}
    found["responses"]["201"]["headers"]["Location"] = location
    return found


def _move(move: Move) -> dict[str, Any]:
    which = _VERSION | {"type": ["integer", "null"]}  # null as if it were left out
    fields: dict[str, Any] = {"why": _WHY} | ({WHICH[move]: which} if move in WHICH else {})
    answer = of_object(
        {
            "rollout": {"type": "string"},
            "phase": {"enum": [str(phase) for phase in Phase]},
            "step": {"type": "integer"},
            "reason": {"type": "string"},
        },
        ["rollout", "phase", "step", "reason"],
    )
    phases = ", ".join(str(phase) for phase, moves in LEGAL.items() if move in moves)
    says, example = f"Possible while it is: {phases}.", {"why": "complaints"}
    return _post(_SAYS[move], says, of_object(fields), answer, example, of=_ROLLOUT, needs_body=False)


def _decide(decision: str) -> dict[str, Any]:
    answer = {"type": "object", "description": "What all decisions come to: `approved`, `missing`, `says`."}
    says = "Of a version that waits for it, else of its open rollout. You are the subject of your token."
    body, example = of_object({"reason": _WHY}, ["reason"]), {"reason": "read its card"}
    found = _post(f"{decision.capitalize()} a version", says, body, answer, example, of=_NUMBER, keyed=False)
    found["responses"] |= refusals(403)  # also where a token has the role: nobody approves what they proposed
    return found
