from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mlops_ray.training import on_machine
from mlops_ray.training.on_machine import Driver, checkout, driver, environment, requirements


@pytest.mark.parametrize("changed", [False, True])
def test_a_checkouts_state(tmp_path: Path, changed: bool) -> None:
    def git(*args: str) -> None:
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e@x", *args], cwd=tmp_path, check=True)

    assert checkout(tmp_path) is None
    git("init", "-q")
    assert checkout(tmp_path) is None  # nothing is committed
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-qm", "one")
    (tmp_path / "untracked").write_text("1")
    if changed:
        (tmp_path / "code.py").write_text("2")
    found = checkout(tmp_path)
    assert found is not None
    assert (len(found.commit), found.dirty, found.diff_sha256 is not None) == (40, changed, changed)


def test_outside_of_a_checkout_the_packages_own_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*args: str) -> None:
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e@x", *args], cwd=tmp_path, check=True)

    package, elsewhere = tmp_path / "room" / "mlops_ray", tmp_path.parent
    (package / "training").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(on_machine, "__file__", str(package / "training" / "on_machine.py"))
    monkeypatch.chdir(elsewhere)
    assert checkout() is None
    git("init", "-q")
    git("commit", "-qm", "without the package", "--allow-empty")
    assert checkout() is None  # it merely lies there, as in an environment of somebody's project
    git("add", ".")
    git("commit", "-qm", "with it")
    found = checkout()
    assert found is not None
    assert (found.of, found.dirty) == ("package", False)
    assert checkout(elsewhere) is None
    monkeypatch.chdir(tmp_path)
    found = checkout()
    assert found is not None
    assert found.of == "folder"


def test_the_environment_holds_every_distribution() -> None:
    found = environment()
    assert found["python"] == sys.version.split()[0]
    assert {"scikit-learn", "mlflow", "mlops-ray"} <= set(found["distributions"])
    assert list(found["distributions"]) == sorted(found["distributions"], key=str.lower)


def test_requirements_are_distributions_and_not_modules() -> None:
    found = requirements(["sklearn", "numpy", "a_file_of_ours"])
    assert [line.partition("==")[0] for line in found] == ["numpy", "scikit-learn"]


def test_a_driver_is_known_by_its_text() -> None:
    me = driver()
    found = Driver.parse(me.text)
    assert found is not None
    assert (found.text, found.pid) == (me.text, me.pid)
    assert driver().text != me.text
    assert Driver.parse("deploy") is None
    assert Driver.parse("") is None


def test_a_drivers_life() -> None:
    me = driver()
    assert me.lives(expired=False) is True
    assert me.lives(expired=True) is True
    # The clock was set: what holds a valid lease under this number is the driver.
    assert replace(me, started=me.started - 3600).lives(expired=False) is True
    # A later process has got its number.
    assert replace(me, started=me.started - 3600).lives(expired=True) is False
    assert replace(me, host="far").lives(expired=True) is None
    assert replace(me, place="another boot").lives(expired=True) is None
    ended = subprocess.Popen([sys.executable, "-c", ""])
    zombie = replace(me, pid=ended.pid)
    while zombie.lives(expired=False):  # until it has ended, and nobody has taken note
        pass
    ended.wait()
    assert zombie.lives(expired=False) is False
