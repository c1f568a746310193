"""The one builder of the Ray Serve application: `deployments.app:build`, and `app`, the same with the shipped pair and all defaults.

Router (ingress), Target and a Draft for each drafter that runs a model. The classes are plain; what Serve needs to know stands here.
"""

from typing import Any

from ray import serve
from ray.serve import Application

from deployments.config_file import read_args
from deployments.draft import Draft
from deployments.router import Router
from deployments.target import Target
from dspark.config import DEFAULT_DRAFTER, DeploymentOptions, ModelSource, ServeArgs

ROUTER, TARGET, DRAFT = "Router", "Target", "Draft"

MAX_CONSTRUCTOR_TRIES = 3
"""A checkpoint that cannot be loaded fails the deployment with its reason instead of being retried for minutes."""
WAIT_LOOP_S = 0.5
"""How often a draining replica looks whether its last lease is over."""


def build(args: ServeArgs | dict[str, Any]) -> Application:
    """The application for these arguments. Raises ConfigError naming each wrong key.

    The annotation is a union on purpose: for a bare pydantic model Serve would validate first, with an error of a page.
    """
    args = read_args(args)
    drafters = tuple(args.named_drafters.values())
    target = _deployment(Target, TARGET, args.target_deployment, args.target).bind(args.target, drafters, args.lease_silence_timeout_s)
    drafts = {name: _draft(args, name, options) for name, options in args.draft_pools.items()}
    router = _deployment(serve.ingress()(Router), ROUTER, args.router_deployment, None)
    application: Application = router.bind(args, target, drafts)
    return application


def draft_name(drafter: str) -> str:
    """The deployment of a drafter; the only one of a configuration needs no name of its own."""
    return DRAFT if drafter == DEFAULT_DRAFTER else f"{DRAFT}-{drafter}"


def _draft(args: ServeArgs, name: str, options: DeploymentOptions) -> Application:
    config = args.named_drafters[name]
    draft = _deployment(Draft, draft_name(name), options, config)
    bound: Application = draft.bind(config, args.target, args.lease_silence_timeout_s)
    return bound


def _deployment(cls: type, name: str, options: DeploymentOptions, source: ModelSource | None) -> Any:
    return serve.deployment(cls, **deployment_options(name, options, source))


def deployment_options(name: str, options: DeploymentOptions, source: ModelSource | None) -> dict[str, Any]:
    """Keyword arguments of serve.deployment; a fixed number of replicas is not autoscaled at all."""
    scaling = options.autoscaling
    replicas: dict[str, Any] = {"num_replicas": scaling.min_replicas}
    if scaling.min_replicas < scaling.max_replicas:
        # Half a step at a time: Serve stops the newest replicas, also those with open leases.
        replicas = {"autoscaling_config": scaling.model_dump() | {"downscaling_factor": 0.5}}
    return replicas | {
        "name": name,
        "max_ongoing_requests": options.max_leases,  # Serve's default of 5 would throttle leases
        "ray_actor_options": _actor_options(options, source),
        "graceful_shutdown_timeout_s": options.graceful_shutdown_timeout_s,
        "graceful_shutdown_wait_loop_s": WAIT_LOOP_S,
        "health_check_period_s": options.health_check_period_s,
        "max_constructor_retry_count": MAX_CONSTRUCTOR_TRIES,
    }


def _actor_options(options: DeploymentOptions, source: ModelSource | None) -> dict[str, Any]:
    actor: dict[str, Any] = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus}
    if options.label_selector is not None:
        actor["label_selector"] = dict(options.label_selector)
    if source is not None and source.num_threads is not None:
        # Ray sets OMP_NUM_THREADS from num_cpus, which is for placement only here.
        threads = str(source.num_threads)
        actor["runtime_env"] = {"env_vars": {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}}
    return actor


app = build(ServeArgs())
