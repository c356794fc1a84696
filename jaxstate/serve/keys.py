"""Who may use a server, and how much of it: tenants by their API keys.

Comes in: a TOML file, or one key. Goes out: the tenant of a key, and what the engine is told of all
of them. Does not know: HTTP, engines.

    [tenants.acme]
    keys = ["a-long-random-text"]       # or key_sha256 = ["…"], of the same in hexadecimal
    weight = 2.0                        # share of the work, beside the others' weights
    quota_cells = 20000                 # of all its sessions together
    sessions = 16                       # at once
    requests = 64                       # under way at once
    operator = false                    # whether it may see the metrics of the whole server
"""

from __future__ import annotations

import hashlib
import hmac
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxstate import Tenant
from jaxstate.errors import InvalidInput
from jaxstate.textfiles import read_text_file

DEFAULT = "default"
# Part of the names of its sessions in the engine, `tenant.session`, which have 128 characters.
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FIELDS = ("keys", "key_sha256", "weight", "quota_cells", "sessions", "requests", "operator")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedTenant:
    """A tenant of a server.

    Attributes:
        name: in the engine.
        share: its weight and quota there.
        sessions: at once; None for the server's bound.
        requests: under way at once; None for no bound.
        operator: whether it sees what concerns the whole server, and may set windows by key, whose
            regular expressions run in the engine.
    """

    name: str = DEFAULT
    share: Tenant = field(default_factory=Tenant)
    sessions: int | None = None
    requests: int | None = None
    operator: bool = False


OPEN = ServedTenant(operator=True)


class KeyRing:
    """Keys, and whose they are; without any, everybody is the tenant "default".

    Args:
        tenants: by the SHA-256 of their keys.
    """

    def __init__(self, tenants: Mapping[bytes, ServedTenant]) -> None:
        self._tenants = dict(tenants)

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return not self._tenants

    def tenant_of(self, key: str | None) -> ServedTenant | None:
        """Whose key that is; None for nobody's. Takes as long whichever it is."""
        if self.is_open:
            return OPEN
        digest = hashlib.sha256((key or "").encode("utf-8", "surrogatepass")).digest()
        found = None
        for known, tenant in self._tenants.items():
            if hmac.compare_digest(known, digest):
                found = tenant
        return found if key else None

    def shares(self) -> dict[str, Tenant]:
        """What the engine is told."""
        return {one.name: one.share for one in self._tenants.values()}


def key_ring(key: str | None, file: Path | None) -> KeyRing:
    """The keys of a server.

    Args:
        key: the only one, of an operator.
        file: TOML, as above.

    Raises:
        InvalidInput: both, an empty key, or a file that is not as above.
    """
    if key is not None and file is not None:
        raise InvalidInput("--api-key and --keys: give one key, or a file of them")
    if file is not None:
        return _read(file)
    if key is None:
        return KeyRing({})
    if not key.strip():
        raise InvalidInput("--api-key is empty: give a long random text, or leave it out")
    return KeyRing({hashlib.sha256(key.encode()).digest(): OPEN})


def _read(file: Path) -> KeyRing:
    text = read_text_file(file, "the keys")
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{file} is not TOML: {error}") from error
    tenants = content.pop("tenants", None)
    if content or not isinstance(tenants, dict) or not tenants:
        raise InvalidInput(f"{file} must hold tables [tenants.NAME], and nothing else")
    ring: dict[bytes, ServedTenant] = {}
    for name, fields in tenants.items():
        tenant, digests = _tenant(f"{file}: [tenants.{name}]", name, fields)
        for digest in digests:
            if digest in ring:
                raise InvalidInput(f"{file}: a key of {name!r} is also of {ring[digest].name!r}")
            ring[digest] = tenant
    return KeyRing(ring)


def _tenant(where: str, name: str, fields: object) -> tuple[ServedTenant, list[bytes]]:
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"{where}: a tenant's name has 1 to 32 of A-Z a-z 0-9 _ -")
    if not isinstance(fields, dict):
        raise InvalidInput(f"{where} must be a table")
    if unknown := sorted(set(fields) - set(_FIELDS)):
        raise InvalidInput(f"{where} takes {', '.join(_FIELDS)}, and not {', '.join(unknown)}")
    keys, digests = _texts(where, fields, "keys"), _texts(where, fields, "key_sha256")
    if any(not one.strip() for one in keys) or not all(map(_DIGEST.fullmatch, digests)):
        raise InvalidInput(f"{where}: a key is a text, key_sha256 has 64 hexadecimal digits")
    if not keys and not digests:
        raise InvalidInput(f"{where} needs keys, or key_sha256")
    tenant = ServedTenant(
        name=name,
        share=Tenant(weight=fields.get("weight", 1.0), quota_cells=fields.get("quota_cells")),
        sessions=_count(where, fields, "sessions"),
        requests=_count(where, fields, "requests"),
        operator=fields.get("operator") is True,
    )
    hashed = [hashlib.sha256(key.encode()).digest() for key in keys]
    return tenant, [*hashed, *map(bytes.fromhex, digests)]


def _texts(where: str, fields: Mapping[str, object], name: str) -> list[str]:
    given = fields.get(name, [])
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise InvalidInput(f"{where}: {name} must be a list of texts")
    return [str(one) for one in given]


def _count(where: str, fields: Mapping[str, object], name: str) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidInput(f"{where}: {name}={value!r} must be at least 1")
    return value
