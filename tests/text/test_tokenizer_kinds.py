"""What every tokenizer must do, whatever its library."""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import llama_style_json, train_sentencepiece
from tokenizers import Tokenizer as Library

from jaxstate.errors import InvalidInput, UnsupportedModel
from jaxstate.testing.byte_tokenizer import ByteTokenizer
from jaxstate.text import HFTokenizer, SentencePieceTokenizer, Tokenizer, find_tokenizer
from jaxstate.text.hf_decoder import byte_level_alphabet, read_decoder
from jaxstate.text.pieces import is_marker

# U+2581 is how SentencePiece writes spaces, and comes back as one.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))
MARKERS = ["<|bos|>", "<|eot_id|>", "<think>", "<s>", "</s>", "<|eot|>", "<start_of_turn>"]
MARKERS += ["[INST]", "<bos>", "<eos>", "<unk>"]
MIXED = st.lists(st.one_of(TEXT, st.sampled_from(MARKERS))).map("".join)


@settings(deadline=None, max_examples=60)
@given(text=MIXED)
def test_plain_text_survives_and_is_never_special(all_kinds: list[Tokenizer], text: str) -> None:
    for tokenizer in all_kinds:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        special = {tokenizer.special_id(marker) for marker in MARKERS}
        assert not special.intersection(ids)


@settings(deadline=None, max_examples=60)
@given(text=MIXED)
def test_template_is_plain_text_between_specials(all_kinds: list[Tokenizer], text: str) -> None:
    for tokenizer in all_kinds:
        ids: list[int] = []
        at = 0
        for start, end, token in tokenizer.special_spans(text):
            assert tokenizer.special_id(text[start:end]) == token
            ids += [*tokenizer.encode(text[at:start]), token]
            at = end
        assert tokenizer.encode_template(text) == ids + tokenizer.encode(text[at:])


def test_specials_are_recognised_in_templates_only(all_kinds: list[Tokenizer]) -> None:
    for tokenizer in all_kinds:
        assert tokenizer.bos is not None
        assert tokenizer.encode_template(tokenizer.bos) == [tokenizer.bos_id]
        assert tokenizer.special_id(tokenizer.bos) == tokenizer.bos_id
        assert tokenizer.bos_id not in tokenizer.encode(tokenizer.bos)
        assert tokenizer.special_id("a") is None
        assert tokenizer.decode(tokenizer.encode_template(tokenizer.bos)) == ""
        assert tokenizer.encode("") == tokenizer.encode_template("") == []


def test_wrong_input_is_refused(all_kinds: list[Tokenizer]) -> None:
    for tokenizer in all_kinds:
        for token in (-1, tokenizer.vocab_size):
            with pytest.raises(InvalidInput, match="outside the vocabulary"):
                tokenizer.decode([token])
            with pytest.raises(InvalidInput, match="outside the vocabulary"):
                tokenizer.token_bytes(token)
        for encode in (tokenizer.encode, tokenizer.encode_template, tokenizer.special_spans):
            with pytest.raises(InvalidInput, match="lone surrogate at character 1"):
                encode("a\ud800")
            with pytest.raises(InvalidInput, match="must be a str"):
                encode(b"a")  # pyright: ignore[reportArgumentType]


def test_decode_shows_invalid_bytes_and_every_id(all_kinds: list[Tokenizer]) -> None:
    for tokenizer in all_kinds:
        assert isinstance(tokenizer.decode(range(tokenizer.vocab_size)), str)
        half = tokenizer.encode("\U000e0001")[-4:]  # in no vocabulary: four bytes
        shown = tokenizer.decode([*half[:2], *tokenizer.encode("a")])
        assert shown.replace(" ", "") == "\ufffda"  # some write "a" as " a"


def test_byte_tokenizer_by_hand() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("aé<bos>") == [97, 0xC3, 0xA9, 60, 98, 111, 115, 62]
    assert tokenizer.encode_template("a<bos>b<eos>") == [97, 256, 98, 257]
    assert tokenizer.decode([256, 97, 0xC3, 257]) == "a\ufffd"


def test_byte_level_template_text_is_the_library_with_no_limits(byte_level_json: str) -> None:
    library = Library.from_str(byte_level_json)
    library.no_truncation()
    library.no_padding()
    tokenizer = HFTokenizer(byte_level_json)
    text = "<|bos|>the price    of<think> copper<|eot_id|>\n" * 5
    ids = library.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode_template(text) == ids
    assert tokenizer.decode(ids) == library.decode(ids, skip_special_tokens=True)


