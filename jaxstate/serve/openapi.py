"""The OpenAPI document, made of the table of routes and the types on the wire.

Comes in: `OPERATIONS`. Goes out: a document of OpenAPI 3.1. Does not know: what a route does.
"""

from __future__ import annotations

import functools
import re

import msgspec

import jaxstate
from jaxstate.serve.routes import OPERATIONS, Operation

_REFERENCE = "#/components/schemas/{name}"
_REFUSALS = {
    "400": "what was sent is not as it must be",
    "401": "no valid API key",
    "403": "not with this key, or from this page",
    "404": "there is no such thing",
    "408": "the body did not arrive in time",
    "409": "it is in use, or there already, or not available any more",
    "413": "too large",
    "415": "of a type that is not read here",
    "429": "no room now; come again",
    "503": "not ready",
    "504": "it took too long",
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


@functools.cache
def document() -> dict[str, object]:
    """All of it."""
    kinds = {kind for one in OPERATIONS for kind in (one.body, one.reply) if kind is not None}
    ordered = sorted(kinds, key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template=_REFERENCE)
    paths: dict[str, dict[str, object]] = {}
    for one in OPERATIONS:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "jaxstate",
            "version": jaxstate.__version__,
            "description": "Sessions that have read a stream, and answer at a question's cost.",
        },
        "paths": paths,
        "components": {
            "schemas": {**schemas, "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _operation(one: Operation) -> dict[str, object]:
    name = one.run.__name__ if one.path != "/healthz" else "healthz"
    described: dict[str, object] = {
        "operationId": f"{one.run.__module__.rpartition('.')[2]}_{name}",
        "summary": one.summary,
        "parameters": [*_path_parameters(one.path), *_query_parameters(one.query)],
        "responses": {str(one.status): _reply(one), **_refusals()},
    }
    if one.body is not None:
        content: dict[str, object] = {"application/json": {"schema": _reference(one.body)}}
        content |= {kind: {"schema": {"type": "string"}} for kind in one.also}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _reference(kind: type) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(name=kind.__name__)}


def _path_parameters(path: str) -> list[object]:
    numbers = ("flash_id",)
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "integer" if name in numbers else "string"},
        }
        for name in re.findall(r"\{(\w+)\}", path)
    ]


def _query_parameters(query: dict[str, str]) -> list[object]:
    return [
        {"name": name, "in": "query", "description": what, "schema": {"type": "string"}}
        for name, what in query.items()
    ]


def _reply(one: Operation) -> dict[str, object]:
    schema: dict[str, object] = {"type": "string"}
    if one.media == "application/json":
        schema = {"type": "object"} if one.reply is None else dict(_reference(one.reply))
    content: dict[str, object] = {one.media: {"schema": schema}}
    if one.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {"description": "As wanted.", "content": content}


def _refusals() -> dict[str, object]:
    content = {"application/json": {"schema": {"$ref": _REFERENCE.format(name="Error")}}}
    return {status: {"description": what, "content": content} for status, what in _REFUSALS.items()}
