"""What a crash test knows by itself: what its clients sent, and what they were told.

Comes in: reports of clients, each sent before a call and after it. Goes out: sessions with their
pushes and questions, and whether each is there, is not there, or may be. Does not know: journals,
engines, processes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from jaxstate.engine.sessions.dedup import receipt_of

# One line of JSON; what is in it depends on its first key.
Report: TypeAlias = Mapping[str, Any]
ClientSeq: TypeAlias = tuple[str, int]


@dataclass(eq=False)
class SentPush:
    """A push that a client sent.

    Attributes:
        texts: its entries.
        receipt: as `receipt_json`; None as long as its fate is not known.
        missed: nobody was told that it was taken, and a journal did not have it.
    """

    texts: tuple[str, ...]
    receipt: str | None = None
    missed: bool = False

    @property
    def first(self) -> int:
        """Number of its first entry."""
        assert self.receipt is not None, "its fate is not known"
        return receipt_of(self.receipt).first

    @property
    def dropped(self) -> Iterator[int]:
        """Entries that it displaced."""
        assert self.receipt is not None, "its fate is not known"
        spans = receipt_of(self.receipt).dropped
        return itertools.chain.from_iterable(range(one.first, one.last + 1) for one in spans)


@dataclass(eq=False)
class Stream:
    """A session.

    Attributes:
        name: its id.
        prefix: what it starts with; nothing for a fork.
        parent: that it was forked from.
        version: at which; None as long as nobody looked.
        between: the least and the most that it can be, if it was acknowledged.
        there: whether it was opened; None: not known.
        ended: whether it was closed; None: not known.
        erased: whether nothing of it may be left; None: not known.
        pushes: by client and number.
        flashes: by question: whether it is registered; None: not known.
        also_dropped: entries that pushes of unknown fate displaced, whose receipts were erased.
        seen: the largest version that somebody saw it have.
        settled: it has ended, and was looked at since.
    """

    name: str
    prefix: str = ""
    parent: Stream | None = None
    version: int | None = None
    between: tuple[int, int] | None = None
    there: bool | None = None
    ended: bool | None = False
    erased: bool | None = False
    pushes: dict[ClientSeq, SentPush] = field(default_factory=dict[ClientSeq, SentPush])
    flashes: dict[str, bool | None] = field(default_factory=dict[str, bool | None])
    also_dropped: set[int] = field(default_factory=set[int])
    seen: int = -1
    settled: bool = False

    @property
    def forebears(self) -> list[Stream]:
        """Whose entries it has read, the nearest first."""
        return [] if self.parent is None else [self.parent, *self.parent.forebears]

    @property
    def root(self) -> Stream:
        """What it, or its first forebear, was opened as."""
        return self if self.parent is None else self.parent.root

    @property
    def dropped(self) -> set[int]:
        """Its own entries that were displaced."""
        taken = (one for one in self.pushes.values() if one.receipt is not None)
        told = itertools.chain.from_iterable(one.dropped for one in taken)
        return self.also_dropped.union(told)

    def entries(self) -> dict[int, str]:
        """Its own entries by number, the displaced ones too."""
        taken = [one for one in self.pushes.values() if one.receipt is not None]
        return {one.first + n: text for one in taken for n, text in enumerate(one.texts)}

    def read(self) -> list[str]:
        """The entries that it has read, in order."""
        return [text for _, text in sorted(self.numbered().items())]

    def numbered(self, version: int | None = None) -> dict[int, str]:
        """The entries that it has read at a version, by number; None for all."""
        before = {} if self.parent is None else self.parent.numbered(self.version)
        dropped = self.dropped
        own = {
            number: text
            for number, text in self.entries().items()
            if number not in dropped and (version is None or number <= version)
        }
        return {**before, **own}

    @property
    def last(self) -> int:
        """Number of its last entry."""
        return max([self.version or 0, *self.entries()])


class Known:
    """Takes reports.

    Args:
        broke: is told what must not happen.

    Attributes:
        streams: by name; those that certainly never came to be are not among them.
        seqs: the number that each client gave its last push.
        counts: what was acknowledged, refused and repeated.
    """

    def __init__(self, broke: Callable[[str], None]) -> None:
        self.streams: dict[str, Stream] = {}
        self.seqs: dict[str, int] = {}
        self.counts: Counter[str] = Counter()
        self._broke = broke
        self._under_way: dict[int, Report] = {}

    def told(self, report: Report) -> None:
        """One report: {"op": n, "do": …} before a call, {"ok": n, …} or {"no": n, …} after it; or
        {"saw": a session, …} for a version that it had."""
        if "saw" in report:
            stream = self.streams[report["saw"]]
            stream.seen = max(stream.seen, report["version"])
        elif "op" in report:
            self._under_way[report["op"]] = report
            getattr(self, f"_sent_{report['do']}")(report)
        elif "ok" in report:
            sent = self._under_way.pop(report["ok"])
            self.counts[f"{sent['do']}, acknowledged"] += 1
            getattr(self, f"_done_{sent['do']}")(sent, report)
        else:
            sent = self._under_way.pop(report["no"])
            self.counts[f"{sent['do']}, {report['why']}"] += 1
            getattr(self, f"_refused_{sent['do']}")(sent)

    def killed(self) -> None:
        """Nobody will say what became of the calls that are under way."""
        for sent in self._under_way.values():
            self.counts[f"{sent['do']}, unknown"] += 1
        self._under_way.clear()

    @property
    def open(self) -> list[Stream]:
        """Sessions that are there and were not closed."""
        return [one for one in self.streams.values() if one.there and one.ended is False]

    def _sent_open(self, sent: Report) -> None:
        name = sent["session"]
        self.streams[name] = Stream(name, prefix=sent["prefix"])

    def _sent_fork(self, sent: Report) -> None:
        name = sent["session"]
        self.streams[name] = Stream(name, parent=self.streams[sent["parent"]])

    def _done_open(self, sent: Report, report: Report) -> None:
        self.streams[sent["session"]].there = True

    def _done_fork(self, sent: Report, report: Report) -> None:
        stream = self.streams[sent["session"]]
        stream.there, stream.between = True, (report["least"], report["most"])

    def _refused_open(self, sent: Report) -> None:
        del self.streams[sent["session"]]

    _refused_fork = _refused_open

    def _sent_close(self, sent: Report) -> None:
        stream = self.streams[sent["session"]]
        if stream.ended is False:  # two clients may close it
            stream.ended = None

    def _done_close(self, sent: Report, report: Report) -> None:
        self.streams[sent["session"]].ended = True

    def _refused_close(self, sent: Report) -> None:
        self._broke(f"session {sent['session']} could not be closed")

    def _sent_erase(self, sent: Report) -> None:
        self._sent_close(sent)
        stream = self.streams[sent["session"]]
        if stream.erased is False:
            stream.erased = None

    def _done_erase(self, sent: Report, report: Report) -> None:
        stream = self.streams[sent["session"]]
        stream.ended = stream.erased = True

    def _refused_erase(self, sent: Report) -> None:
        """The engine was closed: it may have come too late, or just in time."""

    def _sent_push(self, sent: Report) -> None:
        client, seq = sent["client"], sent["seq"]
        stream, texts = self.streams[sent["session"]], tuple(sent["texts"])
        self.seqs[client] = max(self.seqs.get(client, 0), seq)
        if (client, seq) in stream.pushes:
            self.counts["pushes repeated"] += 1
        stream.pushes.setdefault((client, seq), SentPush(texts))

    def _done_push(self, sent: Report, report: Report) -> None:
        push = self.streams[sent["session"]].pushes[sent["client"], sent["seq"]]
        if push.receipt is None:
            push.receipt = report["receipt"]
            self.counts["entries acknowledged"] += len(push.texts)
            self.counts["entries displaced"] += sum(1 for _ in push.dropped)
        elif push.receipt != report["receipt"]:
            self._broke(f"{sent} was repeated: {report['receipt']}, and before: {push.receipt}")

    def _refused_push(self, sent: Report) -> None:
        pushes, key = self.streams[sent["session"]].pushes, (sent["client"], sent["seq"])
        if pushes[key].receipt is None:
            del pushes[key]
        elif self.streams[sent["session"]].ended is False:
            self._broke(f"{sent} was refused, and had the receipt {pushes[key].receipt}")

    def _sent_flash(self, sent: Report) -> None:
        self.streams[sent["session"]].flashes[sent["question"]] = None

    _sent_unflash = _sent_flash

    def _done_flash(self, sent: Report, report: Report) -> None:
        self.streams[sent["session"]].flashes[sent["question"]] = True

    def _done_unflash(self, sent: Report, report: Report) -> None:
        self.streams[sent["session"]].flashes[sent["question"]] = False

    def _refused_flash(self, sent: Report) -> None:
        self.streams[sent["session"]].flashes[sent["question"]] = False

    def _refused_unflash(self, sent: Report) -> None:
        self.streams[sent["session"]].flashes[sent["question"]] = True
