"""Messages of a conversation in tokens, as the model's template writes them.

Comes in: messages (role and content), a `Template`. Goes out: the tokens of a whole conversation
up to where its answer begins, or of what is asked of a session that has read something. Does not
know: models, sessions.

Only the template's own parts may become special tokens; what somebody wrote is encoded together
with the template's plain text beside it, as in `Template`. One question alone is, in tokens, just
`Template.question_tokens`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal, TypedDict, get_args

from jaxstate.errors import InvalidInput, UnsupportedModel
from jaxstate.records import shown
from jaxstate.text.chat import ChatProgram, closes_reasoning, opened
from jaxstate.text.template import Part, Template, mixed_tokens
from jaxstate.text.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]

_DATA = "@@jaxstate-data@@"


class Message(TypedDict):
    """One message of a conversation.

    Attributes:
        role: "system" (the first only), "user" or "assistant".
        content: its text.
    """

    role: Role
    content: str


Messages = Sequence[Message]


def checked_messages(messages: object) -> list[Message]:
    """A conversation, as a caller gave it, that a model can answer.

    Raises:
        InvalidInput: something else; a system message that is not the first; two of one side in a
            row; or the last is not the user's.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise InvalidInput(f"messages={shown(messages)} must be a list of messages")
    checked = [_checked(place, one) for place, one in enumerate(messages)]
    turns = checked[1:] if checked and checked[0]["role"] == "system" else checked
    for place, one in enumerate(turns, len(checked) - len(turns)):
        wanted = "user" if (place - (len(checked) - len(turns))) % 2 == 0 else "assistant"
        if one["role"] != wanted:
            raise InvalidInput(
                f"messages[{place}] has the role {one['role']!r}, and {wanted!r} is its turn: a "
                "system message comes first if at all, then the user's and the assistant's in turn"
            )
    if not turns or turns[-1]["role"] != "user":
        raise InvalidInput("messages must end with one of the user's, which is to be answered")
    if not turns[-1]["content"]:
        raise InvalidInput("messages[-1] is empty; ask something")
    return checked


def _checked(place: int, one: object) -> Message:
    if not isinstance(one, Mapping) or set(one) != {"role", "content"}:
        raise InvalidInput(f'messages[{place}] must be {{"role": ..., "content": ...}}')
    role, content = one["role"], one["content"]
    for known in get_args(Role):
        if role == known and isinstance(content, str):
            return Message(role=known, content=content)
    if not isinstance(content, str):
        raise InvalidInput(f"messages[{place}]: its content must be a text")
    raise InvalidInput(f"messages[{place}]: role={shown(role)} is none of {get_args(Role)}")


def conversation_tokens(template: Template, tokenizer: Tokenizer, messages: Messages) -> list[int]:
    """A whole conversation in tokens, with what begins the answer.

    Args:
        template: the model's.
        tokenizer: likewise.
        messages: as `checked_messages`.

    Raises:
        InvalidInput: the template cannot write them, or a content is no text.
    """
    parts = _written(template, messages) if template.source else _plain(template, messages)
    return mixed_tokens(
        tokenizer, parts, start="start", after_special="start" if template.is_text else "special"
    )


def turn_tokens(template: Template, tokenizer: Tokenizer, messages: Messages) -> list[int]:
    """What is asked of a session, in tokens: everything behind what it has read.

    A system message comes before the first question, as part of it: the session's own was read when
    it was opened.

    Args, Raises: as `conversation_tokens`.
    """
    turns = _without_system(messages)
    parts = _asked(template, turns) if template.source else _questions(template, turns)
    return mixed_tokens(tokenizer, parts, start="text", after_special="special")


def _without_system(messages: Messages) -> list[Message]:
    """The system message as the beginning of the user's first."""
    if messages[0]["role"] != "system":
        return list(messages)
    system, first, *others = messages
    content = f"{system['content']}\n\n{first['content']}"
    return [Message(role="user", content=content), *others]


