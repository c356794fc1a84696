"""A session as its users see it: push, ask, register, listen.

Comes in: text. Goes out: receipts, answers, events. Every call comes straight back, but for those
that say that they wait. Safe to use from any thread. Does not know: devices, the loop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager

from jaxstate.engine import registry
from jaxstate.engine.asking import Settings, Wanted, checked_wanted, settings_of
from jaxstate.engine.books import Book
from jaxstate.engine.conditions import Condition
from jaxstate.engine.handle import Handle
from jaxstate.engine.hits import FlashQuery
from jaxstate.engine.past import given_or_submitted
from jaxstate.engine.pushing import NewEntries, leave_line, new_entries, push
from jaxstate.engine.receipts import Pushed
from jaxstate.engine.registering import OnFire, new_registered
from jaxstate.engine.subscription import checked_timeout
from jaxstate.engine.values import Answer, Receipt
from jaxstate.engine.waiting import AskFuture, countdown
from jaxstate.errors import JournalError
from jaxstate.persist.journal import Ticket
from jaxstate.records import Durability


class Session(Handle):
    """A stream that is read once, and asked about. `Engine.open` makes it."""

    def push(
        self,
        entries: str | Sequence[str],
        *,
        client: str | None = None,
        client_seq: int | None = None,
        strict: bool = False,
        durability: Durability | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """Takes one entry or several, all or none, to be read in order.

        Returns once they are as durable as they are to be; with the policy "block" it waits while
        the queue is full.

        Args:
            entries: texts; each is tokenised on its own.
            client, client_seq: who pushes, and its own number of this push: a repeat gets the
                receipt of the first, and adds nothing.
            strict: refuse a number that does not follow the client's last.
            durability: "memory" (in the journal soon), "os" (written: a killed process loses
                nothing), "fsync" (synced: a machine that stops loses nothing); None for the
                engine's. Without a journal there is only "memory".
            timeout: seconds to wait for room at most.

        Raises:
            InvalidInput: no entries, something that is no text, or more than the queue holds.
            CapacityExceeded: the session will have no cells for them.
            BudgetExceeded: the engine, or the tenant, will have none.
            QueueFull: the queue is full (policies "reject" and, where nothing may be displaced,
                "drop_oldest" and `Coalesce`).
            TimedOut: no room within `timeout`.
            InvalidInput: `client_seq` was used for other entries before.
            SequenceGap: under strict order, numbers of the client are missing.
            JournalError: the journal could not be written; nothing was added.
            ClosedError: the session or the engine is closed.
        """
        left_s = countdown(timeout)
        new = self.prepare(entries, client, client_seq, strict, durability)
        if not self._desk.keeper.counts_at_once(new.level):
            self._desk.check_may_wait()
        try:
            while isinstance(outcome := self.push_prepared(new), Future):
                self._desk.outcome(outcome, left_s(), "the queue was full")
        except BaseException:
            self.give_up(new)
            raise
        self._desk.settled(outcome.ticket)
        return outcome.receipt

    def client_seq(self, client: str) -> int | None:
        """The largest number that a client has given a push of this session: where it goes on from
        after a restart. None if it has given none. Waits for those on their way to the journal.

        Raises:
            ClosedError: the session or the engine is closed.
        """
        while True:
            with self._desk.changing():
                self._book.check_open()
                ticket = self._book.receipts.on_its_way(client)
                read = self._book.receipts.unread(client)
                if ticket is None and read is None:
                    return self._book.receipts.last_of(client)
            if read is not None:
                read()
            if ticket is not None:
                with contextlib.suppress(JournalError):  # then it was taken back
                    self._desk.check_may_wait()
                    ticket.settled.result()

    def ask(
        self,
        question: str,
        *,
        max_tokens: int | None = None,
        choices: Sequence[str] | None = None,
        min_version: int | None = None,
        as_of: int | None = None,
        rebuild_tokens: int = 0,
        stop: Sequence[str] | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Answers a question at the newest committed version, or an earlier one; waits for it.

        The text of a flash query is answered from there if that is fresh and computing would give
        the same; what is left at None is then what the flash query has. A warm question with
        `choices` is answered from what is kept of it, if that is enough. Otherwise it is computed.

        Args:
            question: its text.
            max_tokens: of the answer; None for 16.
            choices: score these, each as a whole answer with what ends it, and answer with the
                best. With them nothing is drawn and nothing stops early: `stop`, `temperature`,
                `top_p` and `seed` are refused, and `max_tokens` bounds each choice.
            min_version: wait until the session has that version.
            as_of: a version that the session has: the opening and entries 1 .. `as_of`, nothing
                else. None for the newest.
            rebuild_tokens: where the cells of `as_of` are gone, compute as many again at most.
            stop: strings that end the answer, instead of the template's own.
            temperature, top_p: as in `Sampling`.
            seed: likewise; None draws one, which the answer names (`Answer.seed`).
            timeout: seconds at most; None for ever.

        Raises:
            InvalidInput, PromptTooLong: the question cannot be asked, or the version not be had.
            VersionUnavailable: its cells are gone, and computing them takes more tokens.
            BudgetExceeded: there is no room to compute them.
            CapacityExceeded: it would reach past the positions that the model was made for.
            TimedOut: it took longer; the question is taken off the device.
            StepFailed: the device failed.
            ClosedError: the session or the engine was closed.
        """
        checked_timeout(timeout)
        settings = settings_of(max_tokens, choices, stop, temperature, top_p, seed)
        wanted = checked_wanted(min_version, as_of, rebuild_tokens)
        outcome = self._asked(question, settings, wanted)
        if isinstance(outcome, Answer):
            return outcome
        return self._desk.outcome(outcome, timeout, "the question was not answered")

    def check(
        self,
        question: str,
        *,
        max_tokens: int | None = None,
        choices: Sequence[str] | None = None,
        stop: Sequence[str] | None = None,
    ) -> int:
        """Refuses what `ask` would refuse of the question itself, without asking it.

        Args:
            question, max_tokens, choices, stop: as for `ask`.

        Returns:
            Its tokens, the template's included.

        Raises:
            InvalidInput, PromptTooLong: it cannot be asked.
        """
        asked = self._asker.ask(question, settings_of(max_tokens, choices, stop))
        return len(asked.tokens)

    def submit(
        self,
        question: str,
        *,
        max_tokens: int | None = None,
        choices: Sequence[str] | None = None,
        min_version: int | None = None,
        as_of: int | None = None,
        rebuild_tokens: int = 0,
        stop: Sequence[str] | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> AskFuture:
        """Like `ask`, but returns a future at once; cancelling it ends the question."""
        settings = settings_of(max_tokens, choices, stop, temperature, top_p, seed)
        wanted = checked_wanted(min_version, as_of, rebuild_tokens)
        outcome = self._asked(question, settings, wanted)
        return AskFuture.of(outcome) if isinstance(outcome, Answer) else outcome

    def _asked(self, question: str, settings: Settings, wanted: Wanted) -> Answer | AskFuture:
        """The answer if it is there already, or its future."""
        desk, book = self._desk, self._book
        return given_or_submitted(desk, self._lives, self._asker, book, question, settings, wanted)

    def flash(
        self,
        question: str,
        *,
        max_tokens: int | None = None,
        choices: Sequence[str] | None = None,
        stop: Sequence[str] | None = None,
        when: Condition | None = None,
        on_fire: OnFire | None = None,
        min_interval_s: float = 0.0,
        deadline_s: float | None = None,
        staleness_s: float | None = None,
    ) -> FlashQuery:
        """Registers a question: from now on it is answered, in idle time, at every new version.

        Args:
            question: its text; each text once.
            max_tokens: of the answer; None for 16.
            choices: score these and answer with the best; not together with `stop`.
            stop: strings that end the answer, instead of the template's own.
            when: which answers are news; None: those whose text differs from the one before.
            on_fire: called with each answer that is news, on a thread for callbacks; an exception
                in it is logged.
            min_interval_s: answer it no more often than that.
            deadline_s: once its answer has been out of date for so long, it is as urgent as an ask.
            staleness_s: how old its answer may become while the session goes on reading, as far as
                that leaves half of the device to reading; None for the engine's
                (`EngineConfig.flash_staleness_s`).

        Raises:
            FlashLimit: the session has as many as it may.
            InvalidInput, PromptTooLong: the question cannot be asked, or is registered already.
        """
        self._desk.check_may_note()
        query, noted = self.noting_flash(
            question,
            settings_of(max_tokens, choices, stop),
            when=when,
            on_fire=on_fire,
            min_interval_s=min_interval_s,
            deadline_s=deadline_s,
            staleness_s=staleness_s,
        )
        self._desk.settled(noted)
        return query

    def noting_flash(
        self,
        question: str,
        settings: Settings,
        *,
        when: Condition | None,
        on_fire: OnFire | None,
        min_interval_s: float,
        deadline_s: float | None,
        staleness_s: float | None,
    ) -> tuple[FlashQuery, Ticket | None]:
        """What `flash` registers, and waits for."""
        registered = new_registered(
            self._asker,
            question,
            settings,
            when=when,
            on_fire=on_fire,
            min_interval_s=min_interval_s,
            deadline_s=deadline_s,
            staleness_s=staleness_s,
        )
        there, noted = registry.register(self._desk, self._book, registered)
        return FlashQuery(self._desk, self._book, there), noted

    def flashes(self) -> list[FlashQuery]:
        """The registered questions, in the order of registration."""
        with self._desk.lock:
            registered = list(self._book.flash)
        return [FlashQuery(self._desk, self._book, one) for one in registered]

    def unflash(self, flash_id: str) -> None:
        """Forgets a registered question.

        Raises:
            InvalidInput: there is none of that name.
        """
        self._desk.check_may_note()
        self._desk.settled(self.noting_unflash(flash_id))

    def noting_unflash(self, flash_id: str) -> Ticket | None:
        """What `unflash` waits for."""
        return registry.unregister(self._desk, self._book, flash_id)

    def warm(self, question: str) -> None:
        """Keeps, in idle time, what the model would begin an answer with at every new version.

        An `ask` of that text whose choices are whole answers of one token each then needs no device
        (`source="ready"`). Choices of more tokens, what ends them included, are scored when they
        are first asked for, and ready until the next version.

        Raises:
            FlashLimit: the session has as many as it may.
            InvalidInput, PromptTooLong: the question cannot be asked.
        """
        self._desk.check_may_note()
        self._desk.settled(self.noting_warm(question))

    def noting_warm(self, question: str) -> Ticket | None:
        """What `warm` waits for."""
        return registry.warm(self._desk, self._book, self._asker.warm(question))

    def unwarm(self, question: str) -> None:
        """Forgets a warm question.

        Raises:
            InvalidInput: it is not one.
        """
        self._desk.check_may_note()
        self._desk.settled(self.noting_unwarm(question))

    def noting_unwarm(self, question: str) -> Ticket | None:
        """What `unwarm` waits for."""
        return registry.unwarm(self._desk, self._book, question)

    def fork(
        self, id: str | None = None, *, version: int | None = None, rebuild_tokens: int = 0
    ) -> Session:
        """A session that has read what this one has, and from then on goes its own way; waits for
        the end of an entry that is half read. The two share their cells, and a copy is made of what
        one of them goes on to write. Flash queries and what waits in the queue stay here.

        Args:
            id: its name; None for one of our own.
            version: an earlier one that it is to have read, and goes on from; None for the newest.
            rebuild_tokens: where the cells of `version` are gone, compute as many again at most.

        Raises:
            InvalidInput: this session has no such version, or the id is in use or malformed.
            VersionUnavailable: its cells are gone, and computing them takes more tokens.
            BudgetExceeded: there are no cells for one more session.
            ClosedError: this session or the engine is closed.
        """
        self._desk.check_may_wait()
        book, future = self.forking(id, version, rebuild_tokens)
        with self.or_closed(book):
            self._desk.outcome(future, None, "the session was not forked")
            self._desk.settled(book.noted)
        return self.of(book)

    def forking(
        self, id: str | None, version: int | None, rebuild_tokens: int
    ) -> tuple[Book, Future[None]]:
        """What `fork` makes, and waits for."""
        return self._lives.fork(self._book, id, version, rebuild_tokens)

    def of(self, book: Book) -> Session:
        """Another session of the same engine."""
        return Session(self._desk, self._lives, self._asker, book, self._export)

    def or_closed(self, book: Book) -> AbstractContextManager[None]:
        """Closes a new session if whoever made it does not get it after all."""
        return self._desk.or_closed(book)

    def __enter__(self) -> Session:
        return self

    def prepare(
        self,
        entries: str | Sequence[str],
        client: str | None = None,
        client_seq: int | None = None,
        strict: bool = False,
        durability: Durability | None = None,
    ) -> NewEntries:
        """The first half of `push`: tokens, and keys where the policy wants them."""
        level = self._desk.keeper.level(durability)
        return new_entries(self._asker, self._book, entries, level, client, client_seq, strict)

    def push_prepared(self, new: NewEntries) -> Pushed | Future[None]:
        """The second half of `push`; a future to wait for, if there is no room now."""
        return push(self._desk, self._book, new)

    def give_up(self, new: NewEntries) -> None:
        """Nobody waits any more for room for a push."""
        leave_line(self._desk, self._book, new)
