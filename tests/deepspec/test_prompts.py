"""From records to prompts: keys, templates, thinking, windows, and what bad records are told."""

import json
from pathlib import Path
from typing import Any

import pytest

from dspark.deepspec.prompts import Content, Ends, Prompt, Rendering, ends_of
from dspark.deepspec.sources import Record, Source
from dspark.errors import ConfigError
from dspark.runtime.loading import load_tokenizer
from dspark.serving.text_codec import TextCodec

THINKING_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}<|im_start|>assistant "
    "{% if enable_thinking is defined and enable_thinking is false %}no{% endif %}"
)
ENDS = Ends(text=(0,), turn=(2,))
CHAT = [{"role": "user", "content": "self name"}, {"role": "assistant", "content": "value"}, {"role": "user", "content": "return"}]


@pytest.fixture(scope="module")
def codec(tiny_folder: Path) -> TextCodec:
    return TextCodec(load_tokenizer(tiny_folder))


@pytest.fixture
def thinking_codec(tiny_folder: Path) -> TextCodec:
    tokenizer = load_tokenizer(tiny_folder)
    tokenizer.chat_template = THINKING_TEMPLATE
    return TextCodec(tokenizer)


def _content(codec: TextCodec, rendering: Rendering | None = None, **fields: Any) -> Content:
    return (rendering or Rendering()).content(Record("file:1", fields), codec)


def _prompt(codec: TextCodec, rendering: Rendering | None = None, **fields: Any) -> Prompt:
    rendering = rendering or Rendering()
    (prompt,) = rendering.prompts(_content(codec, rendering, **fields), codec)
    return prompt


@pytest.mark.parametrize("key", ["prompt", "text"])
def test_plain_text_is_encoded_as_the_completions_endpoint_does(codec: TextCodec, key: str) -> None:
    prompt = _prompt(codec, **{key: "def self <|im_end|>"})
    assert list(prompt.token_ids) == codec.encode("def self <|im_end|>")
    assert prompt.text == "def self <|im_end|>"


@pytest.mark.parametrize(
    "fields", [{"question": "name"}, {"turns": ["name", "later"]}, {"messages": [{"role": "user", "content": "name"}]}]
)
def test_questions_turns_and_messages_go_through_the_chat_template(codec: TextCodec, fields: dict[str, Any]) -> None:
    assert list(_prompt(codec, **fields).token_ids) == codec.encode_chat([{"role": "user", "content": "name"}])


def test_the_answers_after_the_last_question_are_the_targets_to_give(codec: TextCodec) -> None:
    prompt = _prompt(codec, messages=[*CHAT, {"role": "assistant", "content": "old answer"}])
    assert list(prompt.token_ids) == codec.encode_chat(CHAT)


def test_sharegpts_names_of_roles_are_known(codec: TextCodec) -> None:
    prompt = _prompt(codec, Rendering(field="conversations"), conversations=[{"from": "human", "value": "name"}])
    assert list(prompt.token_ids) == codec.encode_chat([{"role": "user", "content": "name"}])


def test_chat_can_be_forced_and_forbidden(codec: TextCodec) -> None:
    forced = _prompt(codec, Rendering(chat=True), prompt="name")
    assert list(forced.token_ids) == codec.encode_chat([{"role": "user", "content": "name"}])
    assert list(_prompt(codec, Rendering(chat=False), question="name").token_ids) == codec.encode("name")
    assert list(_prompt(codec, Rendering(chat=False), turns=["name"]).token_ids) == codec.encode("name")


def test_a_named_field_is_read_before_the_usual_ones(codec: TextCodec) -> None:
    assert _prompt(codec, Rendering(field="body"), prompt="def", body="name").text == "name"


def test_thinking_and_not_thinking_are_two_prompts_of_the_same_text(thinking_codec: TextCodec) -> None:
    rendering = Rendering(thinking="both")
    thinking, plain = rendering.prompts(_content(thinking_codec, rendering, question="name"), thinking_codec)
    decode = thinking_codec.backend.decode
    assert decode(list(plain.token_ids)) == decode(list(thinking.token_ids)) + "no"
    assert (thinking.thinking, plain.thinking) == (True, False)
    assert thinking.prompt_id != plain.prompt_id
    (alone,) = Rendering(thinking="off").prompts(_content(thinking_codec, question="name"), thinking_codec)
    assert alone == plain


def test_thinking_is_refused_where_the_template_does_not_know_it(codec: TextCodec) -> None:
    with pytest.raises(ConfigError, match="enable_thinking"):
        Rendering(thinking="on").modes(codec)


def test_the_same_question_has_the_same_id_wherever_it_stands(codec: TextCodec) -> None:
    ids = {Rendering().prompts(Content(place, "name"), codec)[0].prompt_id for place in ("a:1", "b:7")}
    assert len(ids) == 1
    assert _prompt(codec, prompt="value").prompt_id not in ids


