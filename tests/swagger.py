"""Holds exchanges against a description in Swagger 2.0: whether there is such an operation, and such a body."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = Any
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "boolean": bool,
}


class SwaggerError(AssertionError):
    """An exchange is not as the description has it."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What may be asked with one method at one path."""

    name: str
    template: str
    text: Json


class Swagger:
    """One description. Stricter than it in one thing: what it does not name is refused, as it would be a slip."""

    def __init__(self, file: Path) -> None:
        self._text: Json = json.loads(file.read_text())
        self._paths = [
            (re.compile(re.sub(r"\\\{[^}]*\\\}", "[^/]+", re.escape(template))), template)
            for template in self._text["paths"]
        ]

    def operation(self, method: str, path: str) -> Operation:
        """Find what an encoded path below the base path means."""
        for pattern, template in self._paths:
            if pattern.fullmatch(path) and method.lower() in self._text["paths"][template]:
                text = self._text["paths"][template][method.lower()]
                return Operation(name=text["operationId"], template=template, text=text)
        raise SwaggerError(f"there is no {method} {path}")

    def check_request(self, operation: Operation, *, query: Mapping[str, str], body: Json) -> None:
        """See that a request has what it must have, and nothing else."""
        parameters = [self._resolved(one) for one in operation.text["parameters"]]
        named = {one["name"] for one in parameters if one["in"] == "query"}
        if unknown := sorted(set(query) - named):
            raise SwaggerError(f"{operation.template} has no parameter {unknown}")
        if missing := {one["name"] for one in parameters if one["in"] == "query" and one.get("required")} - set(query):
            raise SwaggerError(f"{operation.template} needs {sorted(missing)}")
        wanted = [one["schema"] for one in parameters if one["in"] == "body"]
        if wanted:
            self._check(body, wanted[0], operation.template)
        elif body is not None:
            raise SwaggerError(f"{operation.template} takes no body")

    def check_answer(self, operation: Operation, status: int, body: Json, *, head: bool = False) -> None:
        """See that an answer is one of those there are; one to `HEAD` has no body."""
        answer = operation.text["responses"].get(str(status))
        if answer is None:
            raise SwaggerError(f"{operation.template} never answers {status}")
        schema = self._resolved(answer).get("schema")
        if schema is not None and not head:
            self._check(body, schema, f"{operation.template} {status}")

    def _resolved(self, text: Json) -> Json:
        while "$ref" in text:
            _, kind, name = text["$ref"].split("/")
            text = self._text[kind][name]
        return text

    def _check(self, value: Json, schema: Json, where: str) -> None:
        schema = self._resolved(schema)
        kind = _TYPES[schema.get("type", "object")]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise SwaggerError(f"{where}: {value!r} is no {schema.get('type', 'object')}")
        if isinstance(value, list):
            for number, one in enumerate(value):
                self._check(one, schema["items"], f"{where}[{number}]")
        if isinstance(value, dict) and "properties" in schema:
            for name, one in value.items():
                if name not in schema["properties"]:
                    raise SwaggerError(f"{where} has no {name}")
                self._check(one, schema["properties"][name], f"{where}.{name}")
        elif isinstance(value, dict) and schema.get("additionalProperties", {}).get("type") in {"integer", "string"}:
            for name, one in value.items():
                self._check(one, schema["additionalProperties"], f"{where}.{name}")
