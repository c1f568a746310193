"""The one validator of every ingress: raw options in, generation requests out, or an InvalidRequest that names the field.

Knows the rules of single values and the model's limits. Does not know JSON, protobuf or HTTP: an ingress fills `RawOptions`
from its own messages, so the same mistake gets the same answer everywhere.
"""

import math
import re
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import product

from dspark.config import LimitsConfig, listed
from dspark.errors import InvalidRequest, ModelNotFound
from dspark.serving.generation import GenerationRequest
from dspark.types import MAX_SEED, ModelCard, SamplingParams

DEFAULT_MAX_TOKENS = 16
"""Of a completion that does not say; a chat gets the rest of the context."""
MAX_TEMPERATURE = 2.0
MAX_STOP_STRINGS = 4
MAX_STOP_BYTES = 1024
MAX_NODES = 256
"""Of `speculation.max_nodes`: the most that a drafter may be configured for."""
MAX_TOKENS_PER_SECOND = 10_000.0
"""Of `speculation.min_tokens_per_second`: several times what any service gives one session, so more is a mistake in the unit."""
MAX_PRIORITY = 100
"""Priorities are -100..100."""
MAX_SHOWN_NAME = 64
MAX_CHARACTERS_PER_TOKEN = 256
"""More than any vocabulary's longest token."""
_DRAWN_SEEDS = 2**53
"""A drawn seed is reported back, and JSON readers with doubles for numbers must be able to send it again."""
REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}")

Prompt = str | tuple[int, ...]
Encoder = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class RawOptions:
    """What a client asked for, values unchecked; None is "not said"."""

    prompts: tuple[Prompt, ...]
    request_id: str | None = None
    max_tokens: int | None = None
    default_max_tokens: int | None = DEFAULT_MAX_TOKENS
    """Where max_tokens is not said; None is the rest of the context."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    """0 and -1 are off; more than the vocabulary is off too."""
    min_p: float | None = None
    seed: int | None = None
    n: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool | None = None
    speculation_enabled: bool | None = None
    drafter: str | None = None
    max_nodes: int | None = None
    """0 is the same as `speculation_enabled` false."""
    min_tokens_per_second: float | None = None
    priority: int | None = None
    """Lower goes first."""
    timeout_s: float | None = None
    prompt_field: str = "prompt"
    """What the ingress calls the prompts, for messages."""
    max_tokens_field: str = "max_tokens"


def generation_requests(
    raw: RawOptions, card: ModelCard, limits: LimitsConfig, encode: Encoder, *, drafters: Collection[str]
) -> list[GenerationRequest]:
    """One request per prompt and choice, in the order of OpenAI's `index`: all choices of the first prompt come first.

    `card`, `limits`, `encode` and the names of the `drafters` are those of the service.
    They share the request id and the seed; choices differ in `sampling.choice`. Raises InvalidRequest.
    """
    sampling = _sampling(raw, card)
    choices = _optional_integer("n", raw.n, 1, limits.max_choices, default=1)
    request_id = secrets.token_hex(16) if raw.request_id is None else check_request_id(raw.request_id)
    stop = _stop_strings(raw.stop)
    timeout_s = _timeout_s(raw.timeout_s)
    ignore_eos = _flag("ignore_eos", raw.ignore_eos, default=False)
    speculation_enabled, max_nodes = _speculation(raw)
    min_tokens_per_second = _promised_speed(raw.min_tokens_per_second)
    drafter = _drafter(raw.drafter, drafters)
    priority = _optional_integer("priority", raw.priority, -MAX_PRIORITY, MAX_PRIORITY, default=0)
    _optional_integer(raw.max_tokens_field, raw.max_tokens, 1, card.max_length, default=1)
    prompts = _prompts(raw, card, limits, encode)
    return [
        GenerationRequest(
            request_id=request_id,
            prompt_ids=prompt_ids,
            sampling=replace(sampling, choice=choice),
            max_tokens=_max_tokens(raw, len(prompt_ids), card),
            stop=stop,
            ignore_eos=ignore_eos,
            speculation_enabled=speculation_enabled,
            drafter=drafter,
            max_nodes=max_nodes,
            min_tokens_per_second=min_tokens_per_second,
            priority=priority,
            timeout_s=timeout_s,
        )
        for prompt_ids, choice in product(prompts, range(choices))
    ]


def check_model(name: str, card: ModelCard) -> None:
    """Raises ModelNotFound unless `name` is the model served."""
    if name != card.name:
        raise ModelNotFound(f"the model '{shown(name)}' does not exist; this service has '{card.name}'", "model")


def check_request_id(request_id: str) -> str:
    """The id itself. Raises InvalidRequest unless it is 1 to 64 of A-Z a-z 0-9 _ -."""
    if not (isinstance(request_id, str) and REQUEST_ID_PATTERN.fullmatch(request_id)):
        raise InvalidRequest("request_id must be 1 to 64 characters of A-Z a-z 0-9 _ -", "request_id")
    return request_id


def check_text(field: str, text: object) -> str:
    """The text itself. Raises InvalidRequest if it is no text or has a lone surrogate, which is no character."""
    if not isinstance(text, str):
        raise InvalidRequest(f"{field} must be a string", field)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{field} must be valid Unicode, without lone surrogates", field) from None
    return text


def split_prompts(value: object, field: str = "prompt") -> tuple[Prompt, ...]:
    """OpenAI's four forms of a prompt (a string, strings, ids, lists of ids) as one; ids are not yet looked at."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return tuple(value)
        if all(isinstance(item, list) for item in value):
            return tuple(tuple(item) for item in value)
        if not any(isinstance(item, (str, list)) for item in value):
            return (tuple(value),)
    raise InvalidRequest(
        f"{field} must be a string, a list of strings, a list of token ids or a list of such lists, not empty", field
    )


