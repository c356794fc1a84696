"""Every error that jaxstate raises on purpose, as one tree.

    JaxstateError
    ├── InvalidInput (ValueError)    an argument is wrong: type, dtype, range, or empty
    │   └── PromptTooLong            a question and its answer exceed the largest declared tail
    ├── CapacityExceeded             a session has no cells left for what it was asked to read
    ├── BudgetExceeded               an engine has no cells left for another session
    ├── QueueFull                    a session's queue takes no more entries (policy "reject")
    ├── FlashLimit                   a session has as many registered questions as it may have
    ├── TimedOut (TimeoutError)      the caller's timeout passed; what was asked for is cancelled
    ├── ClosedError                  the engine or the session was closed
    │   └── EngineFailed             the engine's own thread died; its cause is chained
    ├── UnknownSession (KeyError)    no open session has that id
    ├── VersionUnavailable           an earlier version's cells are gone, and may not be computed
    ├── DeviceError                  JAX has no such device, or it has no memory for a model or pool
    ├── StepFailed                   the device failed in a step; its cause is chained
    │   └── NotFinite                it came to NaN or infinity, of which nothing is kept
    ├── StaleState                   a session state was used again after a step took it over
    ├── UnsupportedModel             a model that this version cannot run exactly, and every reason
    │   └── WeightsMismatch          tensors are missing, left over or misshapen, all of them listed
    ├── SequenceGap                  a client's push does not follow its last (strict order)
    ├── JournalError                 the journal could not be written; nothing was added
    │   ├── JournalInUse             another process, or engine, has it
    │   └── JournalDamaged           what it holds cannot be read, or does not match its checksums
    ├── TextUnavailable              text was asked of a model that has no tokenizer
    └── SnapshotError                a saved session cannot be used
        ├── SnapshotDamaged          files are missing, truncated or inconsistent
        └── FingerprintMismatch      it was saved by another model, tokenizer or layout

Each message says what was given, what is allowed, and what to do. Nothing is changed when one is
raised.
"""

from __future__ import annotations


class JaxstateError(Exception):
    """The root: catches everything that jaxstate raises on purpose."""


class InvalidInput(JaxstateError, ValueError):
    """An argument has the wrong type, dtype, shape or range, or is empty."""


class PromptTooLong(InvalidInput):
    """A question and the answer it may get exceed the largest declared tail bucket."""


class CapacityExceeded(JaxstateError):
    """The session's cells are full; the state is unchanged and still usable."""


class BudgetExceeded(JaxstateError):
    """The engine's cells, or the tenant's, are spoken for; nothing was opened or added."""


class QueueFull(JaxstateError):
    """A session's ingest queue is full and its policy is to say so; nothing was added."""


class FlashLimit(JaxstateError):
    """A session holds as many registered questions as it may; nothing was added."""


class TimedOut(JaxstateError, TimeoutError):
    """A timeout passed; what was asked for is cancelled and the session is as it was."""


class ClosedError(JaxstateError):
    """The engine or the session was closed before this could be done."""


class EngineFailed(ClosedError):
    """The engine's thread died of an error of its own, which is chained as the cause."""


class UnknownSession(JaxstateError, KeyError):
    """No open session has that id."""

    def __str__(self) -> str:
        """The message itself (KeyError would quote it)."""
        return str(self.args[0])


class VersionUnavailable(JaxstateError):
    """A session no longer holds that version; says what it holds and what computing it takes."""


class DeviceError(JaxstateError):
    """JAX cannot use the device, or it has no memory for what is to lie there."""


class StepFailed(JaxstateError):
    """The device failed in a step; its error is chained as the cause."""


class NotFinite(StepFailed):
    """The numbers that a step came to are NaN or infinite; nothing of it was kept."""

    def __init__(self, message: str = "") -> None:
        super().__init__(
            message
            or "the numbers of this step are not finite (NaN or infinity), so nothing of it was "
            "kept. Likely causes: damaged weights; a dtype whose range this model exceeds (load "
            'it with dtype="bfloat16" or "float32"); a failing device'
        )


class StaleState(JaxstateError):
    """A donated session state was used again."""


class UnsupportedModel(JaxstateError):
    """The files describe a model that cannot be run exactly; lists every reason."""


class WeightsMismatch(UnsupportedModel):
    """Missing, extra, duplicate or misshapen tensors; lists every one."""


class SequenceGap(JaxstateError):
    """A push under strict order skipped numbers of its client; nothing was added."""


class JournalError(JaxstateError):
    """The journal cannot do what was asked of it; nothing was added or changed."""


class JournalInUse(JournalError):
    """Another engine has this journal."""


class JournalDamaged(JournalError):
    """What the journal holds cannot be read, or does not match its checksums."""


class TextUnavailable(JaxstateError):
    """The model was loaded without tokenizer files, and text was needed."""


class SnapshotError(JaxstateError):
    """A saved session cannot be used."""


class SnapshotDamaged(SnapshotError):
    """A saved session is incomplete, truncated or inconsistent."""


class FingerprintMismatch(SnapshotError):
    """A saved session belongs to another model, tokenizer or cell layout."""
