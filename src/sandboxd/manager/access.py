"""Whose sandbox is whose. Which role may call what is decided before, by the table of `api/grpc/permissions.py`."""

from __future__ import annotations

from sandboxd.model.caller import Caller
from sandboxd.model.errors import ForbiddenError, SandboxNotFoundError
from sandboxd.model.ids import FreelancerId
from sandboxd.model.sandbox import Sandbox


def require_visible(sandbox: Sandbox, caller: Caller) -> Sandbox:
    """Answer the sandbox, if it exists for this caller.

    Raises:
        SandboxNotFoundError: It belongs to another client, or the caller is a freelancer and it is not its own.
    """
    if sandbox.client != caller.client or caller.freelancer not in (None, sandbox.freelancer):
        raise SandboxNotFoundError(sandbox.id)
    return sandbox


def choose_freelancer(caller: Caller, wanted: FreelancerId | None) -> FreelancerId:
    """Say for whom a new sandbox is: the freelancer that was named, or else the caller.

    Raises:
        ForbiddenError: A freelancer named somebody else.
    """
    own = caller.freelancer
    if own is not None and wanted not in (None, own):
        raise ForbiddenError("A freelancer can only create sandboxes of its own.", freelancer=str(wanted))
    return wanted or FreelancerId(caller.subject)
