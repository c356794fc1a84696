"""From what a caller wrote to what the engine can run: questions, choices and entries in tokens.

Comes in: text and settings as a caller gave them. Goes out: a `Question`, or an error that says
what is allowed. Does not know: sessions, versions, devices.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, cast

import numpy as np

from jaxstate.engine.executor.protocol import Limits, Tokens
from jaxstate.engine.requests.request import Question
from jaxstate.engine.types.values import Answer
from jaxstate.errors import CapacityExceeded, InvalidInput, PromptTooLong
from jaxstate.records import Sampling, checked_int, shown
from jaxstate.steps.checks import checked_stop
from jaxstate.text import (
    Message,
    Messages,
    Place,
    Template,
    Tokenizer,
    checked_messages,
    conversation_tokens,
    turn_tokens,
)

DEFAULT_MAX_TOKENS = 16


# Of a conversation's tokens, those that are read as its question, with each answer anew.
CONVERSATION_TAIL = 16


GREEDY = Sampling()


# No vocabulary that we know has fewer tokens than that in a text of any use; what is longer is
# refused before it costs the time of making tokens of it.
_CHARACTERS_PER_CELL = 64


class SettingsOptions(TypedDict, total=False):
    """How a question is to be answered: as for `Session.ask`."""

    max_tokens: int | None
    choices: Sequence[str] | None
    stop: Sequence[str] | None
    temperature: float
    top_p: float
    seed: int | None


class AskOptions(SettingsOptions, total=False):
    """The same, and at which version."""

    min_version: int | None
    as_of: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a question is to be answered; None leaves it to the registered question of that text,
    or to the default.

    Attributes:
        max_tokens: of the answer.
        choices: the only answers allowed.
        stop: strings that end the answer.
        sampling: how tokens are chosen.
    """

    max_tokens: int | None = None
    choices: tuple[str, ...] | None = None
    stop: tuple[str, ...] | None = None
    sampling: Sampling = GREEDY

    def fit(self, asked: Question) -> bool:
        """Whether `asked` is what these settings ask for, but for the length of the answer."""
        return (
            self.choices in (None, asked.choices)
            and self.stop in (None, asked.stop)
            and self.sampling == asked.sampling
        )

    def same_length(self, asked: Question) -> bool:
        """Whether they let the answer be as long as `asked` does."""
        if self.max_tokens is None or asked.choices is None:
            return self.max_tokens in (None, asked.max_tokens)
        return max(map(len, asked.answer_tokens)) <= self.max_tokens

    def would_give(self, asked: Question, answer: Answer, steps: int) -> bool:
        """Whether answering anew, at the same version, would give exactly that answer, for which
        so many tokens were chosen."""
        if not self.fit(asked):
            return False
        ended_sooner = (
            asked.choices is None
            and answer.finish_reason == "stop"
            and self.max_tokens is not None
            and steps <= self.max_tokens
        )
        return self.same_length(asked) or ended_sooner


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionWanted:
    """Which version an answer is to have seen.

    Attributes:
        least: this or a later one.
        as_of: exactly this one; None for the newest.
    """

    least: int = 0
    as_of: int | None = None

    def suits(self, version: int) -> bool:
        """Whether an answer that saw `version` is what is wanted."""
        return version >= self.least if self.as_of is None else version == self.as_of


ANY = VersionWanted()


def checked_wanted(min_version: int | None, as_of: int | None) -> VersionWanted:
    """Versions as a caller gave them.

    Raises:
        InvalidInput: one of them is of a wrong type or out of range, or two contradict.
    """
    if as_of is None:
        least = 0 if min_version is None else checked_int("min_version", min_version)
        return VersionWanted(least=least)
    if min_version is not None:
        raise InvalidInput(
            f"as_of={as_of!r} with min_version={min_version!r}: one asks for exactly that version, "
            "which the session has, the other waits for it or a later one; give one of them"
        )
    if checked_int("as_of", as_of) < 0:
        raise InvalidInput(f"as_of={as_of} must be 0 (the opening alone) or more")
    return VersionWanted(as_of=int(as_of))


def sampling_of(temperature: float, top_p: float, seed: int | None) -> Sampling:
    """`Sampling`, with a seed drawn where none is given; at temperature 0 the greedy one, whatever
    the seed.

    Raises:
        InvalidInput: as `Sampling`.
    """
    usual = (type(temperature), type(top_p)) == (float, float) and seed is None
    if usual and temperature == 0.0 and top_p == 1.0:
        return GREEDY  # neither made nor checked anew
    drawn = secrets.randbits(32) if seed is None else seed
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=drawn)
    return sampling if sampling.temperature > 0 else GREEDY


def checked_settings(
    *,
    max_tokens: int | None,
    choices: Sequence[str] | None,
    stop: Sequence[str] | None,
    sampling: Sampling,
) -> Settings:
    """Settings as a caller gave them.

    Raises:
        InvalidInput: one of them is of a wrong type or out of range.
    """
    if max_tokens is not None and checked_int("max_tokens", max_tokens) < 1:
        raise InvalidInput(f"max_tokens={max_tokens} must be at least 1")
    return Settings(
        max_tokens=None if max_tokens is None else int(max_tokens),
        choices=None if choices is None else _checked_choices(choices),
        stop=None if stop is None else checked_stop(stop),
        sampling=sampling,
    )


