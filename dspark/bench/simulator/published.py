"""Costs and acceptance of well-known models and devices, as data: what others published, and what follows from a device's limits.

Three kinds of numbers, kept apart:
    facts       sizes of models, limits of devices, measurements that others published; each names its source
    derived     curves: the roofline of a model on a device, with the efficiency that one published point shows
    chosen      what nobody published and the derivation needs; said so where it stands

Derived rates are those of a device, not of a serving engine: at 32 clients Qwen3-8B comes out a quarter to a third above the published
point. Read ratios between policies, not tokens per second.
"""

from dataclasses import dataclass

import numpy as np

from dspark.bench.simulator.acceptance import ChanceTable
from dspark.bench.simulator.costs import DraftCosts, RouterCosts, Setup, TargetCosts
from dspark.scheduling.curve import ThroughputCurve, rows_to_measure


@dataclass(frozen=True, slots=True)
class Device:
    """Limits by data sheet."""

    name: str
    memory_bytes_per_second: float
    flops_per_second: float
    """bfloat16, dense."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """A dense bfloat16 model."""

    name: str
    parameters_read: float
    """Of one step: all but the input embedding, of which only a few rows are read."""
    num_layers: int
    num_kv_heads: int
    head_dim: int

    @property
    def weight_bytes(self) -> float:
        """Two for each."""
        return 2.0 * self.parameters_read

    @property
    def kv_bytes_per_token(self) -> float:
        """Keys and values of one cached token."""
        return 2.0 * 2.0 * self.num_layers * self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class PublishedPoint:
    """One measurement of somebody else."""

    setup: str
    clients: int
    tokens_per_second: float
    tau: float | None
    """None: without speculation."""
    source: str


#: NVIDIA H100 data sheet, SXM: 3.35 TB/s, 989 TFLOPS bfloat16 without sparsity.
H100 = Device("H100 SXM", 3.35e12, 989e12)

#: Qwen3-8B model card and config.json: 8.2 B parameters, 6.95 B without embeddings, untied, vocabulary 151,936 x 4,096;
#: 36 layers, 8 KV heads x 128.
QWEN3_8B = ModelSize("Qwen3-8B", 6.95e9 + 151_936 * 4_096, 36, 8, 128)

#: Llama-3.1-8B config.json: 8.03 B parameters, untied, vocabulary 128,256 x 4,096; 32 layers, 8 KV heads x 128.
LLAMA_8B = ModelSize("Llama-3.1-8B", 8.03e9 - 128_256 * 4_096, 32, 8, 128)

_DOGACEL = "model card Dogacel/Qwen3-8B-DSpark: H100, SPEED-Bench coding, temperature 1"
_VLLM_BLOG = "vLLM blog, 2026-08-14: V4-Pro-0813, TP8 on 8 B300, temperature 1, 512 output tokens"
PUBLISHED_POINTS = (
    PublishedPoint("qwen3-8b-h100", 1, 147.4, None, _DOGACEL),
    PublishedPoint("qwen3-8b-h100", 1, 259.9, 2.33, _DOGACEL),
    PublishedPoint("qwen3-8b-h100", 32, 2994.8, None, _DOGACEL),
    PublishedPoint("qwen3-8b-h100", 32, 3875.6, 2.33, _DOGACEL),
    PublishedPoint("llama-3.1-8b-h100", 1, 158.0, None, "SGLang documentation, EAGLE: MT-Bench, one H100"),
    PublishedPoint("v4-pro-8xb300", 256, 6267.0, None, _VLLM_BLOG),
    PublishedPoint("v4-pro-8xb300", 256, 8855.0, 2.65, f"{_VLLM_BLOG}; adaptive verification"),
)
"""V4-Pro is for comparison only: two points of one load do not make a curve."""

COMPUTE_EFFICIENCY = 0.6
"""Chosen: share of a data sheet's FLOPS that large matrix products reach in serving."""
CURVE_ROWS = 4096


