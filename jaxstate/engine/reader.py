"""One session that is read entry by entry and asked in between, synchronously.

Comes in: text. Goes out: the version after each entry, and answers that name the version they saw.
Version v means: entries 1 .. v are in the cells, and nothing else. Does not know: files, terminals,
other sessions.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import jax

from jaxstate.cells.session import SessionState
from jaxstate.errors import CapacityExceeded, SnapshotDamaged
from jaxstate.model.bundle import Model
from jaxstate.persist.snapshot import SnapshotInfo, inspect_snapshot, restore_state, save_state
from jaxstate.records import FinishReason, Sampling
from jaxstate.steps.functional import extend, init_state, query


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer of a `StreamReader`.

    Attributes:
        question: as asked.
        text: the answer.
        version: entries that it saw.
        context_tokens: committed cells that it saw.
        answer_tokens: tokens of the answer.
        latency_s: seconds from the call to the text.
        finish_reason: what ended it.
    """

    question: str
    text: str
    version: int
    context_tokens: int
    answer_tokens: int
    latency_s: float
    finish_reason: FinishReason


class StreamReader:
    """A session with the number of entries that it has read.

    Args:
        model: with a tokenizer.
        state: what has been read so far.
        version: how many entries that is.
    """

    def __init__(self, model: Model, state: SessionState, version: int) -> None:
        self.model = model
        self.state = state
        self.version = version
        self.length_tokens = int(state.length)

    @classmethod
    def open(cls, model: Model, *, cells: int, prefix: str = "") -> StreamReader:
        """A new session that has read its opening and prefix.

        Raises:
            TextUnavailable: the model has no tokenizer.
            CapacityExceeded: the prefix alone does not fit.
        """
        opening = model.template.open_tokens(model.text, prefix)
        state = init_state(model, cells)
        return cls(model, extend(model, state, opening) if opening else state, 0)

    @classmethod
    def restore(
        cls, path: str | os.PathLike[str], model: Model, *, cells: int | None = None
    ) -> StreamReader:
        """A session that `save` wrote, at its version.

        Raises:
            SnapshotError: as `restore_state`.
            CapacityExceeded: it does not fit `cells`.
        """
        version = saved_entries(path, inspect_snapshot(path))
        return cls(model, restore_state(path, model, cells), version)

    @property
    def cells(self) -> int:
        """Capacity in tokens."""
        return self.state.layout.cells

    def push(self, entry: str) -> int:
        """Reads one entry and returns its version.

        Raises:
            CapacityExceeded: it does not fit; the session is as before.
        """
        tokens = self.model.template.entry_tokens(self.model.text, entry)
        if len(tokens) > self.cells:
            raise CapacityExceeded(
                f"the entry has {len(tokens)} tokens; the whole session holds {self.cells} cells"
            )
        self.state = extend(self.model, self.state, tokens)
        self.length_tokens += len(tokens)
        self.version += 1
        return self.version

    def ask(self, question: str, *, max_tokens: int, sampling: Sampling | None = None) -> Reply:
        """Answers a question at the current version; the session stays as it is.

        Raises:
            PromptTooLong: question and answer exceed the largest tail.
        """
        started = time.perf_counter()
        template, tokenizer = self.model.template, self.model.text
        result = query(
            self.model,
            self.state,
            template.question_tokens(tokenizer, question),
            max_tokens,
            sampling=sampling,
            stop=template.stop,
        )
        return Reply(
            question=question,
            text=(result.text or "").strip(),
            version=self.version,
            context_tokens=self.length_tokens,
            answer_tokens=len(result.tokens),
            latency_s=time.perf_counter() - started,
            finish_reason=result.finish_reason,
        )

    def wait(self) -> None:
        """Returns when everything pushed is in the cells (steps run asynchronously)."""
        jax.block_until_ready(self.state.ready)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the session with its version and the model's source; it stays usable."""
        notes = {"entries": self.version, "model": self.model.source}
        save_state(path, self.model, self.state, notes=notes)


def saved_entries(path: str | os.PathLike[str], info: SnapshotInfo) -> int:
    """The version of a saved session.

    Raises:
        SnapshotDamaged: it was not saved by a `StreamReader`.
    """
    entries = info.notes.get("entries")
    if not isinstance(entries, int):
        raise SnapshotDamaged(f"{path} does not say how many entries it has read")
    return entries
