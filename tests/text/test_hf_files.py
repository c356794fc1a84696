"""What the small files beside a tokenizer say, alone and against each other; as transformers 5.24
does, or refused with both files named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxstate.errors import UnsupportedModel
from jaxstate.text import find_template, find_tokenizer
from jaxstate.text.chat import chat_template, closes_reasoning
from tests.tiny_directory import write_directory

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def directory(path: Path, *, config: dict[str, object], **files: object) -> Path:
    write_directory(path)
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return path


def added(*names: tuple[int, str]) -> dict[str, object]:
    return {str(n): {"content": name, "special": True, **FLAGS} for n, name in names}


@pytest.mark.parametrize(
    "files",
    [
        {"config": {"added_tokens_decoder": added((258, "<x>"))}},
        {"config": {}, "added_tokens": {"<x>": 258}},
        {"config": {"additional_special_tokens": ["<x>"]}},
        {"config": {"extra_special_tokens": {"image_token": "<x>"}}},
        {"config": {}, "special_tokens_map": {"additional_special_tokens": [{"content": "<x>"}]}},
        {"config": {"eos_token": "<x>"}},
    ],
)
def test_tokens_that_only_a_file_beside_names_are_added(
    tmp_path: Path, files: dict[str, dict[str, object]]
) -> None:
    found = find_tokenizer(directory(tmp_path / "m", **files))
    assert found is not None
    assert found.encode_template("a<x>") == [97, 258]
    assert found.encode("a<x>") == [97, *b"<x>"], "what users write never becomes one"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config": {"added_tokens_decoder": added((300, "<x>"))}}, "named nowhere"),
        ({"config": {"added_tokens_decoder": added((257, "<x>"))}}, "files beside it"),
        ({"config": {}, "added_tokens": {"<bos>": 258}}, r"tokenizer\.json.*added_tokens\.json"),
        (
            {
                "config": {"added_tokens_decoder": added((258, "<x>"))},
                "added_tokens": {"<x>": 259},
            },
            r"tokenizer_config\.json.*added_tokens\.json",
        ),
    ],
)
def test_files_that_contradict_each_other_are_refused_by_name(
    tmp_path: Path, files: dict[str, dict[str, object]], said: str
) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        find_tokenizer(directory(tmp_path / "m", **files))


def test_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    path = directory(tmp_path / "m", config={})
    text = json.dumps({"bos_token": "<bos>", "add_bos_token": True})
    (path / "tokenizer_config.json").write_text(text, encoding="utf-8-sig")
    found = find_tokenizer(path)
    assert found is not None and found.bos == "<bos>"


CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + END }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' + LEAD }}{% endif %}"
)


def chat(end: str, lead: str = "") -> str:
    return CHAT.replace("END", repr(end)).replace("LEAD", repr(lead))


def test_an_end_of_turn_in_plain_text_is_a_stop_string(tmp_path: Path) -> None:
    tokenizer = find_tokenizer(directory(tmp_path / "m", config={}))
    assert tokenizer is not None
    plain = chat_template(chat("<|im_end|>\n"), bos="", eos="")
    assert (plain.stops(tokenizer), plain.stop_ids(tokenizer)) == (("<|im_end|>",), ())
    special = chat_template(chat("<eos>\n"), bos="", eos="")
    assert (special.stops(tokenizer), special.stop_ids(tokenizer)) == ((), (257,))
    nothing = chat_template(chat("\n"), bos="", eos="")
    assert nothing.stops(tokenizer) == ("\n<|im_start|>user",)


@pytest.mark.parametrize(
    ("opened", "closing"),
    [
        ("<think>\n", "\n</think>\n\n"),
        ("<think>", "\n\n</think>\n\n"),
        ("<think>\n\n</think>\n\n", ""),
        ("<|START_THINKING|>", "\n\n<|END_THINKING|>\n\n"),
        ("[THINK]", "\n\n[/THINK]\n\n"),
        ("<seed:think>\n", "\n</seed:think>\n\n"),
        ("", ""),
    ],
)
def test_a_reasoning_block_that_a_template_opens_is_closed(opened: str, closing: str) -> None:
    template = chat_template(chat("<eos>\n", opened), bos="", eos="")
    assert closes_reasoning(opened) == closing
    assert template.asking[1].endswith("assistant\n" + opened + closing)


def test_a_date_in_a_template_does_not_make_it_another(tmp_path: Path) -> None:
    import datetime

    source = "{{ strftime_now('%d') }}" + chat("<eos>\n")
    days = [
        chat_template(source, bos="", eos="", now=datetime.datetime(2026, 11, day))
        for day in (24, 25)
    ]
    assert days[0] != days[1] and days[0].identity == days[1].identity
    other = chat_template(source + " ", bos="", eos="", now=datetime.datetime(2026, 11, 24))
    assert other.identity != days[0].identity
    assert find_template(directory(tmp_path / "m", config={})) is None