def shown(name: str) -> str:
    """A client's own word, short and printable, to be put in a message."""
    printable = "".join(character if character.isprintable() else "?" for character in name[:MAX_SHOWN_NAME])
    return printable if len(name) <= MAX_SHOWN_NAME else printable + "..."


def _sampling(raw: RawOptions, card: ModelCard) -> SamplingParams:
    temperature = _optional_number("temperature", raw.temperature, 0.0, MAX_TEMPERATURE, default=1.0)
    top_p = _optional_number("top_p", raw.top_p, 0.0, 1.0, default=1.0, above_low=True)
    min_p = _optional_number("min_p", raw.min_p, 0.0, 1.0, default=0.0)
    top_k = _optional_integer("top_k", raw.top_k, -1, None, default=0)
    seed = _optional_integer("seed", raw.seed, 0, MAX_SEED, default=-1)
    return SamplingParams(
        temperature=temperature,
        top_k=top_k if 0 < top_k < card.vocab_size else 0,
        top_p=top_p,
        min_p=min_p,
        seed=seed if seed >= 0 else secrets.randbelow(_DRAWN_SEEDS),
    )


def _optional_integer(field: str, value: object, low: int, high: int | None, *, default: int) -> int:
    if value is None:
        return default
    # bool is an int to Python, but not to a client.
    if type(value) is not int or value < low or (high is not None and value > high):
        bounds = f"from {low} to {high}" if high is not None else f"not below {low}"
        raise InvalidRequest(f"{field} must be an integer {bounds}", field)
    return value


def _optional_number(field: str, value: object, low: float, high: float, *, default: float, above_low: bool = False) -> float:
    if value is None:
        return default
    fits = type(value) in (int, float) and low <= value <= high  # type: ignore[operator]  # a NaN fits nowhere
    if not fits or (above_low and value == low):
        bounds = f"above {low:g} and at most {high:g}" if above_low else f"from {low:g} to {high:g}"
        raise InvalidRequest(f"{field} must be a number {bounds}", field)
    return float(value)  # type: ignore[arg-type]


def _flag(field: str, value: object, *, default: bool) -> bool:
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidRequest(f"{field} must be true or false", field)
    return value


def _speculation(raw: RawOptions) -> tuple[bool, int | None]:
    """Whether to speculate, and the request's cap on candidates. "Off" and "no candidates" are one thing, so both always say it."""
    enabled = _flag("speculation.enabled", raw.speculation_enabled, default=True)
    if raw.max_nodes is None:
        return enabled, None if enabled else 0
    max_nodes = _optional_integer("speculation.max_nodes", raw.max_nodes, 0, MAX_NODES, default=MAX_NODES)
    return (True, max_nodes) if enabled and max_nodes else (False, 0)