def settings_of(
    *,
    max_tokens: int | None = None,
    choices: Sequence[str] | None = None,
    stop: Sequence[str] | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> Settings:
    """Settings as a caller gave them.

    Raises:
        InvalidInput: as `checked_settings` and `Sampling`, or something that has no effect on
            choices was given with them.
    """
    if choices is not None:
        _refuse_beside_choices(stop=stop, temperature=temperature, top_p=top_p, seed=seed)
    sampling = sampling_of(temperature, top_p, seed)
    return checked_settings(max_tokens=max_tokens, choices=choices, stop=stop, sampling=sampling)


def wanted_of(options: AskOptions) -> tuple[Settings, VersionWanted]:
    """Settings and version as the caller of `ask` gave them.

    Raises:
        InvalidInput: as `settings_of` and `checked_wanted`.
    """
    how = options.copy()
    wanted = checked_wanted(how.pop("min_version", None), how.pop("as_of", None))
    return settings_of(**cast("SettingsOptions", how)), wanted


def _refuse_beside_choices(**given: object) -> None:
    usual = {"stop": None, "temperature": 0.0, "top_p": 1.0, "seed": None}
    idle = ", ".join(f"{name}={given[name]!r}" for name in usual if given[name] != usual[name])
    if idle:
        raise InvalidInput(
            f"{idle} with choices: choices are scored as whole answers and the best is given, so "
            "nothing is drawn and nothing stops early; leave it out, or ask without choices"
        )


def checked_text(name: str, text: object) -> str:
    """A text as a caller gave it.

    Raises:
        InvalidInput: it is something else.
    """
    if isinstance(text, bytes | bytearray | memoryview):
        raise InvalidInput(
            f"{name} is {type(text).__name__}, and must be a str: decode it first, for example "
            f'{name}.decode("utf-8")'
        )
    if not isinstance(text, str):
        raise InvalidInput(f"{name}={shown(text)} is {type(text).__name__}, and must be a str")
    return text


def _check_choice_lengths(asked: Question, max_tokens: int | None) -> None:
    """Refuses choices that are longer than the answer may be.

    Raises:
        InvalidInput: which one.
    """
    for choice, tokens in zip(asked.choices or (), asked.answer_tokens, strict=True):
        if max_tokens is not None and len(tokens) > max_tokens:
            raise InvalidInput(
                f"max_tokens={max_tokens}: the choice {choice!r} has {len(tokens)} tokens; raise "
                "max_tokens, or leave it out (choices bound the answer by themselves)"
            )


def _checked_choices(choices: Sequence[str]) -> tuple[str, ...]:
    if isinstance(choices, str) or not isinstance(choices, Sequence):
        raise InvalidInput(f'choices={choices!r} must be a list of strings, e.g. ["yes", "no"]')
    if not all(isinstance(one, str) and one.strip() for one in choices):
        raise InvalidInput(f"choices={choices!r} must hold strings that are not blank")
    if not choices or len(set(choices)) < len(choices):
        raise InvalidInput(f"choices={choices!r} must hold at least one string, each once")
    return tuple(choices)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptEncoder:
    """Makes tokens of text for one model.

    Attributes:
        tokenizer: the model's.
        template: the model's.
        limits: what one step can take.
        stop_ids: of the model: tokens that end an answer.
        vocab_size: of the model, if tokens are to be checked against it.
        choice_temperature: the model's, at which the shares of choices are calibrated.
    """

    tokenizer: Tokenizer
    template: Template
    limits: Limits
    stop_ids: tuple[int, ...] = ()
    vocab_size: int | None = None
    choice_temperature: float = 1.0

    def ask(self, question: str | Messages, settings: Settings) -> Question:
        """A question with its settings, in tokens.

        Raises:
            InvalidInput: the question is no text or empty, messages are none that end with a
                question, or a choice cannot be scored.
            PromptTooLong: question and answer exceed the largest declared tail.
        """
        if isinstance(question, list | tuple):
            return self._turn(checked_messages(question), settings)
        text = checked_text("question", question)
        if not text:
            raise InvalidInput("question='' is empty; ask something")
        self._check_tail("question", len(text))
        tokens = self._int32(self.template.question_tokens(self.tokenizer, text))
        return self._question(text, tokens, settings)

    def conversation(self, messages: Messages, settings: Settings) -> tuple[Tokens, Question]:
        """A conversation in two halves: what is read first, which conversations that go on with it
        share, and the end of it as a question. An answer whose length is left open may be as long
        as a tail holds, and as the model's positions go.

        Raises:
            InvalidInput: the messages are none that end with a question, or as `ask`.
            CapacityExceeded: no session has cells for them.
            PromptTooLong: the answer is longer than the largest declared tail.
        """
        checked = checked_messages(messages)
        self.check_characters("the conversation", sum(len(one["content"]) for one in checked))
        tokens = self._int32(conversation_tokens(self.template, self.tokenizer, checked))
        asked = tokens[-CONVERSATION_TAIL:]
        opening = tokens[: len(tokens) - len(asked)]
        if settings.max_tokens is None and settings.choices is None:
            left = self.limits.max_context - len(tokens)
            most = min(left, self.limits.tail_cells - len(asked)) + 1
            settings = dataclasses.replace(settings, max_tokens=max(1, most))
        question = self._question(checked[-1]["content"], asked, settings)
        question.check_reach(len(opening), self.limits)
        return opening, question

    def _turn(self, messages: Sequence[Message], settings: Settings) -> Question:
        """Messages that are asked of what a session has read."""
        if len(messages) == 1:
            return self.ask(messages[0]["content"], settings)
        self._check_tail("the conversation", sum(len(one["content"]) for one in messages))
        tokens = self._int32(turn_tokens(self.template, self.tokenizer, messages))
        return self._question(messages[-1]["content"], tokens, settings)

    def _check_tail(self, what: str, characters: int) -> None:
        if characters > _CHARACTERS_PER_CELL * self.limits.tail_cells:
            raise PromptTooLong(
                f"{what} has {characters:,} characters, and at most {self.limits.tail_cells} "
                "tokens with its answer; push what is to be read, and ask about it"
            )

    def _question(self, question: str, tokens: Tokens, settings: Settings) -> Question:
        """A question in tokens, with its settings."""
        if len(tokens) == 0:
            raise InvalidInput(f"question={question!r} has no tokens in this model's vocabulary")
        choices = settings.choices
        stop = self.template.stops(self.tokenizer) if settings.stop is None else settings.stop
        asked = Question(
            question=question,
            tokens=tokens,
            max_tokens=(None if choices else settings.max_tokens) or DEFAULT_MAX_TOKENS,
            sampling=settings.sampling,
            stop=stop,
            choices=choices,
            choice_tokens=tuple(self._whole(question, one, stop) for one in choices or ()),
            answer_tokens=tuple(self._choice(question, one) for one in choices or ()),
            choice_temperature=self.choice_temperature,
        )
        asked.check(self.limits)
        _check_choice_lengths(asked, settings.max_tokens)
        return asked

    def check_text(self, name: str, text: object) -> None:
        """Refuses what is no text, and a text that no session has the cells for, before tokens are
        made of it.

        Args:
            name: what the caller calls it.
            text: as given.

        Raises:
            InvalidInput: it is no text.
            CapacityExceeded: it is far too long.
        """
        self.check_characters(name, len(checked_text(name, text)))

    def check_characters(self, name: str, characters: int) -> None:
        """Refuses so many characters at once.

        Raises:
            CapacityExceeded: they are far more than a session has cells for.
        """
        most = _CHARACTERS_PER_CELL * self.limits.session_cells
        if characters > most:
            raise CapacityExceeded(
                f"{name} has {characters:,} characters; a session of {self.limits.session_cells:,} "
                f"cells takes at most {most:,} at once ({_CHARACTERS_PER_CELL} a cell), and no "
                "tokens were made of it. Give less at once, or an engine with more session_cells"
            )

    def opening(self, prefix: str) -> Tokens:
        """What a session starts with.

        Raises:
            InvalidInput: the prefix is no text.
            CapacityExceeded: no session has cells for it.
        """
        self.check_text("prefix", prefix)
        return self._int32(self.template.open_tokens(self.tokenizer, prefix))

    def first_place(self, prefix: str | None) -> Place:
        """What the first entry behind a prefix follows; None for one that is not known."""
        if prefix is None:
            return "text"
        return self.template.first_entry_place(self.tokenizer, prefix)

    def entry(self, text: str, place: Place = "text") -> Tokens:
        """One entry, which is a text, and what it follows."""
        return self._int32(self.template.entry_tokens(self.tokenizer, text, place))

    def _whole(self, question: str, choice: str, stop: tuple[str, ...]) -> Tokens:
        """A choice with what ends the answer: the template's end of a turn, else a stop string,
        else the model's end of a text. Nothing, if the model has none of these."""
        ended_by = self.template.stop_ids(self.tokenizer) or (() if stop else self.stop_ids)
        if not ended_by and stop and not choice.endswith(stop[0]):
            return self._choice(question, choice + stop[0])
        own = self._choice(question, choice)
        return np.append(own, np.int32(ended_by[0])) if ended_by else own

    def _choice(self, question: str, choice: str) -> Tokens:
        tokens = self._int32(self.template.answer_tokens(self.tokenizer, question, choice))
        if len(tokens) == 0:
            raise InvalidInput(f"the choice {choice!r} has no tokens in this model's vocabulary")
        return tokens

    def _int32(self, tokens: list[int]) -> Tokens:
        """Tokens for the device, all of which the model has."""
        made = np.asarray(tokens, np.int32)
        if self.vocab_size is not None and len(made) and int(made.max()) >= self.vocab_size:
            raise InvalidInput(
                f"the tokenizer made token {int(made.max())} of this text, and the model has "
                f"{self.vocab_size}: they do not belong together, or the model's embeddings were "
                "not resized when the token was added"
            )
        return made
