"""Conversations in tokens: as the template writes them whole, and nobody's text is special."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_template import BYTE_CHAT, GEMMA2, GEMMA3, LLAMA3, MISTRAL, QWEN3, QWEN25

from jaxstate.errors import InvalidInput
from jaxstate.testing.byte_tokenizer import ByteTokenizer
from jaxstate.text import (
    Message,
    Tokenizer,
    chat_template,
    checked_messages,
    conversation_tokens,
    plain_template,
    turn_tokens,
)

TEMPLATES = [LLAMA3, GEMMA3, GEMMA2, QWEN25, QWEN3, MISTRAL]
NAMES = ["llama3", "gemma3", "gemma2", "qwen2.5", "qwen3", "mistral"]


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def system(content: str) -> Message:
    return {"role": "system", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


TALKS = {
    "one": [user("Why?")],
    "system": [system("be brief"), user("Why?")],
    "turns": [user("one?"), assistant("1"), user("two?"), assistant("2"), user("three?")],
    "all": [system("be brief"), user("one?"), assistant("1"), user("two?")],
}


def text_of(source: str, messages: list[Message]) -> str:
    template = chat_template(source, bos="", eos="<E>", add_bos=False)
    return ByteTokenizer().decode(conversation_tokens(template, ByteTokenizer(), messages))


@pytest.mark.parity
@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("source", TEMPLATES, ids=NAMES)
def test_a_conversation_is_what_transformers_renders(source: str, talk: str) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    messages = TALKS[talk]
    if source is GEMMA2 and messages[0]["role"] == "system":
        content = f"{messages[0]['content']}\n\n{messages[1]['content']}"
        messages = [user(content), *messages[2:]]
    (rendered,), _ = utils.render_jinja_template(
        conversations=[messages],
        chat_template=source,
        add_generation_prompt=True,
        enable_thinking=False,
        bos_token="",
        eos_token="<E>",
    )
    assert text_of(source, TALKS[talk]) == rendered


@pytest.mark.parametrize("source", TEMPLATES, ids=NAMES)
def test_what_is_asked_of_a_session_is_the_end_of_the_whole(source: str) -> None:
    """Opening, entry and turn are the conversation whose first message begins with the entry."""
    template, tokenizer = chat_template(source, bos="", eos="<E>"), ByteTokenizer()
    opening = template.open_tokens(tokenizer, "")
    entry = template.entry_tokens(tokenizer, "09:30 101.20")
    for name in ("one", "turns"):
        messages = TALKS[name]
        whole = [user(f"09:30 101.20\n\n{messages[0]['content']}"), *messages[1:]]
        turn = turn_tokens(template, tokenizer, messages)
        assert opening + entry + turn == conversation_tokens(template, tokenizer, whole)


@pytest.mark.parametrize("source", [*TEMPLATES, None], ids=[*NAMES, "plain"])
@settings(deadline=None, max_examples=20)
@given(question=st.text(min_size=1, max_size=20).filter(str.strip))
def test_one_question_is_the_question(source: str | None, question: str) -> None:
    tokenizer = ByteTokenizer()
    template = plain_template("<bos>") if source is None else chat_template(source, bos="", eos="")
    stripped = question.strip()
    asked = template.question_tokens(tokenizer, stripped)
    assert turn_tokens(template, tokenizer, [user(stripped)]) == asked


def test_a_base_model_reads_a_document() -> None:
    template = plain_template("<bos>")
    tokens = conversation_tokens(template, ByteTokenizer(), TALKS["all"])
    document = "be brief\n\nQuestion: one?\nAnswer: 1\nQuestion: two?\nAnswer:"
    assert tokens == [256, *document.encode()]
    turn = "\nQuestion: be brief\n\none?\nAnswer: 1\nQuestion: two?\nAnswer:"
    assert turn_tokens(template, ByteTokenizer(), TALKS["all"]) == list(turn.encode())


def test_plain_stretches_are_encoded_as_one_text(all_kinds: list[Tokenizer]) -> None:
    for tokenizer in all_kinds:
        template = plain_template(tokenizer.bos)
        tokens = turn_tokens(template, tokenizer, [user("price?"), assistant("9"), user("why?")])
        document = "\nQuestion: price?\nAnswer: 9\nQuestion: why?\nAnswer:"
        assert tokens == tokenizer.encode(document, "text")


@settings(deadline=None, max_examples=50)
@given(words=st.lists(st.sampled_from(["a", " ", "\n", "<bos>", "<eos>", "é"]), min_size=1))
def test_only_the_template_makes_special_tokens(words: list[str]) -> None:
    text, tokenizer = "".join(words), ByteTokenizer()
    template = chat_template(BYTE_CHAT, bos="", eos="<eos>")
    messages = [system(text), user(text), assistant(text), user(text)]
    wanted: list[int] = []
    for one in messages:
        wanted += [256, *one["role"].encode(), *b"\n", *text.encode(), 257, *b"\n"]
    wanted += [256, *b"assistant\n"]
    assert conversation_tokens(template, tokenizer, messages) == wanted


def test_white_space_goes_where_the_template_takes_it() -> None:
    padded = [user("  one? \n"), assistant(" 1 "), user(" two? ")]
    bare = [user("one?"), assistant("1"), user("two?")]
    assert text_of(LLAMA3, padded) == text_of(LLAMA3, bare)
    assert "  one? \n<|im_end|>" in text_of(QWEN25, padded)


def test_the_date_is_that_of_the_day() -> None:
    assert datetime.datetime.now().strftime("%d %b %Y") in text_of(LLAMA3, TALKS["one"])


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ("hello", "must be a list of messages"),
        ({"role": "user", "content": "x"}, "must be a list of messages"),
        ([], "must end with one of the user's"),
        ([system("x")], "must end with one of the user's"),
        ([user("x"), assistant("y")], "must end with one of the user's"),
        ([user("")], r"messages\[-1\] is empty"),
        ([user("x"), user("y")], r"messages\[1\] has the role 'user', and 'assistant' is its turn"),
        ([user("x"), system("y")], r"messages\[1\] has the role 'system'"),
        ([assistant("x"), user("y")], r"messages\[0\] has the role 'assistant'"),
        ([{"role": "tool", "content": "x"}], r"messages\[0\]: role='tool' is none of"),
        ([{"role": "user", "content": 3}], r"messages\[0\]: its content must be a text"),
        ([{"role": "user"}], r"messages\[0\] must be"),
        (["x"], r"messages\[0\] must be"),
    ],
)
def test_what_is_no_conversation_is_refused(messages: Any, says: str) -> None:  # noqa: ANN401
    with pytest.raises(InvalidInput, match=says):
        checked_messages(messages)


def test_a_template_that_cannot_write_them_says_so() -> None:
    each = "{% for m in messages %}{{ m.content }}{% endfor %}"
    refuses = each + "{% if messages|length > 3 %}{{ raise_exception('too long') }}{% endif %}"
    with pytest.raises(InvalidInput, match=r"cannot write these messages: .* too long"):
        text_of(refuses, TALKS["turns"])
    loses = "{% for m in messages[:3] %}{{ m.content }}{% endfor %}"
    with pytest.raises(InvalidInput, match=r"each of these messages once \(times: \[1, 1, 1, 0, 0"):
        text_of(loses, TALKS["turns"])
