"""From what a caller wrote to what the engine can run: questions, choices and entries in tokens.

Comes in: text and settings as a caller gave them. Goes out: an `Asked`, or an error that says what
is allowed. Does not know: sessions, versions, devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxstate.engine.executor import Limits, Tokens
from jaxstate.engine.runs import Asked
from jaxstate.engine.values import Answer
from jaxstate.errors import InvalidInput
from jaxstate.records import Sampling, checked_int
from jaxstate.steps.checks import checked_stop
from jaxstate.text import Place, Template, Tokenizer

DEFAULT_MAX_TOKENS = 16
GREEDY = Sampling()


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

    def fit(self, asked: Asked) -> bool:
        """Whether `asked` is what these settings ask for, but for the length of the answer."""
        return (
            self.choices in (None, asked.choices)
            and self.stop in (None, asked.stop)
            and self.sampling == asked.sampling
        )

    def same_length(self, asked: Asked) -> bool:
        """Whether they let the answer be as long as `asked` does."""
        return self.max_tokens in (None, asked.max_tokens) or asked.choices is not None

    def would_give(self, asked: Asked, answer: Answer, steps: int) -> bool:
        """Whether answering anew, at the same version, would give exactly that answer, for which
        so many tokens were chosen."""
        if not self.fit(asked):
            return False
        ended_sooner = (
            answer.finish_reason == "stop"
            and self.max_tokens is not None
            and steps <= self.max_tokens
        )
        return self.same_length(asked) or ended_sooner


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which version an answer is to have seen.

    Attributes:
        least: this or a later one.
        as_of: exactly this one; None for the newest.
        rebuild_tokens: that may be computed again for it.
    """

    least: int = 0
    as_of: int | None = None
    rebuild_tokens: int = 0

    def suits(self, version: int) -> bool:
        """Whether an answer that saw `version` is what is wanted."""
        return version >= self.least if self.as_of is None else version == self.as_of


ANY = Wanted()


def checked_wanted(min_version: int | None, as_of: int | None, rebuild_tokens: int) -> Wanted:
    """Versions as a caller gave them.

    Raises:
        InvalidInput: one of them is of a wrong type or out of range, or two contradict.
    """
    if as_of is None:
        least = 0 if min_version is None else checked_int("min_version", min_version)
        return Wanted(least=least, rebuild_tokens=checked_rebuild(rebuild_tokens))
    if min_version is not None:
        raise InvalidInput(
            f"as_of={as_of!r} with min_version={min_version!r}: one asks for exactly that version, "
            "which the session has, the other waits for it or a later one; give one of them"
        )
    if checked_int("as_of", as_of) < 0:
        raise InvalidInput(f"as_of={as_of} must be 0 (the opening alone) or more")
    return Wanted(as_of=int(as_of), rebuild_tokens=checked_rebuild(rebuild_tokens))


def checked_rebuild(rebuild_tokens: int) -> int:
    """How much may be computed again, as a caller gave it.

    Raises:
        InvalidInput: it is no integer, or negative.
    """
    if checked_int("rebuild_tokens", rebuild_tokens) < 0:
        raise InvalidInput(f"rebuild_tokens={rebuild_tokens} must not be negative")
    return int(rebuild_tokens)


def sampling_of(temperature: float, top_p: float, seed: int) -> Sampling:
    """`Sampling`; the usual one is neither made nor checked anew.

    Raises:
        InvalidInput: as `Sampling`.
    """
    usual = (type(temperature), type(top_p), type(seed)) == (float, float, int)
    if usual and temperature == 0.0 and top_p == 1.0 and seed == 0:
        return GREEDY
    return Sampling(temperature=temperature, top_p=top_p, seed=seed)


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
    max_tokens: int | None,
    choices: Sequence[str] | None,
    stop: Sequence[str] | None,
    temperature: float,
    top_p: float,
    seed: int,
) -> Settings:
    """The same with a sampling as a caller gave it.

    Raises:
        InvalidInput: as `checked_settings` and `Sampling`.
    """
    sampling = sampling_of(temperature, top_p, seed)
    return checked_settings(max_tokens=max_tokens, choices=choices, stop=stop, sampling=sampling)


def _checked_choices(choices: Sequence[str]) -> tuple[str, ...]:
    if isinstance(choices, str) or not isinstance(choices, Sequence):
        raise InvalidInput(f'choices={choices!r} must be a list of strings, e.g. ["yes", "no"]')
    if not all(isinstance(one, str) and one.strip() for one in choices):
        raise InvalidInput(f"choices={choices!r} must hold strings that are not blank")
    if not choices or len(set(choices)) < len(choices):
        raise InvalidInput(f"choices={choices!r} must hold at least one string, each once")
    return tuple(choices)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Makes tokens of text for one model.

    Attributes:
        tokenizer: the model's.
        template: the model's.
        limits: what one step can take.
        stop_ids: of the model: tokens that end an answer.
        vocab_size: of the model, if tokens are to be checked against it.
    """

    tokenizer: Tokenizer
    template: Template
    limits: Limits
    stop_ids: tuple[int, ...] = ()
    vocab_size: int | None = None

    def ask(self, question: str, settings: Settings) -> Asked:
        """A question with its settings, in tokens.

        Raises:
            InvalidInput: the question is no text or empty, or a choice cannot be scored.
            PromptTooLong: question and answer exceed the largest declared tail.
        """
        if not isinstance(question, str) or not question:
            raise InvalidInput(f"question={question!r} must be a text that is not empty")
        choices = settings.choices
        tokens = self._int32(self.template.question_tokens(self.tokenizer, question))
        if len(tokens) == 0:
            raise InvalidInput(f"question={question!r} has no tokens in this model's vocabulary")
        stop = self.template.stops(self.tokenizer) if settings.stop is None else settings.stop
        asked = Asked(
            question=question,
            tokens=tokens,
            max_tokens=settings.max_tokens or DEFAULT_MAX_TOKENS,
            sampling=settings.sampling,
            stop=stop,
            choices=choices,
            choice_tokens=tuple(self._whole(question, one, stop) for one in choices or ()),
            answer_tokens=tuple(self._choice(question, one) for one in choices or ()),
        )
        asked.check(self.limits)
        return asked

    def warm(self, question: str) -> Asked:
        """A question whose answer's first token is all that is wanted.

        Raises:
            InvalidInput, PromptTooLong: it cannot be asked, or not in one step.
        """
        asked = self.ask(question, Settings(max_tokens=1))
        if len(asked.tokens) > self.limits.question_tokens:
            raise InvalidInput(
                f"a warm question has at most {self.limits.question_tokens} tokens; this one has "
                f"{len(asked.tokens)}"
            )
        return asked

    def opening(self, prefix: str) -> Tokens:
        """What a session starts with.

        Raises:
            InvalidInput: the prefix is no text.
        """
        if not isinstance(prefix, str):
            raise InvalidInput(f"prefix={prefix!r} must be a text")
        return self._int32(self.template.open_tokens(self.tokenizer, prefix))

    def first_place(self, prefix: str | None) -> Place:
        """What the first entry behind a prefix follows; None for one that is not known."""
        if prefix is None:
            return "text"
        return self.template.first_entry_place(self.tokenizer, prefix)

    def entry(self, text: str, place: Place = "text") -> Tokens:
        """One entry, and what it follows.

        Raises:
            InvalidInput: it is no text.
        """
        if not isinstance(text, str):
            raise InvalidInput(f"entry={text!r} must be a text")
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
