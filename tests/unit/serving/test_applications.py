from __future__ import annotations

import importlib
from typing import Any

import pytest

from mlops_ray.serving import applications
from mlops_ray.serving.applications import Served, differs
from mlops_ray.serving.versions import Arm, Wanted
from tests import fakes
from tests.fakes import held

STABLE = Wanted(sequence=4, stable=held(1))
ON_TRIAL = Wanted(sequence=5, stable=held(1), canary=2, share=0.1, salt="r1")


def served(wanted: Wanted, name: str = "small", **blocks: Any) -> Served:
    return Served(fakes.project(project=name, **blocks), f"project: {name}\n", wanted)


def render(given: list[Served]) -> dict[str, Any]:
    """For a cluster on which nothing runs yet."""
    return applications.render(given, {"applications": {}})


def details(config: dict[str, Any]) -> dict[str, Any]:
    """What Serve's GET says after this configuration was put."""
    return {
        "applications": {a["name"]: {"status": "RUNNING", "deployed_app_config": a} for a in config["applications"]}
    }


def test_grpc_is_offered_where_a_port_asks_for_it() -> None:
    assert "grpc_options" not in render([served(STABLE)])
    options = render([served(STABLE, cluster={"grpc_port": 9000})])["grpc_options"]
    assert options["port"] == 9000
    (path,) = options["grpc_servicer_functions"]
    module, _, name = path.rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))


def test_a_project_is_one_application_with_what_is_wanted_as_user_config() -> None:
    serving = {"replicas": 2, "num_cpus": 0.5, "max_ongoing_requests": 50, "drain_s": 3, "request_timeout_s": 7}
    serving |= {"auth": "token"}
    config = render([served(STABLE, serving=serving, cluster={"host": "0.0.0.0", "http_port": 8123})])
    assert config["proxy_location"] == "EveryNode"
    assert config["http_options"] == {"host": "127.0.0.1", "port": 8123, "request_timeout_s": 7}
    (application,) = config["applications"]
    (deployment,) = application.pop("deployments")
    assert application == {
        "name": "small",
        "route_prefix": "/small",
        "import_path": "mlops_ray.endpoint.on_ingress:ingress_application",
        "args": {"text": "project: small\n"},
    }
    assert deployment == {
        "name": "Ingress",
        "num_replicas": 2,
        "ray_actor_options": {"num_cpus": 0.5},
        "max_ongoing_requests": 25,  # by handle; the replica counts all of them
        "max_queued_requests": 1024,
        "health_check_period_s": 3,
        "health_check_timeout_s": 4,
        "graceful_shutdown_timeout_s": 10,
        "graceful_shutdown_wait_loop_s": 0.2,
        "user_config": {"sequence": 4, "fence": 0, "spec": STABLE.spec()},
    }


def test_autoscaling_decides_in_the_place_of_a_number() -> None:
    serving = {"replicas": 2, "autoscaling": {"max_replicas": 3}}
    (deployment,) = render([served(STABLE, serving=serving)])["applications"][0]["deployments"]
    assert "num_replicas" not in deployment
    assert deployment["autoscaling_config"]["max_replicas"] == 3
    assert deployment["max_ongoing_requests"] == 64  # Serve counts, so every request comes through its count


def test_the_host_of_a_cluster_that_others_started_is_theirs() -> None:
    config = render(
        [served(STABLE, cluster={"address": "10.0.0.1:6379", "host": "0.0.0.0"}, serving={"auth": "token"})]
    )
    assert config["http_options"]["host"] == "0.0.0.0"


def test_serve_takes_what_is_rendered() -> None:
    from ray.serve.schema import ServeDeploySchema

    for serving in ({}, {"autoscaling": {}}):
        ServeDeploySchema.model_validate(render([served(ON_TRIAL, serving=serving)]))


def test_a_canary_is_an_application_of_its_own_without_a_route() -> None:
    names = {a["name"]: a for a in render([served(ON_TRIAL)])["applications"]}
    assert names.keys() == {"small", "small--v2"}
    assert names["small--v2"]["route_prefix"] is None
    assert names["small--v2"]["args"] == {"text": "project: small\n", "version": 2}


