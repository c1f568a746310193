"""Configuration models: frozen, strict, every unknown key refused. One YAML file holds them (serve_config.yaml, `args:`)."""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[int, Field(gt=0)]
PositiveSeconds = Annotated[float, Field(gt=0)]

FEATURE_KINDS = frozenset({"block", "eagle"})
"""Kinds of drafters that read the target's hidden states."""
MODEL_KINDS = FEATURE_KINDS | {"language_model"}
"""Kinds of drafters that have weights, and so replicas of their own in the service."""
SHIPPED_DRAFTERS = {"language_model": "demo:drafter", "block": "demo:dspark"}
"""What a drafter of these kinds runs where its configuration names no model."""
DEFAULT_DRAFTER = "default"
"""Name of the one that `drafter:` configures."""
NO_DRAFTER = "none"
"""What metrics call the lack of a drafter; no drafter may have this name."""
DRAFTER_NAME = re.compile(r"[a-z0-9_-]{1,32}")


class StrictModel(BaseModel):
    """Base of all configuration: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelSource(StrictModel):
    """Where a model's folder is and how it is put in memory."""

    model: str
    """A folder, a Hugging Face hub name, or `demo:target`, `demo:drafter`, `demo:dspark` for the shipped models."""
    revision: str | None = None
    """Hub revision; pin a commit hash for a hub name."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
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


class ProfileConfig(StrictModel):
    """How a target learns, when its replica starts, what its steps cost. Without a profile, routers learn it from real steps."""

    enabled: bool = True
    budget_s: PositiveSeconds = 5.0
    """Of measuring; what does not fit into it is left to the curve between its points."""
    path: str | None = None
    """A file to keep the curve in: read where it is of the same model, device, threads and dtype, else measured and written."""


class TargetConfig(ModelSource):
    """The model whose output is served, unchanged."""

    model: str = "demo:target"
    served_name: str | None = None
    """The name clients use; default: the last part of `model`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Part of what the target is: another precision answers otherwise."""
    max_length: Positive | None = None
    """Longest prompt plus output in tokens; default: the model's own limit."""
    kv_cache: KvCacheConfig = KvCacheConfig()
    max_batch_rows: Positive = 512
    """Rows (prefill tokens, anchors and candidates of all sessions) in one forward."""
    deterministic: bool = False
    """Bitwise the same logits for a row whatever else is in the batch; slower (docs/measurements.md)."""
    profile: ProfileConfig = ProfileConfig()