def _promised_speed(value: object) -> float | None:
    if value is None:
        return None
    field = "speculation.min_tokens_per_second"
    return _optional_number(field, value, 0.0, MAX_TOKENS_PER_SECOND, default=0.0, above_low=True)


def _drafter(name: object, drafters: Collection[str]) -> str | None:
    if name is None or name in drafters:
        return name  # type: ignore[return-value]  # a known name is a string
    said = f", not '{shown(name)}'" if isinstance(name, str) else ""
    known = f"one of {listed(drafters)}" if drafters else "left out, as this service has no drafters"
    raise InvalidRequest(f"speculation.drafter must be {known}{said}", "speculation.drafter")


def _timeout_s(value: float | None) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not (math.isfinite(value) and value > 0):
        raise InvalidRequest("the timeout must be a finite number of seconds above 0", "timeout_s")
    return float(value)


def _stop_strings(stop: Sequence[str]) -> tuple[str, ...]:
    if len(stop) > MAX_STOP_STRINGS:
        raise InvalidRequest(f"stop must have at most {MAX_STOP_STRINGS} strings", "stop")
    for text in stop:
        size_bytes = len(check_text("stop", text).encode())
        if not 1 <= size_bytes <= MAX_STOP_BYTES:
            raise InvalidRequest(f"stop must have strings of 1 to {MAX_STOP_BYTES} bytes", "stop")
    return tuple(stop)


def _prompts(raw: RawOptions, card: ModelCard, limits: LimitsConfig, encode: Encoder) -> list[tuple[int, ...]]:
    field = raw.prompt_field
    if not 1 <= len(raw.prompts) <= limits.max_prompts:
        raise InvalidRequest(f"{field} must hold 1 to {limits.max_prompts} prompts", field)
    for prompt in raw.prompts:
        if isinstance(prompt, str):
            check_text(field, prompt)
            _check_text_length(field, prompt, card)
        else:
            _check_token_ids(field, prompt, card)
    prompts = [tuple(encode(prompt)) if isinstance(prompt, str) else prompt for prompt in raw.prompts]
    for prompt_ids in prompts:
        _check_prompt_length(field, len(prompt_ids), card)
    return prompts


def _check_text_length(field: str, text: str, card: ModelCard) -> None:
    """Before it is tokenised, which takes seconds for megabytes: no text this long can fit, however few its tokens are."""
    if len(text) > card.max_length * MAX_CHARACTERS_PER_TOKEN:
        raise InvalidRequest(
            f"{field} has {len(text)} characters; this model's maximum context length is {card.max_length} tokens", field
        )


def _check_token_ids(field: str, token_ids: tuple[int, ...], card: ModelCard) -> None:
    _check_prompt_length(field, len(token_ids), card)
    for token_id in token_ids:
        if type(token_id) is not int or not 0 <= token_id < card.vocab_size:
            raise InvalidRequest(f"{field} must have token ids that are integers from 0 to {card.vocab_size - 1}", field)


def _check_prompt_length(field: str, tokens: int, card: ModelCard) -> None:
    if tokens == 0:
        raise InvalidRequest(f"{field} must not be empty", field)
    if tokens >= card.max_length:
        raise InvalidRequest(
            f"{field} has {tokens} tokens; this model's maximum context length is {card.max_length} tokens, "
            "of which the answer needs at least 1",
            field,
        )


def _max_tokens(raw: RawOptions, prompt_tokens: int, card: ModelCard) -> int:
    room = card.max_length - prompt_tokens
    if raw.max_tokens is None:
        return room if raw.default_max_tokens is None else min(room, raw.default_max_tokens)
    if raw.max_tokens > room:
        raise InvalidRequest(
            f"{raw.max_tokens_field} is {raw.max_tokens} and {raw.prompt_field} has {prompt_tokens} tokens, together "
            f"{raw.max_tokens + prompt_tokens}; this model's maximum context length is {card.max_length} tokens",
            raw.max_tokens_field,
        )
    return raw.max_tokens
