"""The errors that users of the package may catch, one tree under `MlopsRayError`.

Every class hands all its arguments to `super().__init__`, so that an instance survives pickling (an error
crosses process borders on Ray), and builds its sentence in `__str__`. The sentence names the thing and the
way out.
"""

from __future__ import annotations

from typing import Any


class MlopsRayError(Exception):
    """Base of every error this package raises on purpose; `exit_code` is what the command returns for it."""

    exit_code = 1


class ConfigError(MlopsRayError):
    """The project file is wrong. `problems` holds one line per mistake: place, value and remedy."""

    exit_code = 2

    def __init__(self, path: str, problems: tuple[str, ...]) -> None:
        super().__init__(path, problems)
        self.path, self.problems = path, problems

    def __str__(self) -> str:
        n = len(self.problems)
        head = f"{self.path}: {n} problem{'s' if n != 1 else ''}"
        return "\n".join([head, *(f"  {p}" for p in self.problems)])


class DataError(MlopsRayError):
    """Rows, columns or files are not what the project file promises."""

    def __init__(self, subject: str, detail: str) -> None:
        super().__init__(subject, detail)
        self.subject, self.detail = subject, detail

    def __str__(self) -> str:
        return f"{self.subject}: {self.detail}"


class DataRefused(DataError):
    """Validation ended the run: `reasons` says why, `report` (JSON) and `text` what was found, `page` where it lies."""

    exit_code = 3

    def __init__(self, subject: str, reasons: tuple[str, ...], text: str, report: dict[str, Any], page: str) -> None:
        MlopsRayError.__init__(self, subject, reasons, text, report, page)
        self.subject, self.detail = subject, "; ".join(reasons)
        self.reasons, self.text, self.report, self.page = reasons, text, report, page

    def __str__(self) -> str:
        return "\n  ".join((f"{self.subject}: {self.detail}", self.text, f"the report lies at {self.page}"))


class OrderRefused(DataError):
    """An order whose words do not fit: its reason, or the rollout or the version that it names."""

    exit_code = 2


class NoAnchor(DataError):
    """Something was named as an anchor of the ledger that is none, or a file of them that cannot be read."""

    exit_code = 2


class KeyReused(MlopsRayError):
    """An Idempotency-Key that came with another order before; `first` names that one."""

    exit_code = 2

    def __init__(self, key: str, first: str) -> None:
        super().__init__(key, first)
        self.key, self.first = key, first

    def __str__(self) -> str:
        return f"the key {self.key!r} came with another order before: {self.first}; give each order a key of its own"


class LogRefused(DataError):
    """A recorded log cannot be analysed. `problems` holds one line per mistake: row, column, value and remedy."""

    exit_code = 2

    def __init__(self, log: str, problems: tuple[str, ...]) -> None:
        MlopsRayError.__init__(self, log, problems)
        self.subject, self.detail = log, "; ".join(problems)
        self.problems = problems

    def __str__(self) -> str:
        n = len(self.problems)
        return "\n  ".join((f"{self.subject}: {n} problem{'s' if n != 1 else ''}", *self.problems))


class GateRejected(MlopsRayError):
    """A candidate did not pass its gates; `reasons` says which and by how much, `report` (JSON) all that was seen."""

    exit_code = 3

    def __init__(self, candidate: str, reasons: tuple[str, ...], report: dict[str, Any] | None = None) -> None:
        super().__init__(candidate, reasons, report)
        self.candidate, self.reasons, self.report = candidate, reasons, report or {}

    def __str__(self) -> str:
        return f"{self.candidate} was refused by its gates: " + "; ".join(self.reasons)


class ModelNotFound(MlopsRayError):
    """No such version, or no version with such an alias, in the registry."""

    def __init__(self, name: str, version: str) -> None:
        super().__init__(name, version)
        self.name, self.version = name, version

    def __str__(self) -> str:
        return f"model {self.name!r} has no version {self.version!r}; `mlops-ray status` lists what there is"


class ArtifactRefused(MlopsRayError):
    """A model's files are incomplete, altered or of a type that we do not load."""

    def __init__(self, artifact: str, detail: str) -> None:
        super().__init__(artifact, detail)
        self.artifact, self.detail = artifact, detail

    def __str__(self) -> str:
        return f"artifact {self.artifact} was refused: {self.detail}"


class IllegalMove(MlopsRayError):
    """An operator's command that the rollout's phase does not allow."""

    exit_code = 2

    def __init__(self, move: str, phase: str, legal: tuple[str, ...]) -> None:
        super().__init__(move, phase, legal)
        self.move, self.phase, self.legal = move, phase, legal

    def __str__(self) -> str:
        legal = ", ".join(self.legal) or "nothing (it has ended)"
        return f"a rollout that is {self.phase} cannot {self.move}; possible now: {legal}"


class ApprovalPending(MlopsRayError):
    """A version that waits for an approval gets no traffic."""

    exit_code = 2

    def __init__(self, project: str, version: int) -> None:
        super().__init__(project, version)
        self.project, self.version = project, version

    def __str__(self) -> str:
        return (
            f"v{self.version} of {self.project} is not approved: `gates.approval` asks for approvals that are not on "
            f"record, or somebody rejected it; it gets no traffic until `mlops-ray approve {self.version}` has let it"
        )


class ApprovalRefused(MlopsRayError):
    """A decision about a version that may not be made so, or not by whom."""

    exit_code = 2

    def __init__(self, subject: str, detail: str) -> None:
        super().__init__(subject, detail)
        self.subject, self.detail = subject, detail

    def __str__(self) -> str:
        return f"{self.subject}: {self.detail}"


class NothingWaits(ApprovalRefused):
    """A rejection where nothing waits for an approval."""


class LeaseLost(MlopsRayError):
    """Another process holds the lease, or has taken it since: this one must not act."""

    def __init__(self, name: str, holder: str) -> None:
        super().__init__(name, holder)
        self.name, self.holder = name, holder

    def __str__(self) -> str:
        return f"lease {self.name!r} is held by {self.holder!r}; this process steps back"


class BackendUnavailable(MlopsRayError):
    """A server or a port that we need does not answer, or is taken."""

    def __init__(self, backend: str, detail: str) -> None:
        super().__init__(backend, detail)
        self.backend, self.detail = backend, detail

    def __str__(self) -> str:
        return f"{self.backend} is not available: {self.detail}"


class BadRequest(MlopsRayError):
    """A request's body is malformed; `status` is its HTTP status (RFC 9110), `detail` names field and row.

    members: the same for programs, beside the sentence: `row`, `column`, `expected`, `received`, `pointer`, whichever
    are known. They become a member of the problem details (RFC 9457, 3.2).
    """

    def __init__(self, status: int, title: str, detail: str, members: dict[str, Any] | None = None) -> None:
        super().__init__(status, title, detail, members)
        self.status, self.title, self.detail, self.members = status, title, detail, members or {}

    def __str__(self) -> str:
        return f"{self.title}: {self.detail}"