@pytest.mark.parity
def test_template_text_is_that_of_transformers(byte_level_json: str) -> None:
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=Library.from_str(byte_level_json))
    text = "<|bos|>the price    of<think> copper<|eot_id|>\n" * 5
    ids = fast(text, add_special_tokens=False)["input_ids"]
    assert HFTokenizer(byte_level_json).encode_template(text) == ids


def test_added_tokens_that_are_no_markers_stay_in_plain_text(byte_level: HFTokenizer) -> None:
    assert len(byte_level.encode("    ")) == 1
    think = byte_level.special_id("<think>")
    assert think is not None and think not in byte_level.encode("<think>")
    # Not special by its file, so it is shown; but text cannot forge it.
    assert byte_level.decode([think]) == "<think>"


def test_llama_style_by_hand(llama_style: HFTokenizer) -> None:
    assert llama_style.encode("ab") == [264]
    assert llama_style.encode("a ab") == [262, 264]
    assert llama_style.encode("é") == [259, 3 + 0xC3, 3 + 0xA9]
    assert llama_style.encode_template("<s>ab</s>") == [1, 264, 2]
    assert llama_style.decode([1, 264, 264, 2]) == "ab ab"
    library = Library.from_str(llama_style_json())
    for ids in ([264, 264], [259, 3 + 0xC3, 3 + 0xA9, 260], [260, 262]):
        assert llama_style.decode(ids) == library.decode(ids)


@settings(deadline=None, max_examples=60)
@given(text=TEXT)
def test_sentencepiece_plain_text_is_the_library(text: str) -> None:
    import sentencepiece

    model = _cached_model()
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    if "[INST]" not in text and "<start_of_turn>" not in text:
        tokenizer = SentencePieceTokenizer(model)
        ids = tokenizer.encode(text)
        assert ids == library.encode(text)
        assert tokenizer.decode(ids) == library.decode(ids)


@functools.cache
def _cached_model() -> bytes:
    return train_sentencepiece(dummy_prefix=True)


def test_sentencepiece_user_defined_pieces(pieces_bare: SentencePieceTokenizer) -> None:
    for harmless in ("\n\n", "  ", "<table>"):
        assert len(pieces_bare.encode(harmless)) == 1
        assert pieces_bare.special_id(harmless) is None
    for marker in ("<start_of_turn>", "[INST]"):
        token = pieces_bare.special_id(marker)
        assert token is not None and token not in pieces_bare.encode(marker)
        assert pieces_bare.encode_template(f"a{marker}")[-1] == token
        assert pieces_bare.decode([token]) == marker  # declared as text: shown


def test_sentencepiece_unknown_characters() -> None:
    tokenizer = SentencePieceTokenizer(train_sentencepiece(dummy_prefix=False, byte_fallback=False))
    assert tokenizer.decode(tokenizer.encode("the 😀 price")) == "the \ufffd price"


def test_bos_can_be_chosen_or_left_out() -> None:
    model = _cached_model()
    assert SentencePieceTokenizer(model).bos == "<s>"
    assert SentencePieceTokenizer(model, add_bos=False).bos_id is None
    assert SentencePieceTokenizer(model, bos="<|eot|>").bos == "<|eot|>"
    with pytest.raises(UnsupportedModel, match="BOS token 'nope'"):
        SentencePieceTokenizer(model, bos="nope")
    with pytest.raises(UnsupportedModel, match="BOS token 'nope'"):
        HFTokenizer(llama_style_json(), bos="nope")


@pytest.mark.parametrize(
    ("written", "marker"),
    [
        ("<|eot_id|>", True),
        ("<start_of_turn>", True),
        ("<｜User｜>", True),
        ("[INST]", True),
        ("[/INST]", True),
        ("▁<EOT>", True),
        ("<s>", True),
        ("<unused7>", True),
        ("<table>", False),
        ("</h1>", False),
        ("\n\n", False),
        ("▁▁", False),
        ("<=>", False),
        ("[]", False),
        ("->", False),
        ("word", False),
    ],
)
def test_markers(written: str, marker: bool) -> None:
    assert is_marker(written) is marker


def test_a_vocabulary_that_spells_a_special_token_is_refused_not_forged() -> None:
    spec = json.loads(llama_style_json())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    spec["added_tokens"].append({"id": 260, "content": "a", "special": True} | flags)
    tokenizer = HFTokenizer(json.dumps(spec))
    with pytest.raises(InvalidInput, match=r"special tokens \[260\]"):
        tokenizer.encode("ba")  # no merge takes this "a" away