class DrafterConfig(ModelSource):
    """Who guesses, and how far."""

    kind: Literal["none", "lookup", "language_model", "block", "eagle"] = "block"
    """`block` is the DSpark drafter (DFlash where its checkpoint has no sequential head), `eagle` an EAGLE-3-style one."""
    model: str = SHIPPED_DRAFTERS["block"]
    """Default: the shipped drafter of this kind (SHIPPED_DRAFTERS)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 where the device multiplies it, else float32. No token depends on it, only what drafts cost and bring."""
    max_depth: Annotated[int, Field(ge=0, le=64)] = 7
    """Most draft positions per round (`num_speculative_tokens` elsewhere)."""
    max_nodes: Annotated[int, Field(ge=0, le=256)] = 16
    """Most candidates per session and round."""
    max_width: Annotated[int, Field(ge=1, le=16)] = 4
    """Most children of one candidate; 1 drafts chains."""
    min_survival: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Drafters with a model propose no position that they expect to survive less often; `deepspec evaluate` shows what it does."""
    with_lookup: bool = False
    """Also propose what `lookup` finds in the session's own text; both trees become one, of at most max_nodes candidates."""
    lookup_min_match: Positive = 2
    """`lookup`: shortest suffix that counts as a match."""
    lookup_max_match: Positive = 16
    kv_cache: KvCacheConfig = KvCacheConfig()

    @model_validator(mode="after")
    def _two_drafters(self) -> Self:
        if self.with_lookup and self.kind not in MODEL_KINDS:
            raise ValueError(f"with_lookup goes with a drafter that has a model, not with kind {self.kind!r}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _shipped_model(cls, data: Any) -> Any:
        """The field's own default is of one kind only."""
        if isinstance(data, dict) and "model" not in data and data.get("kind") in SHIPPED_DRAFTERS:
            return data | {"model": SHIPPED_DRAFTERS[data["kind"]]}
        return data


class LimitsConfig(StrictModel):
    """What one router takes on, and how long it waits."""

    max_sessions: Positive = 256
    """Sessions at the same time; more wait in the queue."""
    max_queued: Positive = 1024
    """Requests waiting for a place; more get 429."""
    enforce_promises: bool = False
    """True: a request that would break a promised speed (`speculation.min_tokens_per_second`), its own or another's, gets 429.
    False: it is served, and promises are kept as well as can be."""
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


class SchedulingConfig(StrictModel):
    """How drafting and verification are decided."""

    mode: Literal["planned", "fixed"] = "planned"
    """`planned`: as much as pays, from measured costs and survivals. `fixed`: always all that the drafters' limits allow."""
    overlap: Annotated[float, Field(ge=0, le=1)] = 1.0
    """How far drafting and verifying hide each other: 1 on devices of their own, 0 where they share one core."""


class EngineConfig(StrictModel):
    """A target, its drafters and limits: what the offline API needs."""

    target: TargetConfig = TargetConfig()
    drafter: DrafterConfig = DrafterConfig()
    """The one drafter, where one is enough."""
    drafters: dict[str, DrafterConfig] = {}
    """Instead of `drafter`: several by name, chosen per request by `speculation.drafter`, else by measured acceptance."""
    limits: LimitsConfig = LimitsConfig()
    scheduling: SchedulingConfig = SchedulingConfig()

    @property
    def named_drafters(self) -> dict[str, DrafterConfig]:
        """All who guess, by name; empty where nobody does."""
        named = self.drafters or {DEFAULT_DRAFTER: self.drafter}
        return {name: config for name, config in named.items() if config.kind != "none"}

    @field_validator("drafters")
    @classmethod
    def _names(cls, drafters: dict[str, DrafterConfig]) -> dict[str, DrafterConfig]:
        for name, config in drafters.items():
            if not DRAFTER_NAME.fullmatch(name) or name == NO_DRAFTER:
                raise ValueError(f"{name!r} is no name for a drafter: 1 to 32 of a-z 0-9 _ -, and not {NO_DRAFTER!r}")
            if config.kind == "none":
                raise ValueError(f"{name!r} has the kind 'none'; leave it out, a request can do without by speculation.enabled")
        return drafters

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if self.drafters and "drafter" in self.model_fields_set:
            raise ValueError("drafter and drafters are both given; put the one of `drafter` among `drafters`, with a name")
        return self


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
    """Of every drafter that runs a model: each has a pool of its own."""
    draft_deployments: dict[str, DeploymentOptions] = {}
    """Instead of `draft_deployment`, for the drafters named here."""
    lease_silence_timeout_s: PositiveSeconds = 10.0
    """A lease whose router sent nothing for this long is ended by the replica."""

    @property
    def draft_pools(self) -> dict[str, DeploymentOptions]:
        """The drafters that need replicas, by name, and where those run."""
        named = self.named_drafters
        return {name: self.draft_deployments.get(name, self.draft_deployment) for name in named if named[name].kind in MODEL_KINDS}

    @model_validator(mode="after")
    def _known_pools(self) -> Self:
        for name in self.draft_deployments:
            if name not in self.draft_pools:
                raise ValueError(f"draft_deployments names {name!r}; drafters that run a model are {listed(self.draft_pools)}")
        return self

    @model_validator(mode="after")
    def _same_length_of_grace(self) -> Self:
        grace = self.target_deployment.graceful_shutdown_timeout_s
        if grace < self.limits.request_timeout_s:
            raise ValueError(
                f"target_deployment.graceful_shutdown_timeout_s ({grace}) is below limits.request_timeout_s "
                f"({self.limits.request_timeout_s}): a drain would cut sessions"
            )
        return self


def listed(names: Iterable[str]) -> str:
    """`'code', 'general'` for a message."""
    return ", ".join(map(repr, sorted(names))) or "none"