# --- templates of base models, and those made by hand ---


def _plain(template: Template, messages: Messages) -> list[Part]:
    """A document: the system message is what it opens with."""
    system, turns = "", list(messages)
    if turns[0]["role"] == "system":
        system, *turns = turns[0]["content"], *turns[1:]
    if not system:
        return [Part(template.bare, trusted=True), *_questions(template, turns)]
    before, after = template.opening
    if template.prefix_is_line and not system.endswith("\n"):
        system += "\n"
    opening = [Part(before, trusted=True), Part(system), Part(after, trusted=True)]
    return [*opening, *_questions(template, turns)]


def _questions(template: Template, turns: Messages) -> list[Part]:
    """Questions with the answers between them."""
    parts: list[Part] = []
    before, after = template.asking
    for one in turns:
        if one["role"] == "user":
            parts += [Part(before, trusted=True), Part(one["content"]), Part(after, trusted=True)]
        else:
            parts += [
                Part(template.answer_lead, trusted=True),
                Part(one["content"]),
                Part(template.answer_end, trusted=True),
            ]
    return parts


# --- chat templates ---


def _written(template: Template, messages: Messages) -> list[Part]:
    """A conversation as the chat template writes it."""
    program, bos, add_bos = _program(template.source, datetime.now().date().isoformat())
    kept = list(messages) if program.takes_system else _without_system(messages)
    begins, *others = _parts(program, kept, _rendered(program, kept))
    return _closed([Part(opened(begins.text, bos, add_bos), trusted=True), *others])


def _asked(template: Template, turns: Messages) -> list[Part]:
    """The same from behind the data in the first of the user's messages."""
    program, _, _ = _program(template.source, datetime.now().date().isoformat())
    _, _, behind = _rendered(program, turns, f"{_DATA}\n").partition(_DATA)
    return _closed(_parts(program, turns, behind))


def _rendered(program: ChatProgram, messages: Messages, data: str = "") -> str:
    """A conversation with marks for its contents, and data before the first of them."""
    written = [
        {"role": one["role"], "content": (data if place == 0 else "") + _mark(place)}
        for place, one in enumerate(messages)
    ]
    try:
        return program.render(written)
    except UnsupportedModel as error:
        raise InvalidInput(f"this model's template cannot write these messages: {error}") from error


def _mark(place: int) -> str:
    return f"@@jaxstate-message-{place}@@"


def _parts(program: ChatProgram, messages: Messages, rendered: str) -> list[Part]:
    """What the template writes, and between it the contents, wherever it puts them."""
    counts = [rendered.count(_mark(place)) for place in range(len(messages))]
    if set(counts) != {1}:
        raise InvalidInput(
            f"this model's template does not write each of these messages once (times: {counts})"
        )
    parts: list[Part] = []
    for place in sorted(range(len(messages)), key=lambda one: rendered.find(_mark(one))):
        role, content = messages[place]["role"], messages[place]["content"]
        before, _, rendered = rendered.partition(_mark(place))
        kept = content.strip() if role in program.strips else content
        parts += [Part(before, trusted=True), Part(kept)]
    return [*parts, Part(rendered, trusted=True)]


def _closed(parts: list[Part]) -> list[Part]:
    """The answer begins behind the reasoning block that a template opens."""
    ending = parts[-1].text
    return [*parts[:-1], Part(ending + closes_reasoning(ending), trusted=True)]


@functools.lru_cache(maxsize=8)
def _program(source: str, day: str) -> tuple[ChatProgram, str, bool]:
    """The program of a template, its BOS, and whether texts open with it; a template may write the
    day's date."""
    jinja_source, bos, eos, add_bos = json.loads(source)
    now = datetime.combine(datetime.fromisoformat(day).date(), datetime.now().time())
    return ChatProgram(jinja_source, bos=bos, eos=eos, now=now), bos, add_bos
