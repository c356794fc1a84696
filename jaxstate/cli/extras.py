"""Commands that need more packages than the others.

Comes in: the name of an extra. Goes out: an error that says how to get it. Does not know: commands.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from jaxstate.errors import InvalidInput


@contextlib.contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Around imports of packages that only an extra brings.

    Raises:
        InvalidInput: one of them is not there.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == "jaxstate":
            raise
        raise InvalidInput(
            f"this needs the package {error.name!r}: pip install 'jaxstate[{extra}]'"
        ) from error
