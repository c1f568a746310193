"""Text to token ids, with the rule that a client's text is only ever text: what looks like a special token in it is not one."""

import secrets
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from dspark.errors import InvalidRequest


class TextCodec:
    """The tokenizer and the chat template of the served model."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._plain: Tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._plain.encode_special_tokens = True
        # Not `all_special_tokens`: it lists only those with a role, and templates write others too (turn headers).
        self._special_texts = [token.content for token in tokenizer.backend_tokenizer.get_added_tokens_decoder().values()]

    @property
    def backend(self) -> Tokenizer:
        """The library's tokenizer, for decoding."""
        return self._plain

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt, with the beginning-of-text token where the model wants one."""
        ids: list[int] = self._plain.encode_batch([text])[0].ids  # the batch call lets other threads run meanwhile
        return ids

    @property
    def has_template(self) -> bool:
        """True if the model can be chatted with."""
        return bool(self._tokenizer.chat_template)

    @property
    def knows_thinking(self) -> bool:
        """True if the chat template reads `enable_thinking`."""
        return "enable_thinking" in str(self._tokenizer.chat_template or "")

    def encode_chat(self, messages: list[dict[str, str]], *, thinking: bool | None = None) -> list[int]:
        """Ids of a conversation, ready for the assistant's turn. `thinking` is for templates that know it; None is their default.

        Raises InvalidRequest if the model has no template, or the template refuses the messages.
        """
        if not any(special in message["content"] for message in messages for special in self._special_texts):
            return self._encode_template(self._render(messages, thinking))
        # Render with stand-ins for the contents, so that only the template's own special tokens are taken as such.
        stand_ins = [f"content{secrets.token_hex(8)}" for _ in messages]
        named = [message | {"content": name} for message, name in zip(messages, stand_ins, strict=True)]
        rest = self._render(named, thinking)
        ids: list[int] = []
        for message, name in zip(messages, stand_ins, strict=True):
            before, found, rest = rest.partition(name)
            ids += self._encode_template(before)
            if found:
                ids += self._plain.encode(message["content"], add_special_tokens=False).ids
        return ids + self._encode_template(rest)

    def _render(self, messages: list[dict[str, str]], thinking: bool | None) -> str:
        if not self._tokenizer.chat_template:
            raise InvalidRequest("this model has no chat template; use /v1/completions", "messages")
        template_input: list[Any] = messages
        options: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
        try:
            # transformers renders in a sandboxed environment; the template is the model's own, never the client's
            return str(self._tokenizer.apply_chat_template(template_input, tokenize=False, add_generation_prompt=True, **options))
        except Exception as error:  # jinja's errors and the template's own raise_exception alike
            raise InvalidRequest(f"the model's chat template refused these messages: {error}", "messages") from error

    def _encode_template(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return ids