@pytest.mark.parametrize("max_length", [2, 3, 5, 100])
def test_a_given_text_is_cut_into_windows_that_together_are_the_text(codec: TextCodec, max_length: int) -> None:
    text = "def return self value name ( ) : def return self"
    windows = list(Rendering().given(_content(codec, text=text), codec, ENDS, max_length))
    ids = [token_id for window, _ in windows for token_id in window]
    whole = [*codec.encode(text), 0]
    assert ids in (whole, whole[:-1])  # a last window of one token has nothing to learn
    assert all(len(window) <= max_length for window, _ in windows)
    assert {prompt_tokens for _, prompt_tokens in windows} == {1}


def test_of_a_given_conversation_only_the_last_answer_is_learned(codec: TextCodec) -> None:
    content = _content(codec, messages=[*CHAT, {"role": "assistant", "content": "value name"}])
    ((ids, prompt_tokens),) = Rendering().given(content, codec, ENDS, 1000)
    assert ids[:prompt_tokens] == codec.encode_chat(CHAT)
    assert ids[prompt_tokens:] == [*codec.encode("value name"), 2]
    window, asked = next(Rendering().given(content, codec, ENDS, prompt_tokens + 1))
    assert (window, asked) == (ids[: prompt_tokens + 1], prompt_tokens)
    with pytest.raises(ConfigError, match="must end with the assistant"):
        list(Rendering().given(_content(codec, messages=CHAT), codec, ENDS, 1000))


def test_a_kept_answer_is_learned_after_each_mode_of_thinking(thinking_codec: TextCodec) -> None:
    content = _content(thinking_codec, messages=[*CHAT, {"role": "assistant", "content": "value name"}])
    samples = list(Rendering(thinking="both").given(content, thinking_codec, ENDS, 1000))
    assert [ids[:asked] for ids, asked in samples] == [thinking_codec.encode_chat(CHAT, thinking=mode) for mode in (True, False)]
    assert {tuple(ids[asked:]) for ids, asked in samples} == {(*thinking_codec.encode("value name"), 2)}


def test_a_turn_ends_with_the_token_that_the_template_writes_if_serving_stops_there(tiny_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_folder)
    text_end, turn_end = (tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>"))
    assert ends_of(tokenizer, (text_end, turn_end)) == Ends((text_end,), (turn_end,))
    assert ends_of(tokenizer, (text_end,)) == Ends((text_end,), (text_end,))  # it would go on after the template's own token
    assert ends_of(tokenizer, ()) == Ends()
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert ends_of(tokenizer, (text_end, turn_end)) == Ends((text_end,), (text_end,))
    tokenizer.chat_template = None
    assert ends_of(tokenizer, (text_end, turn_end)) == Ends((text_end,), (text_end,))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{nope", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"other": "x"}', "no field messages or turns or prompt or question or text .it has other"),
        ('{"prompt": null}', "no field"),
        ('{"prompt": ""}', "prompt is empty"),
        ('{"prompt": " \\n"}', "prompt is empty"),
        ('{"prompt": 7}', "neither text nor"),
        ('{"prompt": [7]}', "role, content"),
        ('{"messages": []}', "neither text nor"),
        ('{"messages": [{"role": "wizard", "content": "x"}]}', "known role"),
        ('{"messages": [{"role": "user", "content": 3}]}', "known role and text"),
        ('{"messages": [{"role": "system", "content": "x"}]}', "no turn of the user"),
    ],
)
def test_a_bad_record_is_named_with_file_and_line(tmp_path: Path, codec: TextCodec, line: str, words: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "fine"}\n\n' + line + "\n")
    *_, record = Source(str(path)).records()
    with pytest.raises(ConfigError, match=words) as caught:
        Rendering().prompts(Rendering().content(record, codec), codec)
    assert str(caught.value).startswith(f"{path}:3: ")


def test_a_lone_surrogate_is_a_bad_record(codec: TextCodec) -> None:
    with pytest.raises(ConfigError, match="file:1.*Unicode"):
        _content(codec, prompt="x\ud800")


def test_a_folder_is_all_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps({"prompt": f"{name} {i}"}) + "\n" for i in range(2)))
    source = Source(str(tmp_path))
    texts = [record.fields["prompt"] for record in source.records() if record.fields]
    assert texts == ["a.jsonl 0", "a.jsonl 1", "b.jsonl 0", "b.jsonl 1"]
    before = source.fingerprint()
    (tmp_path / "a.jsonl").write_text('{"prompt": "changed"}\n')
    assert Source(str(tmp_path)).fingerprint() != before


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("prompts.txt", "empty", "missing"):
        with pytest.raises(ConfigError, match=name):
            Source(str(tmp_path / name))
