"""Turns a reply into the API's messages: small chunks with cumulative usage, as the real API sends them.

Token counts are plausible and deterministic: four characters a token. What an earlier request had already sent counts
as cached, as the API's implicit cache would have it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from sandboxd.practice.script import Reply

_WORDS_A_CHUNK: Final = 6
_CHARACTERS_A_TOKEN: Final = 4
_CACHE_FROM: Final = 1024
"""Fewest tokens that the API's cache takes."""
Message = dict[str, object]


def messages(
    parts: Sequence[Message], *, body: Mapping[str, object], model: str, response_id: str
) -> Iterator[Message]:
    """Give the messages of a streamed answer, a part each, the last one with the finish reason."""
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        yield _message([part], usage=_usage(body, parts[: number + 1]), model=model, response_id=response_id, last=last)


def whole_message(parts: Sequence[Message], *, body: Mapping[str, object], model: str, response_id: str) -> Message:
    """Return an answer in one message."""
    return _message(parts, usage=_usage(body, parts), model=model, response_id=response_id, last=True)


def parts_of(reply: Reply, calls_before: int) -> list[Message]:
    """Return all parts of an answer."""
    return list(_parts(reply, calls_before))


def count_tokens(body: Mapping[str, object]) -> int:
    """Count the tokens of a request."""
    return _tokens({name: body.get(name) for name in ("systemInstruction", "tools", "contents")})


def smallest(schema: object) -> object:
    """Return the smallest value that fits a JSON schema, in the standard's words or the API's upper-case ones."""
    if not isinstance(schema, Mapping):
        return {}
    if isinstance(choices := schema.get("enum"), list) and choices:
        return choices[0]
    match str(schema.get("type", "object")).lower():
        case "object":
            properties = schema.get("properties")
            return (
                {name: smallest(value) for name, value in properties.items()} if isinstance(properties, Mapping) else {}
            )
        case "array":
            return []
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return False
        case _:
            return "practice"


def _parts(reply: Reply, calls_before: int) -> Iterator[Message]:
    yield {"text": f"**{reply.subject}**\n{reply.thought}", "thought": True}
    pieces = re.findall(r"\S+\s*", reply.text)
    for start in range(0, len(pieces), _WORDS_A_CHUNK):
        yield {"text": "".join(pieces[start : start + _WORDS_A_CHUNK])}
    if reply.call is not None:
        call = {"id": f"practice-{calls_before + 1}", "name": reply.call.name, "args": dict(reply.call.args)}
        yield {"functionCall": call}


def _message(parts: Sequence[Message], *, usage: Message, model: str, response_id: str, last: bool) -> Message:
    candidate: Message = {"index": 0, "content": {"role": "model", "parts": list(parts)}}
    if last:
        candidate["finishReason"] = "STOP"
    return {
        "candidates": [candidate],
        "usageMetadata": usage,
        "modelVersion": f"{model}-practice",
        "responseId": response_id,
    }


def _usage(body: Mapping[str, object], sent: Sequence[Message]) -> Message:
    prompt, cached = count_tokens(body), _cached(body)
    thoughts = sum(3 * _tokens(part["text"]) for part in sent if part.get("thought"))
    output = sum(_tokens(part) for part in sent if not part.get("thought"))
    usage: Message = {
        "promptTokenCount": prompt,
        "candidatesTokenCount": output,
        "totalTokenCount": prompt + output + thoughts,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": prompt}],
    }
    if cached:
        usage["cachedContentTokenCount"] = cached
        usage["cacheTokensDetails"] = [{"modality": "TEXT", "tokenCount": cached}]
    if thoughts:
        usage["thoughtsTokenCount"] = thoughts
    return usage


def _cached(body: Mapping[str, object]) -> int:
    """Count what the request before this one had sent: everything up to the last answer of the model."""
    contents = body.get("contents")
    if not isinstance(contents, list):
        return 0
    answers = [
        index
        for index, content in enumerate(contents)
        if isinstance(content, Mapping) and content.get("role") == "model"
    ]
    if not answers:
        return 0
    sent = {**body, "contents": contents[: answers[-1]]}
    tokens = count_tokens(sent)
    return tokens if tokens >= _CACHE_FROM else 0


def _tokens(value: object) -> int:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return max(1, -(-len(text) // _CHARACTERS_A_TOKEN))