def roofline(model: ModelSize, device: Device, memory_efficiency: float, compute_efficiency: float = COMPUTE_EFFICIENCY) -> TargetCosts:
    """Derived: a step takes as long as reading the weights once, or as 2 FLOPs per parameter and row, whichever is longer; and on top
    of it reading each session's keys and values once. Efficiencies: shares of the device's limits."""
    rows = np.asarray(rows_to_measure(CURVE_ROWS))
    bandwidth = device.memory_bytes_per_second * memory_efficiency
    read_ms = 1e3 * model.weight_bytes / bandwidth
    compute_ms = 1e3 * 2.0 * model.parameters_read * rows / (device.flops_per_second * compute_efficiency)
    curve = ThroughputCurve(rows, np.asarray([0]), np.maximum(read_ms, compute_ms)[None])
    curve.check()
    return TargetCosts(curve, kv_us_per_token=1e6 * model.kv_bytes_per_token / bandwidth)


def efficiency_at_one_client(model: ModelSize, device: Device, tokens_per_second: float) -> float:
    """Share of the memory bandwidth that a published rate of plain decoding, one client, shows; whatever else a step pays is in it."""
    return model.weight_bytes * tokens_per_second / device.memory_bytes_per_second


def _setup(name: str, model: ModelSize, device: Device, one_processor: bool) -> Setup:
    """The published rate of one client sets the efficiency; no other published number goes in."""
    published = next(p for p in PUBLISHED_POINTS if p.setup == name and p.clients == 1 and p.tau is None)
    efficiency = efficiency_at_one_client(model, device, published.tokens_per_second)
    place = "drafter on the same GPU" if one_processor else "drafter on a GPU of its own"
    return Setup(
        label=f"{model.name}, bfloat16, {device.name}, {place}: derived (roofline, {efficiency:.0%} of bandwidth by one published point)",
        target=roofline(model, device, efficiency),
        draft=BLOCK_DRAFTER,
        router=CHOSEN_ROUTER,
        one_processor=one_processor,
        max_rows=2048,
    )


#: Derived by subtraction from the published points of qwen3-8b-h100: a round of one client takes 2.33 / 259.9 s = 9.0 ms, a step 6.8 ms
#: of it; one of 32 clients 19.2 ms, of it 6.8 ms for 256 rows and about 5 ms for keys and values and the engine. How the rest divides
#: into terms is chosen.
BLOCK_DRAFTER = DraftCosts(fixed_ms=0.8, session_ms=0.15, depth_ms=0.18)

#: Chosen: a router in another process than the target, small against a step of 7 ms.
CHOSEN_ROUTER = RouterCosts(round_ms=0.3, session_us=5.0)

SETUPS: dict[str, Setup] = {
    "qwen3-8b-h100": _setup("qwen3-8b-h100", QWEN3_8B, H100, one_processor=False),
    "qwen3-8b-h100-shared": _setup("qwen3-8b-h100", QWEN3_8B, H100, one_processor=True),
    "llama-3.1-8b-h100": _setup("llama-3.1-8b-h100", LLAMA_8B, H100, one_processor=False),
}
"""By name, for `--setup`."""

SIBLING_SHARE, SPREAD = 0.25, 0.3
"""Fitted to one measured pair at temperature 1 (tests/bench/simulator/test_published.py): chains of 2, 4 and 7, and best-first trees of 4
to 32 nodes, all of them within 0.06 of the measured tau. Each sibling takes this share of what those before it left."""
TREE_WIDTH = 4

_CHAINS = {
    # This project's card of demo:dspark, held-out prompts: accepted given that all before it were, by position.
    "demo-dspark-t0": (0.936, 0.908, 0.912, 0.907, 0.914, 0.869, 0.877),
    "demo-dspark-t0.7": (0.817, 0.795, 0.783, 0.764, 0.745, 0.777, 0.759),
    "demo-dspark-t1": (0.746, 0.649, 0.627, 0.626, 0.612, 0.674, 0.607),
    # vllm-ascend #13640, V4-Flash, block of 7: survival .739 .478 .261 .174 .130 .087 .043, as ratios of neighbours; tau 2.91.
    "v4-flash": (0.739, 0.647, 0.546, 0.667, 0.747, 0.669, 0.494),
}
ACCEPTANCE: dict[str, ChanceTable] = {
    name: ChanceTable.of_chain(chain, width=TREE_WIDTH, sibling_share=SIBLING_SHARE, spread=SPREAD)
    for name, chain in _CHAINS.items()
}
"""By name, for `--acceptance`: published chains, with siblings and spread as fitted to another pair."""