def test_fingerprint_is_stable_and_tells_encodings_apart(all_kinds: list[Tokenizer]) -> None:
    prints = [tokenizer.fingerprint for tokenizer in all_kinds]
    assert all(len(bytes.fromhex(found)) == 32 for found in prints)
    assert len(set(prints)) == len(prints)
    source = llama_style_json()
    reordered = json.dumps(dict(reversed(json.loads(source).items())))
    assert HFTokenizer(source).fingerprint == HFTokenizer(reordered).fingerprint
    assert HFTokenizer(source).fingerprint != HFTokenizer(source, bos="<s>").fingerprint


def test_fingerprint_is_the_same_in_another_process(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(llama_style_json())
    (tmp_path / "t.model").write_bytes(_cached_model())
    code = (
        "import sys; from pathlib import Path; from jaxstate.text import *; d = Path(sys.argv[1]);"
        "print(find_tokenizer(d).fingerprint, SentencePieceTokenizer(d / 't.model').fingerprint)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    here = find_tokenizer(tmp_path)
    assert here is not None
    assert result.stdout.split() == [
        here.fingerprint,
        SentencePieceTokenizer(_cached_model()).fingerprint,
    ]
    assert hashlib.sha256().digest_size * 2 == len(here.fingerprint)


def test_find_tokenizer(tmp_path: Path) -> None:
    assert find_tokenizer(tmp_path) is None
    (tmp_path / "tokenizer.model").write_bytes(_cached_model())
    found = find_tokenizer(tmp_path)
    assert isinstance(found, SentencePieceTokenizer) and found.bos == "<s>"
    (tmp_path / "tokenizer.json").write_text(llama_style_json())
    found = find_tokenizer(tmp_path)
    assert isinstance(found, HFTokenizer) and found.bos_id is None
    config, older = tmp_path / "tokenizer_config.json", tmp_path / "special_tokens_map.json"
    config.write_text('{"bos_token": "<s>", "add_bos_token": true}')
    assert (found := find_tokenizer(tmp_path)) is not None and found.bos_id == 1
    # Where both name one, transformers takes the older file's, unless the config has the tokens.
    older.write_text('{"bos_token": {"content": "</s>"}}')
    assert (found := find_tokenizer(tmp_path)) is not None and found.bos == "</s>"
    config.write_text('{"bos_token": "<s>", "add_bos_token": true, "added_tokens_decoder": {}}')
    assert (found := find_tokenizer(tmp_path)) is not None and found.bos_id == 1
    # To have a BOS, and to open texts with it, are two things.
    config.write_text('{"bos_token": "<s>"}')
    assert (found := find_tokenizer(tmp_path)) is not None and found.bos_id is None
    spec = json.loads(llama_style_json())
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "</s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    assert (found := find_tokenizer(tmp_path)) is not None and found.bos == "</s>"
    older.unlink()
    config.write_text('{"bos_token": null}')
    assert (found := find_tokenizer(tmp_path)) is not None and found.bos_id is None
    config.write_text('{"bos_token": "<s>", "add_bos_token": false}')
    assert (found := find_tokenizer(tmp_path)) is not None and found.bos_id is None


def test_damaged_and_incomplete_directories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(_cached_model())
    (tmp_path / "added_tokens.json").write_text('{"<|im_start|>": 32000}')
    with pytest.raises(UnsupportedModel, match=r"added tokens \[32000\]"):
        find_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(UnsupportedModel):
        find_tokenizer(tmp_path)
    for text in ("{", "[]", '{"decoder": {"type": "ByteLevel"}}', '{"decoder": {"type": "CTC"}}'):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(UnsupportedModel):
            find_tokenizer(tmp_path)


def test_decoders() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert sorted(byte_level_alphabet()) == sorted(ByteLevel.alphabet())
    assert sorted(byte_level_alphabet().values()) == list(range(256))
    meta = read_decoder({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"})
    assert meta.drops_first_space and meta.piece_bytes("▁a") == b" a"
    old = read_decoder({"type": "Metaspace", "replacement": "▁", "add_prefix_space": False})
    assert not old.drops_first_space
    for spec in (
        None,
        {"type": "Sequence", "decoders": []},
        {"type": "WordPiece", "prefix": "##"},
        {"type": "Sequence", "decoders": [{"type": "ByteLevel"}, {"type": "Fuse"}]},
        {"type": "Replace", "pattern": {"Regex": "a"}, "content": "b"},
        {"type": "Strip", "content": " ", "start": 2, "stop": 0},
    ):
        with pytest.raises(UnsupportedModel, match="decoder"):
            read_decoder(spec)
