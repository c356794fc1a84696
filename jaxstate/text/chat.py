"""Hugging Face chat templates as `Template`s.

Comes in: Jinja source, from a directory, GGUF key/values or the caller. Goes out: a `Template`.
Does not know: tokenizers, models.

A chat template is a program over a whole conversation; a session needs its two halves, before the
data and after it.
So the template is run once, here, with markers for the prefix, the data and the question, and its
output is cut at them. That is only right if each marker comes back once and in order, and what is
asked does not depend on the prefix;
anything else is refused. A template that writes the date writes the date of this one run; the
template is known by its source (`Template.source`), so it stays the same template on the next day.

A reasoning block that the template opens at the start of an answer is closed at once: what is asked
for is the answer.

Where the prefix goes: into the system message if the template has a place for it; if the template
refuses or drops system messages, to the start of the user's turn, with an empty line after it.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jaxstate.errors import UnsupportedModel
from jaxstate.text.gguf_vocab import adds_bos_in_gguf, special_text_from_gguf
from jaxstate.text.hf_files import bos_setting, read_object, read_utf8, special_text
from jaxstate.text.template import Template

_PREFIX, _DATA, _QUESTION, _ANSWER = (
    f"@@jaxstate-{name}@@" for name in ("prefix", "data", "question", "answer")
)
_ASKED = f"{_DATA}\n{_QUESTION}"
_Message = dict[str, str]


def chat_template(
    jinja_source: str, *, bos: str, eos: str, add_bos: bool = True, now: datetime | None = None
) -> Template:
    """Cuts a chat template into what opens a session and what asks a question.

    Args:
        jinja_source: the template.
        bos: how BOS is written; "" for none. Sessions open with it exactly once, whether or not the
            template writes it.
        eos: how EOS is written; "" for none.
        add_bos: False for models whose texts do not open with BOS: it is then written only if the
            template writes it.
        now: what `strftime_now` says; None for the time of the call.

    Raises:
        UnsupportedModel: the template fails, loses or repeats a message, or cannot be cut.
    """
    program = ChatProgram(jinja_source, bos=bos, eos=eos, now=now or datetime.now())
    bare, *asking = program.cut([_user(_ASKED)], [_DATA, _QUESTION])
    before, after, *asking_after_prefix = _with_prefix(program)
    if asking != asking_after_prefix:
        raise UnsupportedModel(
            "the chat template asks differently after a system message; "
            "a session cannot be opened before its questions"
        )
    return Template(
        bare=opened(bare, bos, add_bos),
        opening=(opened(before, bos, add_bos), after),
        asking=(asking[0], asking[1] + closes_reasoning(asking[1])),
        answer_end=_answer_end(program),
        next_turn=_next_turn(program),
        source=json.dumps([jinja_source, bos, eos, add_bos]),
    )


def find_template(directory: Path, jinja_source: str | None = None) -> Template | None:
    """The chat template of a Hugging Face directory, or None if it has none.

    Args:
        directory: of the model.
        jinja_source: another one, instead of the directory's.

    chat_template.jinja comes before `chat_template` in tokenizer_config.json, which may be a list
    of named ones, of which "default" is taken.

    Raises:
        UnsupportedModel: the files are damaged, or the template cannot be used.
    """
    file = directory / "chat_template.jinja"
    config = read_object(directory / "tokenizer_config.json")
    source = jinja_source
    if source is None:
        source = read_utf8(file) if file.is_file() else _source(config.get("chat_template"))
    if source is None:
        return None
    return chat_template(
        source,
        bos=special_text(directory, "bos_token") or "",
        eos=special_text(directory, "eos_token") or "",
        # transformers encodes a conversation without what the tokenizer puts around a text.
        add_bos=bos_setting(directory) is True,
    )


def template_from_gguf(
    metadata: Mapping[str, object], jinja_source: str | None = None
) -> Template | None:
    """The chat template inside a GGUF file, or `jinja_source` instead; None if there is none.

    Raises:
        UnsupportedModel: the key/values are inconsistent, or the template cannot be used.
    """
    source = jinja_source or _source(metadata.get("tokenizer.chat_template"))
    if source is None:
        return None
    return chat_template(
        source,
        bos=special_text_from_gguf(metadata, "bos") or "",
        eos=special_text_from_gguf(metadata, "eos") or "",
        add_bos=adds_bos_in_gguf(metadata),
    )


class ChatProgram:
    """A compiled chat template with the names that transformers gives it."""

    def __init__(self, source: str, *, bos: str, eos: str, now: datetime) -> None:
        try:
            self._template = _environment(now).from_string(source)
        except jinja2.TemplateError as error:
            raise UnsupportedModel(f"the chat template is not valid Jinja: {error}") from error
        self._names: dict[str, object] = {
            "bos_token": bos,
            "eos_token": eos,
            "enable_thinking": False,
            "tools": None,
            "documents": None,
        }

    def render(self, messages: Sequence[_Message], *, answer: bool = True) -> str:
        """The conversation as the template writes it, with the beginning of an answer."""
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=answer,
                **self._names,
            )
        except Exception as error:  # a template is a program: it may fail in any way
            raise UnsupportedModel(f"the chat template fails: {error}") from error

    @functools.cached_property
    def takes_system(self) -> bool:
        """Whether it has a place for a system message."""
        try:
            return _PREFIX in self.render([_system(_PREFIX), _user(_ASKED)])
        except UnsupportedModel:  # "System role not supported"
            return False

    @functools.cached_property
    def strips(self) -> frozenset[str]:
        """The roles around whose messages it takes the white space away."""
        padded = f"  {_PREFIX}  "
        written = {
            "system": [_system(padded), _user(_ASKED)],
            "user": [_user(padded)],
            "assistant": [_user(_ASKED), {"role": "assistant", "content": padded}, _user(_DATA)],
        }
        return frozenset(role for role, turns in written.items() if self._loses(padded, turns))

    def _loses(self, text: str, turns: Sequence[_Message]) -> bool:
        try:
            return text not in self.render(turns)
        except UnsupportedModel:  # it takes no such message at all
            return False

    def cut(
        self, messages: Sequence[_Message], markers: Sequence[str], *, answer: bool = True
    ) -> list[str]:
        """The text before, between and after the markers."""
        text = self.render(messages, answer=answer)
        counts = {marker: text.count(marker) for marker in markers}
        places = [text.find(marker) for marker in markers]
        if set(counts.values()) != {1} or places != sorted(places):
            raise UnsupportedModel(
                "the chat template does not bring each message once and in order "
                f"(times found: {counts}); "
                "its sessions cannot be opened before their questions are known"
            )
        pieces: list[str] = []
        for marker in markers:
            piece, _, text = text.partition(marker)
            pieces.append(piece)
        return [*pieces, text]


def _with_prefix(program: ChatProgram) -> list[str]:
    """Before the prefix, after it, before the question, after it."""
    markers = [_PREFIX, _DATA, _QUESTION]
    if program.takes_system:
        return program.cut([_system(_PREFIX), _user(_ASKED)], markers)
    return program.cut([_user(f"{_PREFIX}\n\n{_ASKED}")], markers)


def _answer_end(program: ChatProgram) -> str:
    messages = [_user(_ASKED), {"role": "assistant", "content": _ANSWER}]
    return program.cut(messages, [_ANSWER], answer=False)[1]


def _next_turn(program: ChatProgram) -> str:
    """What stands between an answer and what the user says next; "" if the template takes no
    further turn."""
    messages = [_user(_ASKED), {"role": "assistant", "content": _ANSWER}, _user(_PREFIX)]
    try:
        return program.cut(messages, [_ANSWER, _PREFIX], answer=False)[1]
    except UnsupportedModel:
        return ""


_REASONING = re.compile(
    r"<(?P<tag>[a-z_:]*(?:think|thinking|thought|reasoning|reason))>"
    r"|\[(?P<bracket>THINK)\]|<\|START_(?P<pipe>THINKING)\|>"
)


def closes_reasoning(text: str) -> str:
    """What closes the reasoning block that the beginning of an answer leaves open; "" if none is.

    With an empty line inside and one behind, as models that can leave it out (Qwen 3) are taught.
    """
    opened = list(_REASONING.finditer(text))
    if not opened:
        return ""
    last = opened[-1]
    if last["tag"]:
        closing = f"</{last['tag']}>"
    else:
        closing = "[/THINK]" if last["bracket"] else "<|END_THINKING|>"
    rest = text[last.end() :]
    if closing in rest:
        return ""
    return "\n" * max(0, 2 - rest.count("\n")) + closing + "\n\n"


def _system(content: str) -> _Message:
    return {"role": "system", "content": content}


def _user(content: str) -> _Message:
    return {"role": "user", "content": content}


def opened(text: str, bos: str, add_bos: bool) -> str:
    """What a text begins with: BOS once, if the template writes it or texts open with it."""
    if not bos:
        return text
    written = text.startswith(bos)
    while text.startswith(bos):
        text = text.removeprefix(bos)
    return bos + text if written or add_bos else text


def _source(value: object) -> str | None:
    """A template stored as a string, or the one called "default" in a list of named ones."""
    if value is None or isinstance(value, str):
        return value or None
    named: dict[str, str] = {}
    for item in value if isinstance(value, list) else []:
        match item:
            case {"name": str(name), "template": str(template)}:
                named[name] = template
    if "default" not in named:
        raise UnsupportedModel(f"there is no chat template called 'default', only {sorted(named)}")
    return named["default"]


class _Generation(Extension):
    """`{% generation %}`, which marks text for training and changes nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements inside, as they are."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment(now: datetime) -> ImmutableSandboxedEnvironment:
    """As in transformers: a template comes with a model, and is not trusted."""

    def raise_exception(message: str) -> str:
        raise jinja2.TemplateError(message)

    def strftime_now(form: str) -> str:
        return now.strftime(form)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which models have not seen."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
