"""A running service as its clients see it: completions over HTTP, speculation on and off in turn, token ids compared or rates measured."""

import asyncio
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from dspark.bench.prompts import load_prompts
from dspark.bench.systems import Workload

TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class ServedAnswer:
    """One non-streamed completion."""

    token_ids: tuple[int, ...]
    rounds: int
    seconds: float
    selected_tokens: int
    """Candidates verified."""
    accepted_tokens: int


def complete_all(
    url: str, prompts: list[list[int]] | list[str], workload: Workload, *, clients: int, speculate: bool, drafter: str | None = None
) -> list[ServedAnswer]:
    """All prompts, `clients` in flight at any time; answers in the order of the prompts. Without a name the service chooses who drafts."""
    speculation = {"enabled": speculate, "drafter": drafter if speculate else None}
    return asyncio.run(_complete_all(url, prompts, workload, clients, speculation))


async def _complete_all(
    url: str, prompts: list[list[int]] | list[str], workload: Workload, clients: int, speculation: dict[str, Any]
) -> list[ServedAnswer]:
    gate = asyncio.Semaphore(clients)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client:
        model = (await client.get("/v1/models")).raise_for_status().json()["data"][0]["id"]

        async def one(prompt: list[int] | str) -> ServedAnswer:
            async with gate:
                return await _complete(client, model, prompt, workload, speculation)

        return list(await asyncio.gather(*(one(prompt) for prompt in prompts)))


async def _complete(
    client: httpx.AsyncClient, model: str, prompt: list[int] | str, workload: Workload, speculation: dict[str, Any]
) -> ServedAnswer:
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "max_tokens": workload.max_tokens,
        "temperature": workload.temperature,
        "seed": workload.seed,
        "ignore_eos": workload.ignore_eos,
        "return_token_ids": True,
        "speculation": speculation,
    }
    started = time.perf_counter()
    answer = (await client.post("/v1/completions", json=body)).raise_for_status().json()
    seconds, work = time.perf_counter() - started, answer["dspark"]
    token_ids = tuple(answer["choices"][0]["token_ids"])
    return ServedAnswer(token_ids, work["rounds"], seconds, work["selected_tokens"], work["accepted_tokens"])


def serve_table(
    url: str, path: Path | None, count: int, max_tokens: int, clients: int, temperature: float, drafter: str | None = None
) -> str:
    """Rates with and without speculation, in turns of `clients` prompts, and the median of the turns' ratios."""
    prompts = load_prompts(path, count)
    workload = Workload(max_tokens, temperature)
    groups = [prompts[i : i + clients] for i in range(0, len(prompts) - clients + 1, clients)]
    rates: dict[bool, list[float]] = {True: [], False: []}
    rounds, tokens = 0, 0
    complete_all(url, groups[0], workload, clients=clients, speculate=True, drafter=drafter)
    for turn, group in enumerate(groups):
        for speculate in (True, False) if turn % 2 == 0 else (False, True):
            started = time.perf_counter()
            answers = complete_all(url, group, workload, clients=clients, speculate=speculate, drafter=drafter)
            produced = sum(len(answer.token_ids) for answer in answers)
            rates[speculate].append(produced / (time.perf_counter() - started))
            if speculate:
                rounds, tokens = rounds + sum(answer.rounds for answer in answers), tokens + produced
    ratio = statistics.median(on / off for on, off in zip(rates[True], rates[False], strict=True))
    return "\n".join(
        [
            f"{count} prompts x {max_tokens} tokens over HTTP, {clients} client(s), temperature {temperature:g}",
            "",
            "| speculation | tokens/s (median) | tau |",
            "|---|---|---|",
            f"| {drafter or 'on'} | {statistics.median(rates[True]):.0f} | {tokens / rounds:.2f} |",
            f"| off | {statistics.median(rates[False]):.0f} | 1.00 |",
            "",
            f"on / off: {ratio:.2f} (median over {len(groups)} interleaved turns)",
        ]
    )
