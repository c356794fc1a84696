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
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxstate.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Template:
    """What a session and its questions look like to the model.

    Attributes:
        bare: what opens a session without a prefix.
        opening: what comes before and after a prefix that is not empty.
        asking: what comes before a question, and what closes it and begins the answer.
        stop: strings that end an answer.
        answer_end: what the template writes after an answer; its first special token ends one
            (`stop_ids`).
        prefix_is_line: whether the prefix is ended with a line break like an entry.
        answer_lead: what stands between a question and its answer when the model writes one.
    """

    bare: str
    opening: tuple[str, str]
    asking: tuple[str, str]
    stop: tuple[str, ...] = ()
    answer_end: str = ""
    prefix_is_line: bool = False
    answer_lead: str = ""

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
        return _tokens(tokenizer, self._opening_parts(prefix))

    def question_tokens(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """`question(text)` in tokens; the text cannot become a special token.

        Raises:
            InvalidInput: the question is no text.
        """
        before, after = self.asking
        return _tokens(tokenizer, (before, text, after))

    def entry_tokens(self, tokenizer: Tokenizer, entry: str) -> list[int]:
        """`entry(text)` in tokens, none of which is special.

        Raises:
            InvalidInput: the entry is no text.
        """
        return tokenizer.encode(self.entry(entry))

    def answer_tokens(self, tokenizer: Tokenizer, question: str, answer: str) -> list[int]:
        """The tokens of an answer right behind `question_tokens(question)`; none is special.

        Where the tokenizer would merge the end of the question with the answer, which the model
        never sees, the answer has its own tokens.

        Raises:
            InvalidInput: the question or the answer is no text.
        """
        before, after = self.asking
        spans_before, spans_after = tokenizer.special_spans(before), tokenizer.special_spans(after)
        if spans_after:
            written = after[spans_after[-1][1] :]
        else:
            written = before[spans_before[-1][1] if spans_before else 0 :] + question + after
        alone, both = written, written + self.answer_lead + answer
        asked, answered = tokenizer.encode(alone), tokenizer.encode(both)
        if answered[: len(asked)] == asked:
            return answered[len(asked) :]
        return tokenizer.encode(self.answer_lead + answer)

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The special token with which the template ends an answer, if any.

        An answer must stop at it as at the model's EOS; files often name only the latter.
        """
        spans = tokenizer.special_spans(self.answer_end)
        return tuple(token for _, _, token in spans[:1])

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
    )


def _line(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"


def _tokens(tokenizer: Tokenizer, parts: tuple[str, str, str]) -> list[int]:
    """Our text, the user's, ours again; plain stretches that touch are encoded as one."""
    before, user, after = parts
    if not user:
        return tokenizer.encode_template(before + after)
    spans_before, spans_after = tokenizer.special_spans(before), tokenizer.special_spans(after)
    head = spans_before[-1][1] if spans_before else 0
    tail = spans_after[0][0] if spans_after else len(after)
    return [
        *tokenizer.encode_template(before[:head]),
        *tokenizer.encode(before[head:] + user + after[:tail]),
        *tokenizer.encode_template(after[tail:]),
    ]
