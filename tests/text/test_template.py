"""Templates: cut in two, the halves are what the whole conversation would have been."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstate.errors import InvalidInput, UnsupportedModel
from jaxstate.testing.byte_tokenizer import ByteTokenizer
from jaxstate.text import (
    HFTokenizer,
    Tokenizer,
    chat_template,
    find_template,
    plain_template,
    template_from_gguf,
)

LLAMA3 = """\
{%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content']|trim %}
{%- set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}
{{- bos_token + '<|start_header_id|>system<|end_header_id|>\n\n' }}
{{- 'Today Date: ' + strftime_now('%d %b %Y') + '\n\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
{{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}
"""

GEMMA3 = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'] + '\n\n' -%}{%- set loop_messages = messages[1:] -%}
{%- else -%}{%- set first = '' -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Conversation roles must alternate') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}{%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
"""

GEMMA2 = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' -}}
{% endfor %}
{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}
"""

QWEN25 = """\
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "system" and loop.first %}{% continue %}{% endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

QWEN3 = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {{- '<|im_start|>assistant\\n' }}{% generation %}{{ content }}{% endgeneration %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

MISTRAL = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}{%- set rest = messages[1:] %}
{%- else %}{%- set rest = messages %}{%- endif %}
{{- bos_token }}
{%- for message in rest %}
    {%- if message['role'] == 'user' %}
        {%- if loop.last and system is defined %}
            {{- '[INST] ' + system + '\\n\\n' + message['content'] + '[/INST]' }}
        {%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}
    {%- else %}{{- ' ' + message['content'] + eos_token }}{%- endif %}
{%- endfor %}
"""

NOW = datetime(2026, 5, 4)
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
L3 = "<B>" + HEADER.format("system") + "Today Date: 04 May 2026\n\n"
L3_USER = "<|eot_id|>" + HEADER.format("user")
L3_END = "<|eot_id|>" + HEADER.format("assistant")
GEMMA_USER, GEMMA_END = "<B><start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"
IM = "<|im_start|>{}\n"
IM_END = "<|im_end|>\n" + IM.format("assistant")
NO_THOUGHT = "<think>\n\n</think>\n\n"

CASES = {
    # source: (opens(""), opens("P"), question("Q"), answer_end)
    LLAMA3: (L3 + L3_USER, f"{L3}P{L3_USER}", f"\nQ{L3_END}", "<|eot_id|>"),
    GEMMA3: (GEMMA_USER, f"{GEMMA_USER}P\n\n", f"\nQ{GEMMA_END}", "<end_of_turn>\n"),
    GEMMA2: (GEMMA_USER, f"{GEMMA_USER}P\n\n", f"\nQ{GEMMA_END}", "<end_of_turn>\n"),
    QWEN25: (
        f"<B>{IM.format('system')}You are Qwen.<|im_end|>\n{IM.format('user')}",
        f"<B>{IM.format('system')}P<|im_end|>\n{IM.format('user')}",
        f"\nQ{IM_END}",
        "<|im_end|>\n",
    ),
    QWEN3: (
        f"<B>{IM.format('user')}",
        f"<B>{IM.format('system')}P<|im_end|>\n{IM.format('user')}",
        f"\nQ{IM_END}{NO_THOUGHT}",
        "<|im_end|>\n",
    ),
    MISTRAL: ("<B>[INST] ", "<B>[INST] P\n\n", "\nQ[/INST]", "<E>"),
}
NAMES = ["llama3", "gemma3", "gemma2", "qwen2.5", "qwen3", "mistral"]


@pytest.mark.parametrize("source", CASES, ids=NAMES)
def test_chat_templates_of_the_families(source: str) -> None:
    template = chat_template(source, bos="<B>", eos="<E>", now=NOW)
    bare, opened, asked, answer_end = CASES[source]
    assert template.opens("") == bare
    assert template.opens("P") == opened
    assert template.question("Q") == asked
    assert template.answer_end == answer_end
    assert template.stop == ()


@pytest.mark.parametrize("source", CASES, ids=NAMES)
@pytest.mark.parametrize("prefix", ["", "be brief"])
def test_bos_comes_exactly_once_or_not_at_all(source: str, prefix: str) -> None:
    doubled = chat_template("{{ bos_token }}" + source, bos="<B>", eos="<E>", now=NOW)
    assert doubled.opens(prefix).count("<B>") == 1 and doubled.opens(prefix).startswith("<B>")
    assert "<B>" not in chat_template(source, bos="", eos="", now=NOW).opens(prefix)
    only_its_own = chat_template(source, bos="<B>", eos="<E>", add_bos=False, now=NOW)
    assert only_its_own.opens(prefix).startswith("<B>") == ("bos_token" in source)


def test_a_dropped_system_message_goes_to_the_user() -> None:
    source = (
        "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    template = chat_template(source, bos="", eos="")
    assert template.opens("P") == "<user>P\n\n" and template.opens("") == "<user>"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for %}", "not valid Jinja"),
        ("{{ raise_exception('no') }}", "fails: no"),
        ("{{ messages[0]['content'] }}{{ messages[0]['content'] }}", "once and in order"),
        ("hello", "once and in order"),
        ("{{ messages[-1]['content'] | upper }}", "once and in order"),
        ("{{ messages[-1].content }}{{ messages[0].content if messages|length > 1 }}", "in order"),
        ("{{ messages|map(attribute='content')|join }}{{ messages|length }}", "differently"),
        ("{{ ''.__class__.__mro__ }}{{ messages[0].content }}", "unsafe"),
        ("{{ messages.append(1) }}{{ messages[0].content }}", "fails"),
    ],
)
def test_templates_that_cannot_be_cut_are_refused(source: str, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        chat_template(source, bos="", eos="")


def test_tojson_does_not_escape_html() -> None:
    source = "{{ {'a': '<é>'} | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert chat_template(source, bos="", eos="").opens("") == '{"a": "<é>"}'


def test_plain_template() -> None:
    template = plain_template("<bos>")
    assert template.opens("") == "<bos>"
    assert template.opens("head") == template.opens("head\n") == "<bos>head\n"
    assert template.question("why?") == "\nQuestion: why?\nAnswer:"
    assert template.stop == ("\n",)
    assert plain_template(None).opens("") == ""
    tokenizer = ByteTokenizer()
    assert template.open_tokens(tokenizer, "h<eos>") == [256, *b"h<eos>\n"]
    assert template.entry_tokens(tokenizer, "a") == template.entry_tokens(tokenizer, "a\n")
    assert template.entry_tokens(tokenizer, "<bos>") == list(b"<bos>\n")
    assert template.question_tokens(tokenizer, "<eos>?") == list(b"\nQuestion: <eos>?\nAnswer:")
    assert template.stop_ids(tokenizer) == ()


def test_a_plain_question_is_encoded_as_one_text(all_kinds: list[Tokenizer]) -> None:
    for tokenizer in all_kinds:
        template = plain_template(tokenizer.bos)
        ids = template.question_tokens(tokenizer, "what is the price?")
        assert ids == tokenizer.encode("\nQuestion: what is the price?\nAnswer:", "text")


BYTE_CHAT = (
    "{% for m in messages %}<bos>{{ m.role }}\n{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)


@settings(deadline=None)
@given(words=st.lists(st.sampled_from(["a", " ", "\n", "<bos>", "<eos>", "<", "é"]), min_size=1))
def test_only_the_template_makes_special_tokens(words: list[str]) -> None:
    text, tokenizer = "".join(words), ByteTokenizer()
    template = chat_template(BYTE_CHAT, bos="", eos="<eos>")
    user = list(text.encode())
    assert template.open_tokens(tokenizer, text) == [
        *(256, *b"system\n", *user, 257, *b"\n"),
        *(256, *b"user\n"),
    ]
    assert template.question_tokens(tokenizer, text) == [
        *(*b"\n", *user, 257, *b"\n"),
        *(256, *b"assistant\n"),
    ]
    assert template.stop_ids(tokenizer) == (257,)


def test_a_chat_is_encoded_as_the_whole_conversation_would_be(byte_level: HFTokenizer) -> None:
    source = LLAMA3.replace("<|start_header_id|>", "<|eot_id|>").replace("<|end_header_id|>", "")
    template = chat_template(source, bos="<|bos|>", eos="<|eot_id|>", now=NOW)
    for prefix in ("", "the valve is open"):
        whole = byte_level.encode_template(template.opens(prefix))
        assert template.open_tokens(byte_level, prefix) == whole
        assert whole.count(byte_level.bos_id or 0) == 1
    whole = byte_level.encode_template(template.question("what is the price?"))
    assert template.question_tokens(byte_level, "what is the price?") == whole


@pytest.mark.parity
@pytest.mark.parametrize("source", [GEMMA3, QWEN25, QWEN3, MISTRAL])
def test_halves_make_what_transformers_renders(source: str) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    template = chat_template(source, bos="<B>", eos="<E>", add_bos=False)
    user = {"role": "user", "content": "data\nmore\n\nWhy?"}
    for prefix in ("", "be brief"):
        system = [{"role": "system", "content": prefix}] if prefix else []
        rendered, _ = utils.render_jinja_template(
            conversations=[[*system, user]],
            chat_template=source,
            add_generation_prompt=True,
            enable_thinking=False,
            bos_token="<B>",
            eos_token="<E>",
        )
        halves = template.opens(prefix) + "data\nmore\n" + template.question("Why?")
        assert [halves] == rendered


def test_what_is_no_text_is_refused() -> None:
    template = chat_template(BYTE_CHAT, bos="", eos="")
    for call in (template.open_tokens, template.question_tokens, template.entry_tokens):
        with pytest.raises(InvalidInput, match="lone surrogate"):
            call(ByteTokenizer(), "\ud800")


def test_find_template(tmp_path: Path) -> None:
    assert find_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"bos_token": "<B>", "eos_token": {"content": "<E>"}}))
    assert find_template(tmp_path) is None
    settings = {"bos_token": "<B>", "eos_token": {"content": "<E>"}, "chat_template": MISTRAL}
    config.write_text(json.dumps(settings))
    found = find_template(tmp_path)
    assert found == chat_template(MISTRAL, bos="<B>", eos="<E>")
    named = [{"name": "rag", "template": "x"}, {"name": "default", "template": MISTRAL}]
    config.write_text(json.dumps(settings | {"chat_template": named}))
    assert find_template(tmp_path) == found
    config.write_text(json.dumps(settings | {"chat_template": named[:1]}))
    with pytest.raises(UnsupportedModel, match=r"only \['rag'\]"):
        find_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(GEMMA3)
    assert find_template(tmp_path) == chat_template(GEMMA3, bos="<B>", eos="<E>")


def test_template_from_gguf() -> None:
    metadata: dict[str, object] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": ["<B>", "<E>"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    assert template_from_gguf(metadata) is None
    metadata["tokenizer.chat_template"] = QWEN3
    expected = chat_template(QWEN3, bos="<B>", eos="<E>", add_bos=False)
    assert template_from_gguf(metadata) == expected
    assert not expected.opens("").startswith("<B>")
    metadata["tokenizer.ggml.add_bos_token"] = True
    assert template_from_gguf(metadata) == chat_template(QWEN3, bos="<B>", eos="<E>")
