"""The files of an artifact: what they may be, their hashes, and carrying them to and from a store.

Nothing here believes a file: it is read only when it is a plain file of the size that the manifest says, what is used
is the bytes that were hashed, and JSON is parsed within limits. Whatever is wrong ends in `ArtifactRefused`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, NonNegativeInt, ValidationError, model_validator

from mlops_ray.config import Features, Task
from mlops_ray.config.base import Config
from mlops_ray.errors import ArtifactRefused

FORMAT = 2
"""2: tasks, the lock, answers of several classes. 1 knew binary models only."""
MANIFEST = "manifest.json"
ALWAYS = ("model.skops", "reference.json", "golden.json", "signature.json", "recipe.json")
GRAPH = "model.onnx"
MAX_BYTES = {MANIFEST: 1 << 20, "signature.json": 16 << 20, "golden.json": 64 << 20, "reference.json": 1 << 30}
"""Largest files that are read at all; of others, `MAX_MODEL_BYTES`."""
MAX_MODEL_BYTES = 4 << 30
_MAX_REASON = 1000  # characters of a refusal: it may quote the file

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Label = Annotated[str, Field(strict=True)] | Annotated[int, Field(strict=True)]
T = TypeVar("T")


class Listed(Config):
    """A file as the manifest lists it."""

    sha256: Sha256
    bytes: Annotated[NonNegativeInt, Field(strict=True)]


class Parity(Config):
    """How far ONNX and scikit-learn are apart on the holdout, in units of `scale`."""

    n: NonNegativeInt
    share_within: Annotated[float, Field(ge=0, le=1)]
    tolerance: float
    scale: float
    max_gap: float | None
    """None where it is no number."""


class Manifest(Config):
    """What `manifest.json` says."""

    format: Literal[2]
    engine: Literal["onnx", "sklearn"]
    reason: str
    parity: Parity | None
    trusted: tuple[str, ...]
    estimator: str
    lock: dict[str, str]
    files: dict[str, Listed]

    @model_validator(mode="after")
    def _complete(self) -> Manifest:
        wanted = {*ALWAYS, GRAPH} if self.engine == "onnx" else {*ALWAYS}
        if set(self.files) != wanted:
            raise ValueError(f"lists other files than {sorted(wanted)}: {sorted(set(self.files) ^ wanted)}")
        return self


class Signature(Config):
    """What `signature.json` says: what the model takes and answers."""

    task: Task
    classes: tuple[Label, ...]
    threshold: Annotated[float, Field(ge=0, le=1)] | None
    features: Features
    target: str

    @model_validator(mode="after")
    def _fits_together(self) -> Signature:
        n, wanted = len(self.classes), {"binary": self.classes == (0, 1), "regression": not self.classes}
        if not wanted.get(self.task, n >= 2 and len(set(map(repr, self.classes))) == n):
            raise ValueError(f"a {self.task} model cannot have the classes {list(self.classes)[:20]}")
        if self.threshold is not None and self.task != "binary":
            raise ValueError(f"a {self.task} model has no threshold")
        if not self.features.inputs or not self.features.columns:  # parses the expressions too
            raise ValueError("there are no features")
        return self


def dump(body: Any) -> bytes:
    """As JSON, in the order given: features are in the order of their names. Raises: ValueError for NaN, infinities."""
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def parsed(artifact: str, name: str, content: bytes, make: Callable[[Any], T]) -> T:
    """What `make` makes of the JSON in `content`.

    Raises: ArtifactRefused when it is no JSON (NaN and infinities are none), nested too deeply, or `make` fails."""
    try:
        return make(json.loads(content, parse_constant=_no_number))
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise ArtifactRefused(artifact, f"{name}: {where}{first['msg']}"[:_MAX_REASON]) from exc
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as exc:
        raise ArtifactRefused(artifact, f"{name} is not what this release writes: {exc}"[:_MAX_REASON]) from exc
    except (RecursionError, MemoryError) as exc:
        raise ArtifactRefused(artifact, f"{name} is nested too deeply, or too large") from exc


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def regular(folder: Path, name: str, size: int | None = None) -> bytes:
    """The bytes of a file that is no link, of `size` bytes where that is known.

    Raises: ArtifactRefused otherwise, and for one larger than `MAX_BYTES` allow."""
    path, artifact = folder / name, str(folder)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe would wait for a writer
    except OSError as exc:
        what = "a symbolic link" if path.is_symlink() else "missing"
        raise ArtifactRefused(artifact, f"{name} is {what}") from exc
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise ArtifactRefused(artifact, f"{name} is missing: what lies there is no plain file")
        if size is not None and found.st_size != size:
            raise ArtifactRefused(artifact, f"{name} was altered: it has {found.st_size} bytes, not {size}")
        most = MAX_BYTES.get(name, MAX_MODEL_BYTES)
        if found.st_size > most:
            raise ArtifactRefused(artifact, f"{name} has {found.st_size} bytes; at most {most} are read")
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read(found.st_size + 1)
    finally:
        os.close(handle)


def read(folder: Path, name: str, manifest: Mapping[str, Any]) -> bytes:
    """The bytes of a file that the (checked) manifest lists. Raises: ArtifactRefused when they are not those."""
    listed = manifest["files"][name]
    content = regular(folder, name, listed["bytes"])
    if (found := digest(content)) != listed["sha256"]:
        raise ArtifactRefused(str(folder), f"{name} was altered: its SHA-256 is {found}")
    return content


def vacant(address: str) -> str:
    """`address`, or where something lies there already the next of `<address>-2`, `<address>-3` ... that is free."""
    number, candidate = 1, address
    while _is_taken(candidate):
        number += 1
        candidate = f"{address}-{number}"
    return candidate


def _is_taken(address: str) -> bool:
    if "://" not in address:
        return Path(address).exists()
    from pyarrow import fs

    remote, root = fs.FileSystem.from_uri(address)
    return bool(remote.get_file_info(fs.FileSelector(root, allow_not_found=True)))


def publish(folder: Path, address: str) -> None:
    """Put the artifact in local `folder` at `address`: a local path (moved there in one rename) or an object store.

    On an object store the manifest is copied last, so that a half-written artifact has none."""
    if "://" not in address:
        Path(address).parent.mkdir(parents=True, exist_ok=True)
        folder.rename(address)
        return
    from pyarrow import fs

    remote, root = fs.FileSystem.from_uri(address)
    for path in sorted(folder.iterdir(), key=lambda p: p.name == MANIFEST):
        with remote.open_output_stream(f"{root}/{path.name}") as out:
            out.write(path.read_bytes())


def fetch(address: str, cache: Path, sha256: str) -> Path:
    """A local directory with the artifact at `address`: the place itself, or a copy in `cache` named by `sha256`.

    Raises: ArtifactRefused when the address holds no artifact or too large a file, or `sha256` is no hash. The copy is
    not verified here: `load` does that."""
    if "://" not in address:
        return Path(address)
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise ArtifactRefused(address, f"{sha256[:80]!r} is no SHA-256; it becomes a folder's name")
    target = cache / sha256
    if target.is_dir():
        return target
    from pyarrow import fs

    remote, root = fs.FileSystem.from_uri(address)
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=cache))
    try:
        for name in (*ALWAYS, GRAPH, MANIFEST):
            info = remote.get_file_info(f"{root}/{name}")
            if info.type == fs.FileType.File:
                if info.size > (most := MAX_BYTES.get(name, MAX_MODEL_BYTES)):
                    raise ArtifactRefused(address, f"{name} has {info.size} bytes; at most {most} are read")
                with remote.open_input_stream(info.path) as stream:
                    (partial / name).write_bytes(stream.read())
            elif name != GRAPH:
                raise ArtifactRefused(address, f"{name} is missing")
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was quicker, with the same files
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target
