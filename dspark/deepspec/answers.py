"""Who answers the prompts: the engine in this process, or any server with OpenAI's API. Both give token ids.

A server that returns ids (this project's, vLLM) is asked with ids and taken at its word; from any other the text is tokenised again,
which is close to what the target wrote but not always the same cut; the end that a text does not show is added where the server says
that the target stopped by itself. Does not know samples, folders or the order of jobs.
"""

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from dspark.config import DrafterConfig, EngineConfig, KvCacheConfig, LimitsConfig, TargetConfig
from dspark.deepspec.prompts import Ends, Prompt
from dspark.errors import ConfigError, InvalidRequest, TargetUnavailable
from dspark.serving.text_codec import TextCodec

if TYPE_CHECKING:
    import httpx

SEED_BITS = 53
"""Seeds travel through JSON readers that hold numbers as doubles."""
TRIES = 5
FIRST_PAUSE_S = 1.0
RETRIED_STATUSES = (408, 429, 502, 503, 504)
CONNECT_TIMEOUT_S = 10.0
DAY_S = 86_400.0
COMPARED_CHARACTERS = 24
REASONING_KEYS = ("reasoning_content", "reasoning")


@dataclass(frozen=True, slots=True)
class Job:
    """One answer to get."""

    sample_id: str
    prompt: Prompt
    temperature: float
    max_tokens: int
    seed: int


class Answerer(Protocol):
    """Gives on-policy answers. Use as an async context manager."""

    source: str
    """Goes into each sample."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    async def answer(self, job: Job) -> list[int]:
        """The answer's token ids. Raises InvalidRequest if this prompt cannot be answered, another DSparkError if none can."""


