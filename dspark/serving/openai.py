"""OpenAI's completion and chat requests: their fields, and the way from a JSON object to checked generation requests.

Knows names and types of fields. Ranges are `validation.py`'s, the shapes of answers `openai_answers.py`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dspark.config import LimitsConfig
from dspark.errors import InvalidRequest, UnsupportedFeature
from dspark.serving.generation import GenerationRequest, GenerationService
from dspark.serving.openai_fields import UNSUPPORTED, UNSUPPORTED_IN_MESSAGE, offered_fields, wrong_field
from dspark.serving.validation import (
    RawOptions,
    check_model,
    check_text,
    generation_requests,
    split_prompts,
)

AnswerKind = Literal["completion", "chat"]


class _Fields(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class StreamOptions(_Fields):
    """`stream_options`."""

    include_usage: bool | None = None
    """A last chunk without choices tells the usage."""
    continuous_usage_stats: bool | None = None
    """Every chunk tells the usage so far."""


class Speculation(_Fields):
    """`speculation`, an extension: the tokens are the same with and without, only the speed differs."""

    enabled: bool = True
    max_nodes: int | None = None
    """Candidates per round at most; 0 is the same as `enabled: false`."""
    min_tokens_per_second: float | None = None
    """A speed to be kept, for this answer alone."""
    drafter: str | None = None
    """One of the service's drafters; absent lets the service choose."""


class _CommonRequest(_Fields):
    """What completions and chats share. `top_k`, `min_p` and everything from `ignore_eos` on are extensions."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    return_token_ids: bool | None = None
    speculation: Speculation | None = None
    priority: int | None = None
    """As in vLLM: lower goes first, 0 where it is not said."""

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Self:
        """Raises InvalidRequest for the first field that does not fit."""
        try:
            return cls.model_validate(offered_fields(body, cls.model_fields, UNSUPPORTED))
        except ValidationError as error:
            raise wrong_field(error) from None

    def options(self) -> RawOptions:
        """All but the prompts and the request id."""
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options is only allowed with stream: true", "stream_options")
        speculation = self.speculation
        return RawOptions(
            prompts=(),
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed,
            n=self.n,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            ignore_eos=self.ignore_eos,
            speculation_enabled=None if speculation is None else speculation.enabled,
            drafter=None if speculation is None else speculation.drafter,
            max_nodes=None if speculation is None else speculation.max_nodes,
            min_tokens_per_second=None if speculation is None else speculation.min_tokens_per_second,
            priority=self.priority,
        )


class CompletionRequest(_CommonRequest):
    """Body of POST /v1/completions."""

    prompt: str | list[Any] = Field(description="A string, a list of strings, a list of token ids or a list of such lists.")


class ChatMessage(_Fields):
    """One turn; a list of content parts is joined to one text."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]]
    name: str | None = None
    """Accepted and ignored: chat templates have no place for it."""


class ChatCompletionRequest(_CommonRequest):
    """Body of POST /v1/chat/completions; `max_completion_tokens` is the newer name of `max_tokens`."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Self:
        """Raises InvalidRequest for the first field that does not fit."""
        messages = body.get("messages")
        if isinstance(messages, list):
            body = {**body, "messages": [_offered_in_message(at, message) for at, message in enumerate(messages)]}
        return super().from_json(body)


@dataclass(frozen=True, slots=True)
class Call:
    """One checked HTTP request: what to generate, and how to tell it."""

    kind: AnswerKind
    requests: tuple[GenerationRequest, ...]
    """In the order of the choices' `index`."""
    prompts: int
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool


def completion_call(body: dict[str, Any], service: GenerationService, limits: LimitsConfig, **context: Any) -> Call:
    """Check a completions body; `context` holds `request_id` and `timeout_s`. Raises InvalidRequest."""
    request = CompletionRequest.from_json(body)
    check_model(request.model, service.card)
    raw = replace(request.options(), prompts=split_prompts(request.prompt), **context)
    return _call("completion", request, raw, service, limits)


def chat_call(body: dict[str, Any], service: GenerationService, limits: LimitsConfig, **context: Any) -> Call:
    """Check a chat body; `context` holds `request_id` and `timeout_s`. Raises InvalidRequest."""
    request = ChatCompletionRequest.from_json(body)
    check_model(request.model, service.card)
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise InvalidRequest("max_tokens and max_completion_tokens are two names of one option; give one", "max_tokens")
    newer = request.max_completion_tokens is not None
    raw = replace(
        request.options(),
        prompts=(tuple(service.encode_chat(plain_messages(request.messages))),),
        prompt_field="messages",
        max_tokens=request.max_completion_tokens if newer else request.max_tokens,
        max_tokens_field="max_completion_tokens" if newer else "max_tokens",
        default_max_tokens=None,
        **context,
    )
    return _call("chat", request, raw, service, limits)


def plain_messages(messages: list[ChatMessage]) -> list[dict[str, str]]:
    """Role and text of each turn, for a chat template. Raises InvalidRequest for content that is not text."""
    if not messages:
        raise InvalidRequest("messages must not be empty", "messages")
    # `developer` is OpenAI's newer word for `system`; templates know the older one.
    roles = ["system" if message.role == "developer" else message.role for message in messages]
    return [{"role": role, "content": _content(at, messages[at].content)} for at, role in enumerate(roles)]


def _call(kind: AnswerKind, request: _CommonRequest, raw: RawOptions, service: GenerationService, limits: LimitsConfig) -> Call:
    options = request.stream_options or StreamOptions()
    return Call(
        kind=kind,
        requests=tuple(generation_requests(raw, service.card, limits, service.encode, drafters=service.drafters)),
        prompts=len(raw.prompts),
        stream=bool(request.stream),
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.continuous_usage_stats),
        return_token_ids=bool(request.return_token_ids),
    )


def _offered_in_message(at: int, message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    try:
        return offered_fields(message, ChatMessage.model_fields, UNSUPPORTED_IN_MESSAGE)
    except InvalidRequest as error:
        place = f"messages.{at}."
        raise type(error)(place + error.message, f"{place}{error.field}") from None


def _content(at: int, content: str | list[dict[str, Any]]) -> str:
    field = f"messages.{at}.content"
    if isinstance(content, str):
        return check_text(field, content)
    return "".join(_part(f"{field}.{index}", part) for index, part in enumerate(content))


def _part(field: str, part: Mapping[str, Any]) -> str:
    if part.get("type") != "text":
        raise UnsupportedFeature(f"{field} must be a text part; other content is not supported", field)
    if part.keys() != {"type", "text"}:
        raise InvalidRequest(f"{field} must have the fields type and text, and no others", field)
    return check_text(f"{field}.text", part["text"])
