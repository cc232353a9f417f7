"""A person's prompt as ACP content blocks. Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from sandboxd.model.session import Attachment, PromptInput

_TEXT_TYPES = frozenset(
    {
        "application/json",
        "application/xml",
        "application/x-yaml",
        "application/yaml",
        "application/toml",
        "application/sql",
    }
)


def content_blocks(prompt: PromptInput) -> Sequence[Mapping[str, Any]]:
    """The text first, then images and sounds as such, then everything else as an embedded resource.

    The CLI puts the text of a resource into the prompt as it is, so a text file is sent as text.
    """
    blocks: list[Mapping[str, Any]] = []
    if prompt.text or not prompt.attachments:
        blocks.append({"type": "text", "text": prompt.text})
    blocks.extend(_block(attachment) for attachment in prompt.attachments)
    return blocks


def _block(attachment: Attachment) -> Mapping[str, Any]:
    major = attachment.mime_type.partition("/")[0]
    if major in ("image", "audio"):
        return {"type": major, "mimeType": attachment.mime_type, "data": base64.b64encode(attachment.data).decode()}
    resource = {"uri": f"file:///attachments/{quote(attachment.name, safe='')}", "mimeType": attachment.mime_type}
    text = _text(attachment) if major == "text" or attachment.mime_type in _TEXT_TYPES else None
    if text is None:
        resource["blob"] = base64.b64encode(attachment.data).decode()
    else:
        resource["text"] = text
    return {"type": "resource", "resource": resource}


def _text(attachment: Attachment) -> str | None:
    try:
        return attachment.data.decode("utf-8")
    except UnicodeDecodeError:
        return None
