"""Environments of the peers: each server with the versions that it wants, and the libraries that made the pipeline."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

# What wrote the pipeline and the graph must read them.
_SHARED = ("scikit-learn", "numpy", "joblib", "onnxruntime")
WANTED = {
    "mlflow": ("mlflow==3.17.2", "pandas"),
    "mlserver": ("mlserver>=1.7", "pandas"),
    "bentoml": ("bentoml>=1.4", "pandas"),
}


def python_of(root: Path, peer: str) -> Path:
    """The interpreter of a peer's environment, which is made at the first call (a minute or two, up to 1 GB).

    Raises: CalledProcessError when pip cannot resolve or reach what the peer wants."""
    wanted = [*WANTED[peer], *(f"{name}=={version(name)}" for name in _SHARED)]
    stamp = hashlib.sha256("\n".join(wanted).encode()).hexdigest()
    folder = root / peer
    python, done = folder / "bin" / "python", folder / "made-of"
    if done.exists() and done.read_text(encoding="utf-8") == stamp:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    subprocess.run([*pip, *wanted], check=True)
    done.write_text(stamp, encoding="utf-8")
    return python


def versions(python: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Installed versions of these distributions, as the environment itself says."""
    code = "import sys; from importlib.metadata import version; print(*(version(n) for n in sys.argv[1:]))"
    said = subprocess.run([str(python), "-c", code, *names], check=True, capture_output=True, text=True).stdout.split()
    return dict(zip(names, said, strict=True))
