"""What Serve is told of the deployments."""

from typing import Any

import pytest
from ray.serve._private.build_app import build_app

from deployments import app
from deployments.app import build, deployment_options
from dspark.config import AutoscalingOptions, DeploymentOptions, ServeArgs, TargetConfig
from dspark.errors import ConfigError


def deployments_of(application: Any) -> dict[str, Any]:
    """Name to deployment, through the bound arguments of the ingress."""
    ingress = application._bound_deployment
    found = {ingress.name: ingress}
    for argument in ingress.init_args:
        for item in argument.values() if isinstance(argument, dict) else [argument]:
            if hasattr(item, "_bound_deployment"):
                found |= deployments_of(item)
    return found


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("language_model", {"Router", "Target", "Draft"}),
        ("block", {"Router", "Target", "Draft"}),
        ("eagle", {"Router", "Target", "Draft"}),
        ("lookup", {"Router", "Target"}),
        ("none", {"Router", "Target"}),
    ],
)
def test_only_a_drafter_with_weights_is_deployed(kind: str, names: set[str]) -> None:
    assert set(deployments_of(build({"drafter": {"kind": kind}}))) == names


def test_the_built_application_is_there_for_import() -> None:
    assert set(deployments_of(app.app)) == {"Router", "Target", "Draft"}


SEVERAL = {
    "drafters": {"general": {"num_threads": 1}, "code": {"kind": "block", "model": "some/drafter"}, "copy": {"kind": "lookup"}},
    "draft_deployment": {"max_leases": 11},
    "draft_deployments": {"code": {"max_leases": 22, "autoscaling": {"min_replicas": 1, "max_replicas": 5}}},
}


def test_every_drafter_with_weights_has_a_pool_of_its_own() -> None:
    found = deployments_of(build(SEVERAL))
    assert set(found) == {"Router", "Target", "Draft-general", "Draft-code"}
    assert (found["Draft-general"].max_ongoing_requests, found["Draft-code"].max_ongoing_requests) == (11, 22)
    assert found["Draft-code"]._deployment_config.autoscaling_config.max_replicas == 5
    assert found["Draft-general"]._deployment_config.autoscaling_config is None


def test_drafter_and_target_are_told_of_each_other_and_the_router_of_each_pool() -> None:
    args = ServeArgs.model_validate(SEVERAL)
    found = deployments_of(build(args))
    for name in ("general", "code"):
        assert found[f"Draft-{name}"].init_args == (args.drafters[name], args.target, args.lease_silence_timeout_s)
    assert found["Target"].init_args == (args.target, tuple(args.drafters.values()), args.lease_silence_timeout_s)
    drafts = found["Router"].init_args[2]
    assert {name: draft._bound_deployment.name for name, draft in drafts.items()} == {"general": "Draft-general", "code": "Draft-code"}


def test_serve_puts_a_handle_in_the_place_of_every_pool() -> None:
    built = build_app(build(SEVERAL), name="app")
    (router,) = [deployment for deployment in built.deployments if deployment.name == "Router"]
    assert {name: handle.deployment_name for name, handle in router.init_args[2].items()} == {
        "general": "Draft-general",
        "code": "Draft-code",
    }


def test_a_misspelt_argument_stops_the_builder() -> None:
    with pytest.raises(ConfigError, match=r"args.target_deploymnt: unknown key; did you mean 'target_deployment'\?"):
        build({"target_deploymnt": {}})


def test_every_deployment_takes_as_many_sessions_as_it_was_told() -> None:
    args = ServeArgs(target_deployment=DeploymentOptions(max_leases=77))
    found = deployments_of(build(args))
    assert found["Target"].max_ongoing_requests == 77
    assert found["Draft"].max_ongoing_requests == 256
    assert found["Router"].max_ongoing_requests == 1024


def test_a_drain_may_take_as_long_as_the_longest_request() -> None:
    assert deployment_options("Target", DeploymentOptions(), None)["graceful_shutdown_timeout_s"] >= ServeArgs().limits.request_timeout_s


def test_a_fixed_number_of_replicas_is_not_autoscaled() -> None:
    options = deployment_options("Target", DeploymentOptions(autoscaling=AutoscalingOptions(min_replicas=2, max_replicas=2)), None)
    assert options["num_replicas"] == 2
    assert "autoscaling_config" not in options


def test_a_range_of_replicas_is_autoscaled_on_open_leases() -> None:
    scaling = AutoscalingOptions(min_replicas=1, max_replicas=4, target_ongoing_requests=8.0)
    options = deployment_options("Target", DeploymentOptions(autoscaling=scaling), None)
    assert options["autoscaling_config"]["target_ongoing_requests"] == 8.0
    assert "num_replicas" not in options
    found = deployments_of(build(ServeArgs(target_deployment=DeploymentOptions(autoscaling=scaling))))
    assert found["Target"]._deployment_config.autoscaling_config.max_replicas == 4


def test_a_label_is_only_asked_for_where_one_is_set() -> None:
    assert "label_selector" not in deployment_options("Target", DeploymentOptions(), None)["ray_actor_options"]
    labelled = DeploymentOptions(label_selector={"pool": "target"}, num_gpus=1.0)
    actor = deployment_options("Target", labelled, None)["ray_actor_options"]
    assert (actor["label_selector"], actor["num_gpus"]) == ({"pool": "target"}, 1.0)


def test_threads_are_set_before_the_process_starts() -> None:
    actor = deployment_options("Target", DeploymentOptions(), TargetConfig(num_threads=3))["ray_actor_options"]
    assert actor["runtime_env"]["env_vars"] == {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"}
    assert "runtime_env" not in deployment_options("Target", DeploymentOptions(), TargetConfig())["ray_actor_options"]
