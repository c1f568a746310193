"""From a record to what the target is asked: the text or conversation in it, through the service's own chat template.

Knows the keys that data sets use and the tokenizer. Does not know files, and not who answers.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerFast

from dspark.deepspec.sources import Record
from dspark.errors import ConfigError, InvalidRequest
from dspark.serving.text_codec import TextCodec
from dspark.serving.validation import check_text

Thinking = Literal["default", "on", "off", "both"]
Messages = list[dict[str, str]]

KEYS = ("messages", "turns", "prompt", "question", "text")
"""Tried in this order where no field is named."""
ROLES = {"system", "developer", "user", "assistant"}
"""Those that the service takes."""
_STAND_IN = "content0answer"
"""Holds the place of an answer while the template's own text around it is looked at."""
_ROLE_OF_SHAREGPT = {"human": "user", "gpt": "assistant", "system": "system"}


@dataclass(frozen=True, slots=True)
class Content:
    """What a record says, not yet tokenised: plain text or a conversation."""

    place: str
    text: str
    messages: Messages | None = None

    @property
    def num_characters(self) -> int:
        """Of all turns together."""
        return len(self.text) if self.messages is None else sum(len(message["content"]) for message in self.messages)


@dataclass(frozen=True, slots=True)
class Ends:
    """What the target says last, as token ids: none where the model names no end."""

    text: tuple[int, ...] = ()
    """Of a plain text."""
    turn: tuple[int, ...] = ()
    """Of its turn in a conversation."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question to the target."""

    place: str
    token_ids: tuple[int, ...]
    text: str
    """What a server that takes no ids is sent; of a conversation it is empty."""
    messages: Messages | None = None
    thinking: bool | None = None

    @property
    def prompt_id(self) -> str:
        """A hash of the ids: the same question has the same name wherever it stands."""
        content = np.asarray(self.token_ids, dtype="<i4").tobytes()
        return hashlib.blake2b(content, digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Rendering:
    """How records become prompts."""

    field: str | None = None
    chat: bool | None = None
    """None: conversations and questions are chats where the model has a template, plain prompts and texts are not."""
    thinking: Thinking = "default"

    def content(self, record: Record, codec: TextCodec) -> Content:
        """Raises ConfigError that names the record's place and field."""
        if record.fields is None:
            raise ConfigError(f"{record.place}: {record.problem}")
        key = self._key(record)
        value = record.fields[key]
        messages = _messages(record.place, key, value)
        if not isinstance(value, str) and messages is None:
            raise ConfigError(f"{record.place}: {key} is neither text nor a list of turns or messages", key)
        text = value if isinstance(value, str) else ""
        _check_not_empty(record.place, key, text, messages)
        chat = codec.has_template and (messages is not None or key == "question") if self.chat is None else self.chat
        if chat:
            return Content(record.place, "", messages or [{"role": "user", "content": text}])
        return Content(record.place, text or "\n".join(message["content"] for message in messages or []))

    def prompts(self, content: Content, codec: TextCodec) -> list[Prompt]:
        """One prompt, or one with and one without thinking. Raises ConfigError for a conversation that does not fit."""
        if content.messages is None:
            return [Prompt(content.place, tuple(codec.encode(content.text)), content.text)]
        asked = _up_to_last_question(content)
        return [
            Prompt(content.place, _encode_chat(codec, content.place, asked, thinking), "", asked, thinking)
            for thinking in self.modes(codec)
        ]

    def modes(self, codec: TextCodec) -> Sequence[bool | None]:
        """Values of `enable_thinking` that each conversation is asked with."""
        if self.thinking == "default":
            return (None,)
        if not codec.knows_thinking:
            raise ConfigError("the model's chat template does not know enable_thinking; leave --thinking out", "thinking")
        return {"on": (True,), "off": (False,), "both": (True, False)}[self.thinking]

    def given(self, content: Content, codec: TextCodec, ends: Ends, max_length: int) -> Iterator[tuple[list[int], int]]:
        """(token ids, prompt tokens) of windows of a text taken as it is; of a conversation the last answer is learned, after each mode.

        An end closes them, as the target closes what it says itself.
        """
        if content.messages is None:
            yield from _windows([*codec.encode(content.text), *ends.text], 1, max_length)
            return
        *before, answer = content.messages
        if answer["role"] != "assistant" or not before:
            raise ConfigError(f"{content.place}: to keep its answer, a conversation must end with the assistant's turn")
        answer_ids = codec.backend.encode(answer["content"], add_special_tokens=False).ids
        for thinking in self.modes(codec):
            prompt = _encode_chat(codec, content.place, before, thinking)
            yield from _windows([*prompt, *answer_ids, *ends.turn], len(prompt), max_length)

    def _key(self, record: Record) -> str:
        assert record.fields is not None, "records without fields are refused before"
        candidates = KEYS if self.field is None else (self.field,)
        for key in candidates:
            if record.fields.get(key) is not None:
                return key
        raise ConfigError(f"{record.place}: no field {' or '.join(candidates)} (it has {', '.join(map(str, record.fields)) or 'none'})")


def ends_of(tokenizer: PreTrainedTokenizerFast, eos_ids: Sequence[int]) -> Ends:
    """What serving would see last. Of several end tokens, a turn is closed by the one that the chat template writes after an answer."""
    first = tuple(eos_ids[:1])
    if not tokenizer.chat_template:
        return Ends(first, first)
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _STAND_IN}]
    try:
        closing = str(tokenizer.apply_chat_template(messages, tokenize=False)).partition(_STAND_IN)[2]
    except Exception:  # jinja's errors and the template's own: each conversation will tell what it cannot take
        return Ends(first, first)
    written = tokenizer.backend_tokenizer.encode(closing, add_special_tokens=False).ids
    return Ends(first, tuple(token_id for token_id in written if token_id in eos_ids)[:1] or first)


