"""SmolLM2 135M (4 bit) on real text: jaxstate against transformers with the same weights.

The other side reads the GGUF by transformers' own loader; its tokenizer is built by the library
`tokenizers` out of the file's pieces and merges, with the pre-tokenizers that SmolLM's
tokenizer.json has (digits one by one, then byte-level with GPT-2's pattern); its chat template is
rendered by transformers.
"""

from __future__ import annotations

from importlib import resources
from typing import Any, NamedTuple

import gguf
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import jaxstate
from jaxstate.weights import known_model_path

from .checks import check_answer, difference, extended
from .conftest import Measured
from .reference import Reference, all_logits, reloaded_gguf, transformers

pytestmark = [pytest.mark.parity, pytest.mark.smollm2]

STEPS = jaxstate.StepConfig(extend_tokens=(64, 256), question_tokens=(32,), tail_cells=(64,))
CELLS, ANSWER, BOUND = 900, 32, 2e-3
HARD = (
    "  two  spaces,\n\n\nthree\tlines\r\n and 12345 digits ",
    "Ünïcode, 日本語テキスト, ☃🙂👍🏽 x²½ Ⅷ ٣٤ and a\0 zero",
    "I'm, DON'T, we'll; $1,234.56 (20%) #9 <|im_end|> e\u0301 \u00a0 \u3000",
    "def f(x):\n    return x**2  # 2nd\n\n\n",
)


class SmolLM2(NamedTuple):
    """The model on both sides, and the independent tokenizer and template."""

    model: jaxstate.Model
    reference: Reference
    tokenizer: Tokenizer
    template: str


@pytest.fixture(scope="module")
def smollm2() -> SmolLM2:
    path = known_model_path("smollm2-135m")
    fields = gguf.GGUFReader(path).fields
    value = {name: field.contents() for name, field in fields.items()}
    return SmolLM2(
        model=jaxstate.load("smollm2-135m", dtype="float32", steps=STEPS),
        reference=reloaded_gguf(path),
        tokenizer=_tokenizer(value),
        template=value["tokenizer.chat_template"],
    )


def _tokenizer(value: dict[str, Any]) -> Tokenizer:
    pieces, kinds = value["tokenizer.ggml.tokens"], value["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in value["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    markers = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(marker, normalized=False) for marker in markers])
    return tokenizer


@pytest.fixture(scope="module")
def lines() -> list[str]:
    data = resources.files("jaxstate") / "data" / "constitution.txt"
    return data.read_text(encoding="utf-8").splitlines(keepends=True)


def test_tokens(smollm2: SmolLM2, lines: list[str]) -> None:
    ours = smollm2.model.text
    for text in ("".join(lines), *lines[:40], *HARD):
        plain = text.replace("<|im_end|>", "<|im_end |>")
        ids = ours.encode(plain)
        assert ids == smollm2.tokenizer.encode(plain, add_special_tokens=False).ids
        assert ours.decode(ids) == plain
        trusted = smollm2.tokenizer.encode(text, add_special_tokens=False).ids
        assert ours.encode_template(text) == trusted


def test_template(smollm2: SmolLM2) -> None:
    """A session and its question are what transformers renders for one user message."""
    template, tokenizer = smollm2.model.template, smollm2.model.text
    entries, question = ["09:30 ACME 101.20", "09:31 ACME 101.90"], "What was the last price?"
    for prefix in ("", "You watch prices."):
        ours = template.open_tokens(tokenizer, prefix)
        for entry in entries:
            ours += template.entry_tokens(tokenizer, entry)
        ours += template.question_tokens(tokenizer, question)
        system = [{"role": "system", "content": prefix}] if prefix else []
        content = "".join(f"{entry}\n" for entry in entries) + "\n" + question
        rendered = transformers.utils.chat_template_utils.render_jinja_template(
            [[*system, {"role": "user", "content": content}]],
            chat_template=smollm2.template,
            add_generation_prompt=True,
        )[0][0]
        assert ours == smollm2.tokenizer.encode(rendered, add_special_tokens=False).ids
    end = smollm2.tokenizer.token_to_id("<|im_end|>")
    assert end in smollm2.model.stop_ids


@pytest.mark.parametrize(("first", "last"), [(0, 4), (40, 52), (200, 216)])
def test_logits_and_greedy_text(
    smollm2: SmolLM2, lines: list[str], first: int, last: int, measured: Measured
) -> None:
    model = smollm2.model
    context = np.array(
        model.template.open_tokens(model.text, "")
        + [token for line in lines[first:last] for token in model.text.encode(line)],
        np.int32,
    )
    question = model.template.question_tokens(model.text, "What is this text about?")
    ((_, state),) = extended(model, context, (len(context),), CELLS)
    prompt = np.concatenate([context, np.array(question, np.int32)])
    theirs = all_logits(smollm2.reference, prompt, keep=len(question) + 1)
    ready = difference(jaxstate.ready_logits(model, state), theirs[0])
    result = jaxstate.query(model, state, np.array(question, np.int32), max_tokens=ANSWER)
    count = len(result.tokens)
    answer = check_answer(result, smollm2.reference, prompt, count=count, bound=BOUND)
    measured("ready logits", ready)
    measured("first logits, logprobs", answer)
    assert max(ready, answer) < BOUND and count > 4
