"""Dialects by name: new ones, and ones rebuilt from a snapshot. The only module that knows both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandboxd.model.ids import TurnId
from sandboxd.model.session import PromptInput
from sandboxd.stream.acp.machine import AcpDialect
from sandboxd.stream.dialect import Dialect, DialectName
from sandboxd.stream.headless.machine import HeadlessDialect


def make(name: DialectName) -> Dialect:
    """A machine for a process that has not said anything yet; call `start` next."""
    match name:
        case DialectName.ACP:
            return AcpDialect()
        case DialectName.HEADLESS:
            return HeadlessDialect()


def restore(name: DialectName, snapshot: Mapping[str, Any], *, prompts: Mapping[TurnId, PromptInput]) -> Dialect:
    """A machine as it was when the snapshot was taken.

    Args:
        name: Which dialect took it.
        snapshot: What it took.
        prompts: The prompts of the turns that are QUEUED: the snapshot does not hold them.

    Raises:
        ValueError: The snapshot is of a version that cannot be read.
    """
    match name:
        case DialectName.ACP:
            return AcpDialect.restore(snapshot, prompts=prompts)
        case DialectName.HEADLESS:
            return HeadlessDialect.restore(snapshot, prompts=prompts)
