"""Configuration models: frozen, strict, every unknown key refused. One YAML file holds them (serve_config.yaml, `args:`)."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
PositiveSeconds = Annotated[float, Field(gt=0)]


class StrictModel(BaseModel):
    """Base of all configuration: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelSource(StrictModel):
    """Where a model's folder is and how it is put in memory."""

    model: str
    """A folder, a Hugging Face hub name, or `demo:target` / `demo:drafter` for the shipped pair."""
    revision: str | None = None
    """Hub revision; pin a commit hash for a hub name."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"
    device_map: str | dict[str, Any] | None = None
    """Passed to transformers: spreads one target over the GPUs of one node."""
    quantization: dict[str, Any] | None = None
    """Passed to transformers as `quantization_config`. A quantised target is a different target."""
    num_threads: Positive | None = None
    """Torch threads of the process; None leaves torch's default. Several replicas share a machine's cores."""


class KvCacheConfig(StrictModel):
    """The paged cache of one replica."""

    num_tokens: Positive = 16_384
    """Slots for keys and values, over all sessions of the replica."""
    block_tokens: Positive = 16


class TargetConfig(ModelSource):
    """The model whose output is served, unchanged."""

    model: str = "demo:target"
    served_name: str | None = None
    """The name clients use; default: the last part of `model`."""
    max_length: Positive | None = None
    """Longest prompt plus output in tokens; default: the model's own limit."""
    kv_cache: KvCacheConfig = KvCacheConfig()
    max_batch_rows: Positive = 512
    """Rows (prefill tokens, anchors and candidates of all sessions) in one forward."""
    deterministic: bool = False
    """Bitwise the same logits for a row whatever else is in the batch; slower (docs/measurements.md)."""


class DrafterConfig(ModelSource):
    """Who guesses, and how far."""

    kind: Literal["none", "lookup", "language_model"] = "language_model"
    model: str = "demo:drafter"
    max_depth: Annotated[int, Field(ge=0, le=64)] = 4
    """Draft positions per round (`num_speculative_tokens` elsewhere)."""
    max_nodes: Annotated[int, Field(ge=0, le=256)] = 4
    """Candidates per session and round."""
    lookup_min_match: Positive = 2
    """`lookup`: shortest suffix that counts as a match."""
    lookup_max_match: Positive = 16
    kv_cache: KvCacheConfig = KvCacheConfig()


class LimitsConfig(StrictModel):
    """What one router takes on, and how long it waits."""

    max_sessions: Positive = 256
    """Sessions at the same time; more wait in the queue."""
    max_queued: Positive = 1024
    """Requests waiting for a place; more get 429."""
    max_choices: Positive = 16
    """Largest `n`."""
    max_prompts: Positive = 64
    """Prompts in one completions request."""
    max_body_bytes: Positive = 4 * 1024 * 1024
    max_buffered_chunks: Positive = 32
    """Chunks a session may run ahead of its client."""
    client_stall_timeout_s: PositiveSeconds = 60.0
    """A session whose buffer stayed full this long is ended."""
    request_timeout_s: PositiveSeconds = 600.0
    acquire_timeout_s: PositiveSeconds = 30.0
    """How long a request waits for a replica before it gets 503."""
    verify_timeout_s: PositiveSeconds = 60.0
    """A target that is silent for this long is given up."""
    draft_timeout_s: PositiveSeconds = 1.0
    """A drafter that takes longer is left out of the round."""
    draft_retry_s: PositiveSeconds = 1.0
    """Pause between two tries to get a new draft lease."""


class EngineConfig(StrictModel):
    """A target, a drafter and limits: what the offline API needs."""

    target: TargetConfig = TargetConfig()
    drafter: DrafterConfig = DrafterConfig()
    limits: LimitsConfig = LimitsConfig()


class AutoscalingOptions(StrictModel):
    """The part of Ray Serve's autoscaling that this project sets; the fields mean what they mean there."""

    min_replicas: Annotated[int, Field(ge=0)] = 1
    max_replicas: Positive = 1
    target_ongoing_requests: Annotated[float, Field(gt=0)] = 32.0
    upscale_delay_s: Annotated[float, Field(ge=0)] = 5.0
    downscale_delay_s: Annotated[float, Field(ge=0)] = 600.0

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) is above max_replicas ({self.max_replicas})")
        return self


class DeploymentOptions(StrictModel):
    """Where and how often one deployment runs."""

    autoscaling: AutoscalingOptions = AutoscalingOptions()
    num_cpus: Annotated[float, Field(ge=0)] = 0.1
    """For Ray's placement only; the cores really used are the model's `num_threads`."""
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    label_selector: dict[str, str] | None = None
    """Node labels that a replica needs, for example {"pool": "target"}; None places it anywhere."""
    max_leases: Positive = 256
    """Open sessions per replica (`max_ongoing_requests` of Ray Serve)."""
    graceful_shutdown_timeout_s: PositiveSeconds = 630.0
    """At least the longest session: a draining replica is killed after it."""
    health_check_period_s: PositiveSeconds = 2.0


class ServeArgs(EngineConfig):
    """`args:` of the application in serve_config.yaml."""

    router_deployment: DeploymentOptions = DeploymentOptions(max_leases=1024)
    target_deployment: DeploymentOptions = DeploymentOptions()
    draft_deployment: DeploymentOptions = DeploymentOptions()
    lease_silence_timeout_s: PositiveSeconds = 10.0
    """A lease whose router sent nothing for this long is ended by the replica."""

    @model_validator(mode="after")
    def _same_length_of_grace(self) -> Self:
        grace = self.target_deployment.graceful_shutdown_timeout_s
        if grace < self.limits.request_timeout_s:
            raise ValueError(
                f"target_deployment.graceful_shutdown_timeout_s ({grace}) is below limits.request_timeout_s "
                f"({self.limits.request_timeout_s}): a drain would cut sessions"
            )
        return self
