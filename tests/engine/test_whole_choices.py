"""Choices are scored as whole answers, with what ends them, wherever they are asked for."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

import jaxstate
from jaxstate.engine.requests.encoding import PromptEncoder, checked_settings
from jaxstate.records import Sampling
from jaxstate.testing import FAKE_LIMITS, TINY_STEPS, ByteTokenizer, tiny_model
from jaxstate.text import Template, plain_template
from jaxstate.text.chat import chat_template

STEPS = dataclasses.replace(TINY_STEPS, question_tokens=(32,), tail_cells=(64,), tail_blocks=64)
CHOICES = ["1", "10", "100"]
PLAIN = plain_template("<bos>")
CHAT = chat_template(
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
    bos="<bos>",
    eos="<eos>",
)


def scored(template: Template, stop: list[str] | None = None, ids: tuple[int, ...] = ()) -> bytes:
    """The tokens that a choice "1" is scored by, as bytes; <eos> as 0xff."""
    encoder = PromptEncoder(
        tokenizer=ByteTokenizer(), template=template, limits=FAKE_LIMITS, stop_ids=ids
    )
    settings = checked_settings(max_tokens=None, choices=["1"], stop=stop, sampling=Sampling())
    asked = encoder.ask("Q", settings)
    assert asked.answer_tokens[0].tolist() == list((template.answer_lead + "1").encode())
    return bytes(min(int(token), 255) for token in asked.choice_tokens[0])


def test_what_ends_a_choice() -> None:
    assert scored(PLAIN) == b" 1\n"
    assert scored(PLAIN, stop=[";"]) == b" 1;"
    assert scored(PLAIN, stop=[], ids=(257,)) == b" 1\xff"
    assert scored(CHAT) == scored(CHAT, stop=["."]) == b"1\xff"
    bare = Template(bare="", opening=("", ""), asking=("", ""))
    assert scored(bare) == b"1"
    assert scored(bare, ids=(257,)) == b"1\xff"


def total(model: jaxstate.Model, read: list[int], asked: list[int], answer: list[int]) -> float:
    """Log-probability of an answer, token by token, by the functional core."""
    state = jaxstate.extend(model, jaxstate.init_state(model, 128), read)
    found = 0.0
    for count, token in enumerate(answer):
        logits = jaxstate.query(model, state, asked + answer[:count], 1).logits.astype(np.float64)
        shifted = logits - logits.max()
        found += float(shifted[token] - math.log(np.exp(shifted).sum()))
    return found


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_probabilities_are_those_at_the_models_temperature(temperature: float) -> None:
    model = dataclasses.replace(tiny_model(steps=STEPS), choice_temperature=temperature)
    with jaxstate.Engine(model, cells=128, warm_up=False) as engine:
        session = engine.open()
        session.push("abc")
        answer = session.ask("q?", choices=CHOICES)
        assert answer.choice_logprobs is not None
        weights = np.exp(np.asarray(answer.choice_logprobs) / temperature)
        assert answer.probability == pytest.approx(weights.max() / weights.sum(), rel=1e-6)
        assert answer.text == CHOICES[int(np.argmax(answer.choice_logprobs))]


def test_every_way_of_asking_gives_the_whole_answers_probabilities() -> None:
    model = tiny_model(steps=STEPS)
    template, tokenizer = model.template, model.text
    question = "How many?"
    with jaxstate.Engine(model, warm_up=False, cells=512, sessions=4) as engine:
        session = engine.open(prefix="p")
        session.push("entry")
        session.wait(timeout=60)
        read = template.open_tokens(tokenizer, "p") + template.entry_tokens(tokenizer, "entry")
        asked = template.question_tokens(tokenizer, question)
        wanted = [
            total(model, read, asked, template.answer_tokens(tokenizer, question, f"{one}\n"))
            for one in CHOICES
        ]
        direct = session.ask(question, choices=CHOICES)
        (many,) = engine.ask_many(question, [session], choices=CHOICES)
        query = session.flash(question, choices=CHOICES)
        session.wait_fresh(timeout=60)
        flash = session.ask(question, choices=CHOICES)
        ready = session.ask(question, choices=CHOICES[::-1])
    assert query.answer is not None
    assert (flash.source, ready.source) == ("flash", "ready")
    shares = np.exp(np.array(wanted) - max(wanted))
    for answer in (direct, many, query.answer, flash):
        assert answer.choice_logprobs == pytest.approx(wanted, abs=1e-3)
        assert answer.text == CHOICES[int(np.argmax(wanted))]
        assert answer.probability == pytest.approx(float(1 / shares.sum()), abs=1e-3)
        assert answer.token_ids == tuple(f" {answer.text}".encode())
    assert ready.choice_logprobs == pytest.approx(wanted[::-1], abs=1e-3)
    assert (ready.text, ready.token_ids) == (flash.text, flash.token_ids)