def test_all_projects_are_named_in_whatever_order_they_come() -> None:
    both = [served(STABLE, "b"), served(ON_TRIAL, "a")]
    assert render(both) == render(both[::-1])
    assert [a["name"] for a in render(both)["applications"]] == ["a", "a--v2", "b"]
    assert render([]) == {"proxy_location": "EveryNode", "applications": []}


@pytest.mark.parametrize("wanted", [ON_TRIAL, Wanted(6, held(2), warm=(held(1),)), Wanted(7, held(1), 2, 0.5, "r1")])
def test_what_is_wanted_changes_nothing_that_would_restart_replicas(wanted: Wanted) -> None:
    def restarts(config: dict[str, Any]) -> Any:
        application = config["applications"][0]
        deployments = [{k: v for k, v in d.items() if k != "user_config"} for d in application["deployments"]]
        return application | {"deployments": deployments}

    before, after = render([served(STABLE)]), render([served(wanted)])
    assert restarts(before) == restarts(after)
    assert before["applications"][0] != after["applications"][0]


def test_what_serve_was_told_already_does_not_differ() -> None:
    config = render([served(ON_TRIAL), served(STABLE, "other")])
    assert not differs(config, details(config))
    assert not differs(render([]), {"applications": {}})


@pytest.mark.parametrize(
    "after",
    [
        served(Wanted(sequence=6, stable=held(1), canary=2, share=0.5, salt="r1")),
        served(STABLE),
        served(ON_TRIAL, serving={"replicas": 2}),
        served(ON_TRIAL, serving={"max_ongoing_requests": 2}),
        served(ON_TRIAL, serving={"drain_s": 9}),
        served(ON_TRIAL, serving={"num_cpus": 1}),
        served(ON_TRIAL, serving={"autoscaling": {}}),
        served(Wanted(sequence=5, stable=held(1), canary=2, share=0.1, salt="r1", fence=1)),
        served(ON_TRIAL, "renamed"),
    ],
    ids=["share", "canary gone", "replicas", "ongoing", "drain", "cpus", "autoscaling", "fence", "name"],
)
def test_every_change_differs(after: Served) -> None:
    assert differs(render([after]), details(render([served(ON_TRIAL)])))


def test_an_application_too_many_or_never_configured_differs() -> None:
    config = render([served(STABLE)])
    assert differs(config, {"applications": {}})
    assert differs(config, details(render([served(ON_TRIAL)])))
    assert differs(config, {"applications": {"small": {"deployed_app_config": None}}})


OTHERS = {"name": "theirs", "route_prefix": "/theirs", "import_path": "app:app", "deployments": []}


def test_applications_of_others_are_put_back_as_they_stand() -> None:
    there = details({"applications": [*render([served(ON_TRIAL), served(STABLE, "gone")])["applications"], OTHERS]})
    config = applications.render([served(STABLE)], there, withdrawn={"gone"})
    assert [a["name"] for a in config["applications"]] == ["small", "theirs"]  # the canary and `gone` are left out
    assert config["applications"][1] is OTHERS
    assert differs(config, there)
    assert not differs(config, details(config))


def test_a_project_that_was_not_withdrawn_stays() -> None:
    there = details(render([served(ON_TRIAL, "another")]))
    assert [a["name"] for a in applications.render([], there)["applications"]] == ["another", "another--v2"]


def test_an_application_that_came_by_serve_run_is_no_difference() -> None:
    """Found: it has no configuration, a PUT neither names nor deletes it, and so every tick put again."""
    config = render([served(STABLE)])
    there = details(config)
    there["applications"]["by-hand"] = {"status": "RUNNING", "deployed_app_config": None}
    assert not differs(config, there)
    assert applications.render([served(STABLE)], there) == config


def test_each_arm_is_an_application_of_its_own() -> None:
    arms = (Arm(2, 0.0, 0.2), Arm(3, 0.2, 0.2))
    wanted = Wanted(sequence=5, stable=held(1), share=0.4, salt="r1", arms=arms)
    assert [a["name"] for a in render([served(wanted)])["applications"]] == ["small", "small--v2", "small--v3"]
    assert Wanted.parse(wanted.spec(), 5) == wanted


def test_what_is_stored_without_arms_is_what_releases_before_stored() -> None:
    stored = {"stable": vars(held(1)), "canary": 2, "share": 0.1, "salt": "r1", "warm": []}
    assert ON_TRIAL.spec() == stored
    assert Wanted.parse(stored, 5) == ON_TRIAL
