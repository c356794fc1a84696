"""The text that is put around a prefix, entries and questions.

Comes in: text of the user (prefix, entries, questions). Goes out: what the model is to read, as
text or as tokens.
Does not know: where templates come from (`find_template`, `chat_template` make them), sessions,
models.

    opens(prefix)   entry  entry  entry ...   question(text) -> the answer
    -------------   --------------------      --------------
    once            as they arrive            on top of the session, thrown away after the answer

In tokens, only the template's own parts may become special tokens. What a user wrote goes through
`Tokenizer.encode`, together with the template's plain text beside it, so that " Why" after
"Question:" is the token that the model knows.

What is appended goes on with the text before it: an entry, and what asks a question, have none of
the spaces that a tokenizer puts in front of a text. So the tokens of opening and entries are those
of the whole text, except where merges would cross the border of an entry. (A question to a session
that has no text yet is encoded as if it had some.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxstate.text.pieces import Place
from jaxstate.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Template:
    """What a session and its questions look like to the model.

    Attributes:
        bare: what opens a session without a prefix.
        opening: what comes before and after a prefix that is not empty.
        asking: what comes before a question, and what closes it and begins the answer.
        stop: strings that end an answer, beside those of `stops`.
        answer_end: what the template writes after an answer; its first special token ends one
            (`stop_ids`), or, if it begins with plain text, that text (`stops`).
        next_turn: what stands between an answer and what the user says next.
        prefix_is_line: whether the prefix is ended with a line break like an entry.
        answer_lead: what stands between a question and its answer when the model writes one.
        source: what the template was made of, if it was made; by it the template is known again.
        is_text: whether a session reads one plain text, in front of which the tokenizer puts BOS.
    """

    bare: str
    opening: tuple[str, str]
    asking: tuple[str, str]
    stop: tuple[str, ...] = ()
    answer_end: str = ""
    next_turn: str = ""
    prefix_is_line: bool = False
    answer_lead: str = ""
    source: str = field(default="", compare=False, repr=False)
    is_text: bool = False

    @property
    def identity(self) -> str:
        """What tells this template from others: its source, which does not change with the date
        that was written into it; or, without one, all of it."""
        return self.source or repr(self)

    def opens(self, prefix: str) -> str:
        """What a session starts with: BOS, the prefix, and what comes before the first entry."""
        before, middle, after = self._opening_parts(prefix)
        return before + middle + after

    def question(self, text: str) -> str:
        """A question with what separates it from the entries and what begins its answer."""
        before, after = self.asking
        return before + text + after

    def entry(self, text: str) -> str:
        """An entry, ended with a line break if it has none."""
        return _line(text)

    def open_tokens(self, tokenizer: Tokenizer, prefix: str) -> list[int]:
        """`opens(prefix)` in tokens; the prefix cannot become a special token.

        Raises:
            InvalidInput: the prefix is no text.
        """
        place: Place = "start" if self.is_text else "special"
        return _tokens(tokenizer, self._opening_parts(prefix), "start", place)

    def first_entry_place(self, tokenizer: Tokenizer, prefix: str) -> Place:
        """What the first entry of a session follows: text, unless nothing or a special token
        stands before it."""
        opening = self.opens(prefix)
        spans = tokenizer.special_spans(opening)
        if len(opening) > (spans[-1][1] if spans else 0):
            return "text"
        return "start" if self.is_text or not spans else "special"

    def question_tokens(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """`question(text)` in tokens; the text cannot become a special token.

        Raises:
            InvalidInput: the question is no text.
        """
        before, after = self.asking
        return _tokens(tokenizer, (before, text, after), "text", "special")

    def entry_tokens(self, tokenizer: Tokenizer, entry: str, place: Place = "text") -> list[int]:
        """`entry(text)` in tokens, none of which is special.

        Args:
            tokenizer: the model's.
            entry: its text.
            place: what it follows: `first_entry_place` for the first of a session, else text.

        Raises:
            InvalidInput: the entry is no text.
        """
        return tokenizer.encode(self.entry(entry), place)

    def answer_tokens(self, tokenizer: Tokenizer, question: str, answer: str) -> list[int]:
        """The tokens of an answer right behind `question_tokens(question)`; none is special.

        Where the tokenizer would merge the end of the question with the answer, which the model
        never sees, the answer has its own tokens.

        Raises:
            InvalidInput: the question or the answer is no text.
        """
        before, after = self.asking
        spans_before, spans_after = tokenizer.special_spans(before), tokenizer.special_spans(after)
        place: Place = "special" if spans_before or spans_after else "text"
        if spans_after:
            written = after[spans_after[-1][1] :]
        else:
            written = before[spans_before[-1][1] if spans_before else 0 :] + question + after
        alone, both = written, written + self.answer_lead + answer
        asked, answered = tokenizer.encode(alone, place), tokenizer.encode(both, place)
        if answered[: len(asked)] == asked:
            return answered[len(asked) :]
        return tokenizer.encode(self.answer_lead + answer, "text")

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The special token with which the template ends an answer, if any.

        An answer must stop at it as at the model's EOS; files often name only the latter.
        """
        spans = tokenizer.special_spans(self.answer_end)
        return tuple(token for _, _, token in spans[:1])

    def stops(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        """The strings that end an answer: `stop`, and the end of a turn where it is plain text.

        Where a turn ends with nothing but white space, what begins the user's next one ends it.
        """
        spans = tokenizer.special_spans(self.answer_end)
        plain = self.answer_end[: spans[0][0] if spans else len(self.answer_end)].strip()
        if plain:
            return tuple(dict.fromkeys((*self.stop, plain)))
        if spans or not self.next_turn.strip() or tokenizer.special_spans(self.next_turn):
            return self.stop
        return tuple(dict.fromkeys((*self.stop, self.next_turn.rstrip())))

    def _opening_parts(self, prefix: str) -> tuple[str, str, str]:
        if not prefix:
            return self.bare, "", ""
        before, after = self.opening
        return before, _line(prefix) if self.prefix_is_line else prefix, after


def plain_template(bos: str | None) -> Template:
    """The template of base models: a document, "Question: ...", "Answer:", and one line of answer.

    Args:
        bos: how the token that opens a text is written (`Tokenizer.bos`), or None.
    """
    return Template(
        bare=bos or "",
        opening=(bos or "", ""),
        asking=("\nQuestion: ", "\nAnswer:"),
        stop=("\n",),
        prefix_is_line=True,
        answer_lead=" ",
        is_text=True,
    )


def _line(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"


def _tokens(
    tokenizer: Tokenizer, parts: tuple[str, str, str], start: Place, after_special: Place
) -> list[int]:
    """Our text, the user's, ours again, as `mixed_tokens`."""
    before, user, after = parts
    mixed = (Part(before, trusted=True), Part(user), Part(after, trusted=True))
    return mixed_tokens(tokenizer, mixed, start, after_special)


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of what a model is to read.

    Attributes:
        text: it.
        trusted: whether special tokens may be in it: it is the template's, and nobody else's.
    """

    text: str
    trusted: bool = field(default=False, kw_only=True)


def mixed_tokens(
    tokenizer: Tokenizer, parts: Sequence[Part], start: Place, after_special: Place
) -> list[int]:
    """Text of several hands in tokens; plain stretches that touch are encoded as one.

    Args:
        tokenizer: the model's.
        parts: in order.
        start: what all of it follows.
        after_special: what text behind a special token follows, as the tokenizer sees it.

    Raises:
        InvalidInput: a part is no text.
    """
    ids: list[int] = []
    plain, place = "", start
    for part in parts:
        at = 0
        for begin, end, token in tokenizer.special_spans(part.text) if part.trusted else ():
            ids += [*_plain(tokenizer, plain + part.text[at:begin], place), token]
            plain, place, at = "", after_special, end
        plain += part.text[at:]
    return ids + _plain(tokenizer, plain, place)


def _plain(tokenizer: Tokenizer, text: str, place: Place) -> list[int]:
    """Nothing has no tokens, not even the space in front of a text."""
    return tokenizer.encode(text, place) if text else []