def _windows(ids: list[int], prompt_tokens: int, max_length: int) -> Iterator[tuple[list[int], int]]:
    """Those that hold something to learn."""
    for start in range(0, len(ids), max_length):
        window = ids[start : start + max_length]
        asked = max(1, min(prompt_tokens - start, len(window)))
        if len(window) > asked:
            yield window, asked


def _messages(place: str, key: str, value: Any) -> Messages | None:
    """A conversation, or None if the value is no list. Of `turns`, which are the user's alone, the first one can be asked."""
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(turn, str) for turn in value):
        return [{"role": "user", "content": value[0]}]
    return [_message(place, key, turn) for turn in value]


def _message(place: str, key: str, turn: Any) -> dict[str, str]:
    if isinstance(turn, dict) and "from" in turn and "value" in turn:  # ShareGPT's names
        turn = {"role": _ROLE_OF_SHAREGPT.get(turn["from"], turn["from"]), "content": turn["value"]}
    if not isinstance(turn, dict) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
        raise ConfigError(f"{place}: {key} must be a list of {{role, content}} with a known role and text", key)
    return {"role": turn["role"], "content": turn["content"]}


def _check_not_empty(place: str, key: str, text: str, messages: Messages | None) -> None:
    contents = [text] if messages is None else [message["content"] for message in messages]
    if not any(content.strip() for content in contents):
        raise ConfigError(f"{place}: {key} is empty", key)
    try:
        for content in contents:
            check_text(key, content)
    except InvalidRequest as error:
        raise ConfigError(f"{place}: {error}", key) from error


def _up_to_last_question(content: Content) -> Messages:
    """Without the answers after it: the target gives its own."""
    messages = list(content.messages or [])
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages or messages[-1]["role"] != "user":
        raise ConfigError(f"{content.place}: no turn of the user to answer")
    return messages


def _encode_chat(codec: TextCodec, place: str, messages: Messages, thinking: bool | None) -> tuple[int, ...]:
    try:
        return tuple(codec.encode_chat(messages, thinking=thinking))
    except InvalidRequest as error:
        raise ConfigError(f"{place}: {error}") from error