def sample_seed(seed: int, sample_id: str) -> int:
    """The same for the same sample of every run."""
    digest = hashlib.blake2b(f"{seed}:{sample_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - SEED_BITS)


def engine_config(target: TargetConfig, drafter: DrafterConfig, *, concurrency: int, tokens_per_sample: int) -> EngineConfig:
    """An engine with room for `concurrency` samples at once, and without the haste of a service."""
    num_tokens = max(target.kv_cache.num_tokens, concurrency * tokens_per_sample)
    limits = LimitsConfig(max_sessions=concurrency, request_timeout_s=DAY_S, client_stall_timeout_s=DAY_S, verify_timeout_s=DAY_S)
    cache = KvCacheConfig(num_tokens=num_tokens, block_tokens=target.kv_cache.block_tokens)
    return EngineConfig(target=target.model_copy(update={"kv_cache": cache}), drafter=drafter, limits=limits)


class EngineAnswerer:
    """The target in this process: exact ids, the same for the same seed on this machine up to numerical near-ties."""

    source = "engine"

    def __init__(self, config: EngineConfig, *, ignore_eos: bool = False) -> None:
        from dspark.engine import Engine  # torch takes seconds to import; reading options should not

        self._engine = Engine.from_config(config)
        self._ignore_eos = ignore_eos

    async def __aenter__(self) -> Self:
        await self._engine.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._engine.stop()

    async def answer(self, job: Job) -> list[int]:
        """See Answerer."""
        (request,) = self._engine.requests(
            [job.prompt.token_ids],
            max_tokens=job.max_tokens,
            temperature=job.temperature,
            seed=job.seed,
            ignore_eos=self._ignore_eos,
        )
        return list((await self._engine.complete(request)).token_ids)


class ServerAnswerer:
    """A running server. Whether it returns ids is seen in its first answer."""

    source = "server"

    def __init__(
        self, url: str, model: str | None, codec: TextCodec, vocab_size: int, *, ends: Ends | None = None, ignore_eos: bool = False
    ) -> None:
        self._ends = ends or Ends()
        self._url = url.rstrip("/").removesuffix("/v1")
        self._model = model
        self._codec = codec
        self._vocab_size = vocab_size
        self._ignore_eos = ignore_eos
        self._gives_ids: bool | None = None
        self._first = asyncio.Lock()
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        httpx = _httpx()
        timeout = httpx.Timeout(DAY_S, connect=CONNECT_TIMEOUT_S)
        self._client = httpx.AsyncClient(base_url=self._url, timeout=timeout, limits=httpx.Limits(max_connections=None))
        try:
            if self._model is None:
                self._model = await self._first_model()
        except BaseException:
            await self._client.aclose()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._client is not None, "entered before it is left"
        await self._client.aclose()

    async def answer(self, job: Job) -> list[int]:
        """See Answerer."""
        async with self._first:  # the others wait until the first answer told what the server can do
            if self._gives_ids is None:
                return await self._first_answer(job)
        return await (self._ids_by_ids(job) if self._gives_ids else self._ids_by_text(job))

    async def _first_answer(self, job: Job) -> list[int]:
        """Ask with ids; a server that refuses them or answers without ids is asked with text from now on."""
        ids: list[int] | None = None
        try:
            ids = await self._ids_by_ids(job)
        except (InvalidRequest, _NoIdsError):
            answer = await self._ids_by_text(job)  # fails in its own way if the prompt itself is at fault
            self._gives_ids = False
            return answer
        self._gives_ids = True
        return ids

    async def _ids_by_ids(self, job: Job) -> list[int]:
        body = self._options(job) | {"prompt": list(job.prompt.token_ids), "return_token_ids": True}
        choice = _choice(await self._post("/v1/completions", body))
        ids = choice.get("token_ids")
        if not isinstance(ids, list):
            raise _NoIdsError("the server does not return token ids")
        if not all(type(token_id) is int and 0 <= token_id < self._vocab_size for token_id in ids):
            raise ConfigError(f"{self._url}: returned ids outside the vocabulary of {self._vocab_size}; it serves another model", "server")
        self._check_same_tokenizer(ids, str(choice.get("text", "")))
        return ids

    async def _ids_by_text(self, job: Job) -> list[int]:
        prompt = job.prompt
        if prompt.messages is None:
            choice = _choice(await self._post("/v1/completions", self._options(job) | {"prompt": prompt.text}))
            text, end = choice.get("text"), self._ends.text
        else:
            body = self._options(job) | {"messages": prompt.messages}
            if prompt.thinking is not None:
                body["chat_template_kwargs"] = {"enable_thinking": prompt.thinking}
            choice = _choice(await self._post("/v1/chat/completions", body))
            text, end = self._spoken(choice.get("message")), self._ends.turn
        if not isinstance(text, str):
            raise ConfigError(f"{self._url}: an answer without text", "server")
        ids = self._codec.backend.encode(text, add_special_tokens=False).ids
        return [*ids, *end] if choice.get("finish_reason") == "stop" else list(ids)

    def _spoken(self, message: Any) -> Any:
        if not isinstance(message, Mapping):
            return None
        if any(message.get(key) for key in REASONING_KEYS):
            raise ConfigError(
                f"{self._url}: splits the thinking off the answer, so what the target wrote is lost; start it without a reasoning parser",
                "server",
            )
        return message.get("content")

    def _options(self, job: Job) -> dict[str, Any]:
        options = {"model": self._model, "max_tokens": job.max_tokens, "temperature": job.temperature, "seed": job.seed}
        return options | ({"ignore_eos": True} if self._ignore_eos else {})

    def _check_same_tokenizer(self, ids: list[int], text: str) -> None:
        """Ids of another tokenizer read as nonsense; the beginning tells, the end may be half a character."""
        own = self._codec.backend.decode(ids, skip_special_tokens=True).strip()
        told = text.strip()
        compared = min(len(own), len(told), COMPARED_CHARACTERS) - 1
        if compared > 0 and own[:compared] != told[:compared]:
            raise ConfigError(f"{self._url}: its ids mean other text than the target's tokenizer says; it serves another model", "server")

    async def _first_model(self) -> str:
        answer = await self._request("GET", "/v1/models", None)
        try:
            return str(answer["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            raise ConfigError(f"{self._url}/v1/models: names no model; give --model", "model") from error

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        return await self._request("POST", path, body)

    async def _request(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        """The answer as JSON. A busy or vanishing server is asked again, with growing pauses."""
        httpx = _httpx()
        assert self._client is not None, "entered before it is used"
        reason = ""
        for attempt in range(TRIES):
            if attempt:
                await asyncio.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
            try:
                response = await self._client.request(method, path, json=body)
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}"
                continue
            if response.status_code not in RETRIED_STATUSES:
                return self._json(path, response)
            reason = f"status {response.status_code}"
        raise TargetUnavailable(f"{self._url}{path}: gave no answer in {TRIES} tries ({reason})")

    def _json(self, path: str, response: "httpx.Response") -> Any:
        place = f"{self._url}{path}"
        if response.status_code in (400, 413, 422):
            raise InvalidRequest(f"{place}: refused the prompt ({_message(response)})", "prompt")
        if response.status_code != 200:
            raise ConfigError(f"{place}: answered with status {response.status_code} ({_message(response)})", "server")
        try:
            return response.json()
        except ValueError as error:
            raise ConfigError(f"{place}: the answer is not JSON; is this an OpenAI-compatible server?", "server") from error


class _NoIdsError(Exception):
    """The answer has text only."""


def _choice(answer: Any) -> Mapping[str, Any]:
    try:
        choice = answer["choices"][0]
    except (KeyError, IndexError, TypeError):
        choice = None
    if not isinstance(choice, Mapping):
        raise ConfigError("the server's answer has no choices; is this an OpenAI-compatible server?", "server")
    return choice


def _message(response: "httpx.Response") -> str:
    try:
        return str(response.json()["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return response.text[:300]


def _httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        message = "asking a server needs the library httpx, which is not installed: pip install 'dspark[data]'"
        raise ConfigError(message, "server") from error
    return httpx
