"""What a client is told when something cannot be done: a status, a type, and the engine's words.

Comes in: errors of the engine, and our own. Goes out: status codes and the envelopes of the three
dialects. Does not know: requests, engines.

    OpenAI, sessions:  {"error": {"message", "type", "code", "param"}}
    Anthropic:         {"type": "error", "error": {"type", "message"}}
"""

from __future__ import annotations

from typing import Literal

from jaxstate import errors
from jaxstate.records import JsonValue

Dialect = Literal["openai", "anthropic"]

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}
TOO_LONG = "context_length_exceeded"
# Which of the engine's errors is what; the first that fits.
_OF_ENGINE: tuple[tuple[type[errors.JaxstateError], int, str | None], ...] = (
    (errors.PromptTooLong, 400, TOO_LONG),
    (errors.InvalidInput, 400, None),
    (errors.CapacityExceeded, 400, TOO_LONG),
    (errors.UnknownSession, 404, "session_not_found"),
    (errors.VersionUnavailable, 409, "version_unavailable"),
    (errors.SequenceGap, 409, "sequence_gap"),
    (errors.FlashLimit, 409, "flash_limit"),
    (errors.QueueFull, 429, "queue_full"),
    (errors.BudgetExceeded, 429, "budget_exceeded"),
    (errors.TimedOut, 504, "timed_out"),
    (errors.EngineFailed, 503, "engine_failed"),
    (errors.ClosedError, 404, "session_closed"),
    (errors.JournalError, 503, "journal_unavailable"),
    (errors.SnapshotError, 409, "snapshot_unusable"),
)


class ApiError(Exception):
    """A refusal, as a client gets it.

    Attributes:
        status: of HTTP.
        message: what was given, what is allowed, what to do.
        code: for programs; None for none.
        retry_after_s: when to come again; None for no such hint.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def type(self) -> str:
        """Its kind, as both dialects name it."""
        return _TYPES.get(self.status, "api_error")

    def envelope(self, dialect: Dialect) -> dict[str, JsonValue]:
        """The body of a response, or of an event in a stream."""
        if dialect == "anthropic":
            too_long = self.code == TOO_LONG and "prompt is too long" not in self.message.lower()
            message = f"prompt is too long: {self.message}" if too_long else self.message
            return {"type": "error", "error": {"type": self.type, "message": message}}
        error = {"message": self.message, "type": self.type, "code": self.code, "param": None}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """Of a response."""
        return {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}


def of_engine(error: errors.JaxstateError) -> ApiError:
    """What a client is told of one of the engine's errors."""
    for kind, status, code in _OF_ENGINE:
        if isinstance(error, kind):
            retry_after_s = 1 if status in (429, 503) else None
            return ApiError(status, str(error), code=code, retry_after_s=retry_after_s)
    return ApiError(500, str(error), code="step_failed")
