"""The shapes of OpenAI's answers: whole, and as the events of a stream.

Knows names and order of fields. Does not know where chunks come from or how bytes reach the client.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from dspark.serving.generation import GenerationChunk, Usage
from dspark.serving.openai import Call
from dspark.types import FinishReason, ModelCard

DONE_EVENT = b"data: [DONE]\n\n"
_SHOWN_FINGERPRINT = 12


def event(content: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(content) + b"\n\n"


def model_object(card: ModelCard, created_s: int) -> dict[str, Any]:
    """An entry of GET /v1/models."""
    return {"id": card.name, "object": "model", "created": created_s, "owned_by": "dspark", "max_model_len": card.max_length}


@dataclass
class ChoiceText:
    """One choice, as far as it has come."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    usage: Usage = field(default_factory=Usage)
    started: bool = False

    def add(self, chunk: GenerationChunk) -> None:
        self.texts.append(chunk.text)
        self.token_ids.extend(chunk.token_ids)
        self.finish_reason = chunk.finish_reason
        self.usage = chunk.usage


class Answer:
    """The answer to one call: takes every chunk, gives the whole response or the events of the stream."""

    def __init__(self, call: Call, card: ModelCard) -> None:
        self._call = call
        self._chat = call.kind == "chat"
        self._choices = [ChoiceText() for _ in call.requests]
        self._head = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{call.requests[0].request_id}",
            "object": "chat.completion" if self._chat else "text_completion",
            "created": int(time.time()),
            "model": card.name,
            "system_fingerprint": card.model_fingerprint[:_SHOWN_FINGERPRINT],
        }

    def add(self, index: int, chunk: GenerationChunk) -> None:
        """Take the next chunk of choice `index`."""
        self._choices[index].add(chunk)

    def whole(self) -> dict[str, Any]:
        """The response, once all choices are over."""
        choices = [self._whole_choice(index, choice) for index, choice in enumerate(self._choices)]
        return {**self._head, "choices": choices, "usage": self._usage(), "dspark": self._extension()}

    def events(self, index: int, chunk: GenerationChunk) -> list[bytes]:
        """Take a chunk and tell it; a chunk without news is not told."""
        choice = self._choices[index]
        choice.add(chunk)
        told: list[bytes] = []
        if not choice.started:
            choice.started = True
            told += self._opening(index)
        call = self._call
        if chunk.text or chunk.finish_reason or call.return_token_ids or call.continuous_usage:
            told.append(self._chunk_event(self._piece(index, chunk), last=self._all_over() and not call.include_usage))
        return told

    def closing_events(self) -> list[bytes]:
        """What follows the last chunk of the last choice."""
        if not self._call.include_usage:
            return [DONE_EVENT]
        usage = {**self._stream_head(), "choices": [], "usage": self._usage(), "dspark": self._extension()}
        return [event(usage), DONE_EVENT]

    def _opening(self, index: int) -> list[bytes]:
        """A chat says who speaks before it speaks; the prompt's ids, if asked for, come once and first."""
        prompt_ids = self._call.requests[index].prompt_ids
        extra = {"prompt_token_ids": prompt_ids, "token_ids": []} if self._call.return_token_ids else {}
        if self._chat:
            delta = {"role": "assistant", "content": ""}
            return [self._chunk_event({"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **extra})]
        if extra:
            return [self._chunk_event({"index": index, "text": "", "logprobs": None, "finish_reason": None, **extra})]
        return []

    def _piece(self, index: int, chunk: GenerationChunk) -> dict[str, Any]:
        content = {"delta": {"content": chunk.text} if chunk.text else {}} if self._chat else {"text": chunk.text}
        extra = {"token_ids": chunk.token_ids} if self._call.return_token_ids else {}
        return {"index": index, **content, "logprobs": None, "finish_reason": chunk.finish_reason, **extra}

    def _chunk_event(self, choice: dict[str, Any], last: bool = False) -> bytes:
        content = {**self._stream_head(), "choices": [choice]}
        if self._call.continuous_usage:
            content["usage"] = self._usage()
        elif self._call.include_usage:
            content["usage"] = None
        if last:
            content["dspark"] = self._extension()
        return event(content)

    def _stream_head(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk"} if self._chat else self._head

    def _all_over(self) -> bool:
        return all(choice.finish_reason is not None for choice in self._choices)

    def _whole_choice(self, index: int, choice: ChoiceText) -> dict[str, Any]:
        text = "".join(choice.texts)
        message = {"role": "assistant", "content": text, "refusal": None}
        content = {"message": message} if self._chat else {"text": text}
        extra: dict[str, Any] = {}
        if self._call.return_token_ids:
            extra = {"prompt_token_ids": self._call.requests[index].prompt_ids, "token_ids": choice.token_ids}
        return {"index": index, **content, "logprobs": None, "finish_reason": choice.finish_reason, **extra}

    def _usage(self) -> dict[str, Any]:
        usages = [choice.usage for choice in self._choices]
        per_prompt = len(usages) // self._call.prompts
        # A prompt is read once, however many choices continue it.
        prompt_tokens = sum(len(request.prompt_ids) for request in self._call.requests[::per_prompt])
        completion_tokens = sum(usage.completion_tokens for usage in usages)
        accepted, selected = _sums(usages, "accepted_tokens", "selected_tokens")
        details = {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": max(0, selected - accepted)}
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "completion_tokens_details": details,
        }

    def _extension(self) -> dict[str, Any]:
        names = ("rounds", "drafted_tokens", "selected_tokens", "accepted_tokens")
        usages = [choice.usage for choice in self._choices]
        sums = dict(zip(names, _sums(usages, *names), strict=True))
        # Choices are sessions of their own, and the service may try another drafter for one of them.
        drafters = sorted({usage.drafter for usage in usages if usage.drafter is not None})
        asked = self._call.requests[0]
        return {
            "seed": asked.sampling.seed,
            **sums,
            "drafter": ",".join(drafters) or None,
            "max_nodes": asked.max_nodes,
            "min_tokens_per_second": asked.min_tokens_per_second,
            "priority": asked.priority,
        }


def _sums(usages: Sequence[Usage], *names: str) -> list[int]:
    return [sum(getattr(usage, name) for usage in usages) for name in names]
