"""The systems that are compared: the Engine with each drafter, and transformers' own ways to generate, all on the same weights.

A system takes prompts that are in flight together and gives back token ids; who measures time stands in speed.py.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM

from dspark.config import NO_DRAFTER, DrafterConfig, EngineConfig, ModelSource, SchedulingConfig
from dspark.engine import Completion, Engine
from dspark.local import LocalBackend
from dspark.runtime.loading import load_tokenizer, resolve_folder
from dspark.serving.text_codec import TextCodec


@dataclass(frozen=True, slots=True)
class Workload:
    """What each prompt is asked for."""

    max_tokens: int
    temperature: float
    seed: int = 0
    ignore_eos: bool = True


PLAIN = NO_DRAFTER
"""Name of the system that decodes without drafts."""


class System(Protocol):
    """Something that continues prompts."""

    name: str

    def run(self, prompts: list[list[int]], workload: Workload) -> list[Completion] | list[list[int]]:
        """All prompts at once; answers in their order."""


@dataclass
class EngineSystem:
    """An Engine that stays started between runs."""

    name: str
    engine: Engine
    speculate: bool = True
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def __post_init__(self) -> None:
        self._run(self.engine.start())

    def run(self, prompts: list[list[int]], workload: Workload) -> list[Completion]:
        """See System."""
        requests = self.engine.requests(
            prompts,
            max_tokens=workload.max_tokens,
            temperature=workload.temperature,
            seed=workload.seed,
            ignore_eos=workload.ignore_eos,
            speculation_enabled=self.speculate,
        )

        async def run_all() -> list[Completion]:
            return list(await asyncio.gather(*(self.engine.complete(request) for request in requests)))

        answers: list[Completion] = self._run(run_all())
        return answers

    def close(self) -> None:
        """Stop the engine and its event loop."""
        self._run(self.engine.stop())
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(work)


class TransformersSystem:
    """`model.generate` of transformers, one prompt after the other; with an assistant model it is their speculative decoding."""

    def __init__(self, name: str, config: EngineConfig, *, assistant: str | None = None, prompt_lookup: int | None = None) -> None:
        """`assistant` is the model of a `language_model` drafter."""
        self.name = name
        self._model = _plain_model(config.target.model)
        self._extra: dict[str, Any] = {}
        if assistant is not None:
            self._extra["assistant_model"] = _plain_model(assistant)
        if prompt_lookup is not None:
            self._extra["prompt_lookup_num_tokens"] = prompt_lookup

    def run(self, prompts: list[list[int]], workload: Workload) -> list[list[int]]:
        """See System."""
        return [self._one(prompt, workload) for prompt in prompts]

    @torch.inference_mode()
    def _one(self, prompt: list[int], workload: Workload) -> list[int]:
        sampling: dict[str, Any] = {"do_sample": False}
        if workload.temperature > 0:
            sampling = {"do_sample": True, "temperature": workload.temperature, "top_k": 0, "top_p": 1.0}
        if workload.ignore_eos:
            sampling |= {"eos_token_id": -1, "pad_token_id": 0}
        output = self._model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=workload.max_tokens,
            **sampling,
            **self._extra,
        )
        ids: list[int] = output[0, len(prompt) :].tolist()
        return ids


PLANNED_LIMITS = {"max_depth": 7, "max_nodes": 16, "max_width": 4}
"""What a planned system is allowed at least."""


def engine_systems(config: EngineConfig) -> dict[str, EngineSystem]:
    """One target in memory: an Engine without a drafter, named PLAIN and first, and two for each drafter of the configuration.

    NAME drafts and verifies always what its limits allow; `NAME planned` may do more, and does what the planner finds worth it.
    """
    alone = config.model_copy(update={"drafters": {}, "drafter": DrafterConfig(kind="none")})
    backend = LocalBackend.load(alone, profile=True)
    codec = TextCodec(load_tokenizer(resolve_folder(config.target)))
    systems = {PLAIN: EngineSystem(PLAIN, Engine(backend, codec, alone), speculate=False)}
    for name, drafter in config.named_drafters.items():
        larger = drafter.model_copy(update={limit: max(least, getattr(drafter, limit)) for limit, least in PLANNED_LIMITS.items()})
        # Drafter and target share one thread: nothing hides anything.
        for label, own, scheduling in (
            (name, drafter, SchedulingConfig(mode="fixed", overlap=0.0)),
            (f"{name} planned", larger, SchedulingConfig(mode="planned", overlap=0.0)),
        ):
            settings = alone.model_copy(update={"drafter": own, "scheduling": scheduling})
            systems[label] = EngineSystem(label, Engine(backend.with_drafter(own), codec, settings))
    return systems


def _plain_model(name: str) -> Any:
    folder = resolve_folder(ModelSource(model=name))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    return model.eval()
