"""MLflow's versions and aliases in a backup, on every kind of tracking store."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mlops_ray.errors import DataError
from mlops_ray.governance.on_backup import GIVEN_UP, put_back_registry, registry_of
from mlops_ray.state import VersionRow
from mlops_ray.training.on_registry import BEGUN, Registry
from tests.integration.training.conftest import Room


def rows(room: Room, *numbers: int) -> list[VersionRow]:
    name = room.project.project
    return [VersionRow(name, n, f"{n:032d}", "/m", "ab" * 32, "/d@1", "registered", 1.0, {}) for n in numbers]


def test_versions_come_back_with_their_numbers_tags_and_aliases(make_room: Callable[..., Room]) -> None:
    room = make_room()
    client, name = Registry(room.project, room.store).client, room.project.project
    client.create_registered_model(name)
    for n in range(1, 6):
        tags = {"engine": "onnx", "mlops_ray.ledger.7": "ab" * 32} | ({BEGUN: "driver"} if n == 5 else {})
        client.create_model_version(name, f"/runs/{n}", f"{n:032d}", tags=tags, description=f"the {n}th")
    client.delete_model_version(name, "2")
    client.set_registered_model_alias(name, "champion", "1")
    client.set_registered_model_alias(name, "favourite", "4")
    client.set_registered_model_alias(name, "newest", "5")
    body = registry_of(room.project, rows(room, 1, 3, 4))  # 5 has no row: a crash left it
    assert [each["version"] for each in body["versions"]] == [1, 3, 4]
    assert body["aliases"] == {"champion": 1, "favourite": 4}

    empty = make_room()
    done = put_back_registry(empty.project, body, {"champion": 3})
    assert done == {"versions": 3, "made": [1, 3, 4], "given_up": []}
    again = registry_of(empty.project, rows(empty, 1, 3, 4))
    assert again["versions"] == body["versions"]
    assert again["aliases"] == {"champion": 3, "favourite": 4}
    assert put_back_registry(empty.project, body, {"champion": 3}) == done | {"made": []}

    other = Registry(empty.project, empty.store)
    made = other.client.create_model_version(empty.project.project, "/runs/9", f"{9:032d}")
    other.client.set_registered_model_alias(empty.project.project, "challenger", made.version)
    assert put_back_registry(empty.project, body, {"champion": 1})["given_up"] == [int(made.version)]
    assert GIVEN_UP in other.client.get_model_version(empty.project.project, made.version).tags
    assert registry_of(empty.project, rows(empty, 1, 3, 4))["aliases"] == {"champion": 1, "favourite": 4}
    assert other.alias("challenger") is None


def test_a_number_that_cannot_be_given_any_more_is_said(make_room: Callable[..., Room]) -> None:
    room = make_room()
    client, name = Registry(room.project, room.store).client, room.project.project
    client.create_registered_model(name)
    for n in (1, 2):
        client.create_model_version(name, f"/runs/{n}", f"{n:032d}")
    body = registry_of(room.project, rows(room, 1, 2))
    client.delete_model_version(name, "1")
    with pytest.raises(DataError, match="v1 was deleted there, and a number is never given twice"):
        put_back_registry(room.project, body, {})
    assert [v["version"] for v in registry_of(room.project, rows(room, 2))["versions"]] == [2]
