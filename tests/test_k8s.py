"""The Kubernetes manifest: no unknown key, the right types, and a Serve configuration that the application accepts.

The schema below is written by hand from KubeRay's API reference and knows only what the manifest uses: a new key needs a line here,
which is the moment to look it up.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dspark.config import ServeArgs

ROOT = Path(__file__).resolve().parents[1]
K8S = ROOT / "k8s"

PROBE = {"exec": {"command": [str]}, "periodSeconds": int, "timeoutSeconds": int, "failureThreshold": int}
CONTAINER = {
    "name": str,
    "image": str,
    "securityContext": {"allowPrivilegeEscalation": bool, "capabilities": {"drop": [str]}},
    "env": [{"name": str, "value": str}],
    "ports": [{"name": str, "containerPort": int}],
    "resources": {"requests": {"cpu": str, "memory": str}, "limits": {"cpu": str, "memory": str}},
    "startupProbe": PROBE,
    "livenessProbe": PROBE,
    "readinessProbe": PROBE,
}
POD_SECURITY = {"runAsNonRoot": bool, "runAsUser": int, "fsGroup": int, "seccompProfile": {"type": str}}
HEAD = {
    "labels": {"pool": str},
    "rayStartParams": {"dashboard-host": str},
    "template": {"spec": {"securityContext": POD_SECURITY, "containers": [CONTAINER]}},
}
WORKER_POD = {"securityContext": POD_SECURITY, "terminationGracePeriodSeconds": int, "containers": [CONTAINER]}
WORKER = {
    "groupName": str,
    "labels": {"pool": str},
    "replicas": int,
    "minReplicas": int,
    "maxReplicas": int,
    "rayStartParams": {},
    "template": {"spec": WORKER_POD},
}
RAY_SERVICE = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "labels": {"app.kubernetes.io/name": str, "app.kubernetes.io/version": str}},
    "spec": {
        "rayClusterDeletionDelaySeconds": int,
        "upgradeStrategy": {"type": str},
        "serveConfigV2": str,
        "rayClusterConfig": {
            "rayVersion": str,
            "authOptions": {"mode": str},
            "enableInTreeAutoscaling": bool,
            "autoscalerOptions": {"version": str, "idleTimeoutSeconds": int},
            "headGroupSpec": HEAD,
            "workerGroupSpecs": [WORKER],
        },
    },
}


def misfits(value: Any, schema: Any, where: str = "") -> list[str]:
    """Where a document differs from a schema of nested dictionaries (all keys required), one-item lists and types."""
    if isinstance(schema, type):
        return [] if type(value) is schema else [f"{where}: {value!r} is not {schema.__name__}"]
    if isinstance(schema, list):
        if not isinstance(value, list) or not value:
            return [f"{where}: not a list with something in it"]
        return [text for index, item in enumerate(value) for text in misfits(item, schema[0], f"{where}[{index}]")]
    if not isinstance(value, dict):
        return [f"{where}: not a mapping"]
    keys = [f"{where}.{key}: {'missing' if key in schema else 'unknown'}" for key in sorted(schema.keys() ^ value.keys())]
    both = schema.keys() & value.keys()
    return keys + [text for key in sorted(both) for text in misfits(value[key], schema[key], f"{where}.{key}")]


@pytest.fixture
def service() -> Any:
    """The manifest, parsed."""
    return yaml.safe_load((K8S / "rayservice.yaml").read_text())


@pytest.fixture
def serve_config(service: Any) -> Any:
    """serveConfigV2, parsed."""
    return yaml.safe_load(service["spec"]["serveConfigV2"])


def groups(service: Any) -> list[Any]:
    cluster = service["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_the_manifest_has_the_keys_and_types_of_a_ray_service(service: Any) -> None:
    assert misfits(service, RAY_SERVICE) == []
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")


def test_the_schema_sees_misspelt_missing_and_wrongly_typed_keys(service: Any) -> None:
    worker = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]
    worker["minReplica"] = worker.pop("minReplicas")
    worker["maxReplicas"] = "4"
    where = ".spec.rayClusterConfig.workerGroupSpecs[1]"
    assert misfits(service, RAY_SERVICE) == [
        f"{where}.minReplica: unknown",
        f"{where}.minReplicas: missing",
        f"{where}.maxReplicas: '4' is not int",
    ]


def test_every_deployment_finds_a_pool_of_its_own(service: Any, serve_config: Any) -> None:
    args = serve_config["applications"][0]["args"]
    wanted = [args[f"{name}_deployment"]["label_selector"]["pool"] for name in ("router", "target", "draft")]
    assert wanted == [group["labels"]["pool"] for group in groups(service)]


def test_a_pod_has_the_cores_its_replica_asks_for(service: Any, serve_config: Any) -> None:
    args = serve_config["applications"][0]["args"]
    for worker in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        [container] = worker["template"]["spec"]["containers"]
        options = args[f"{worker['groupName']}_deployment"]
        assert float(container["resources"]["limits"]["cpu"]) >= options["num_cpus"]
        assert worker["maxReplicas"] >= options["autoscaling"]["max_replicas"]


def test_the_arguments_are_those_of_the_application(serve_config: Any) -> None:
    args = ServeArgs(**serve_config["applications"][0]["args"])
    assert args.target_deployment.label_selector == {"pool": "target"}


def test_the_second_drafter_shown_in_the_comment_would_be_accepted(service: Any, serve_config: Any) -> None:
    args = serve_config["applications"][0]["args"]
    lines = service["spec"]["serveConfigV2"].split("# A second drafter")[1].splitlines()
    shown = yaml.safe_load("\n".join(line.strip().removeprefix("#") for line in lines if line.strip().startswith("#   ")))
    several = ServeArgs(**{key: value for key, value in args.items() if key != "drafter"}, **shown)
    pools = {name: (options.label_selector or {})["pool"] for name, options in several.draft_pools.items()}
    assert pools == {"general": "draft", "code": "draft-code"}


def test_no_session_is_cut_by_an_upgrade(service: Any, serve_config: Any) -> None:
    args = ServeArgs(**serve_config["applications"][0]["args"])
    longest_s = max(args.limits.request_timeout_s, args.target_deployment.graceful_shutdown_timeout_s)
    assert service["spec"]["rayClusterDeletionDelaySeconds"] > longest_s
    for worker in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        assert worker["template"]["spec"]["terminationGracePeriodSeconds"] > longest_s
    for protocol in ("http_options", "grpc_options"):
        assert serve_config[protocol]["request_timeout_s"] > args.limits.request_timeout_s


def test_ray_serve_and_the_projects_own_check_accept_the_configuration(service: Any, serve_config: Any, tmp_path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    from deployments.config_file import load

    assert ServeDeploySchema.model_validate(serve_config).applications[0].name == "dspark"
    path = tmp_path / "serve.yaml"
    path.write_text(service["spec"]["serveConfigV2"])
    assert set(load(path).args) == {"dspark"}


def test_pods_run_without_privileges_and_ray_asks_for_its_token(service: Any) -> None:
    assert service["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}
    for group in groups(service):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert all(container["securityContext"]["allowPrivilegeEscalation"] is False for container in pod["containers"])
        assert all({"name": "DSPARK_DATA_HOST", "value": "node"} in container["env"] for container in pod["containers"])


def test_image_ray_and_package_versions_agree(service: Any) -> None:
    import ray

    import dspark

    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == ray.__version__
    assert f"ray=={ray.__version__}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert service["metadata"]["labels"]["app.kubernetes.io/version"] == dspark.__version__
    images = {container["image"] for group in groups(service) for container in group["template"]["spec"]["containers"]}
    assert images == {f"ghcr.io/dspark/dspark:{dspark.__version__}"}
    assert f"-t {images.pop()} ." in (K8S / "Dockerfile").read_text()


def test_the_image_does_not_run_as_root() -> None:
    lines = (K8S / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000"]
