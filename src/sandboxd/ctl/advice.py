"""What a person can do about an error, in one line where possible."""

from __future__ import annotations

from collections.abc import Mapping

_BY_REASON = {
    "SANDBOX_PAUSED": "Bring it back with: sandboxctl resume {sandbox}",
    "TURN_IN_PROGRESS": (
        "Follow it with: sandboxctl history {session} --follow\n"
        "Or join it, Ctrl-C cancels it: sandboxctl chat SANDBOX --session {session}"
    ),
    "TLS_NOT_TRUSTED": "Name the authority that signed it: --ca FILE or SANDBOXCTL_CA.",
    "TLS_CERTIFICATE_EXPIRED": "Look at this machine's clock, and tell whoever runs the service.",
    "TLS_WRONG_NAME": "Use the address by which the service's certificate names it, instead of {address}.",
    "TLS_NOT_SPOKEN": "On a network that you trust, leave TLS out: --address http://{address}",
    "CONNECTION_CLOSED": (
        "Does it speak TLS? Then: --address https://{address}\n"
        "Does it demand a client certificate? Then: --cert FILE --cert-key FILE, of an authority that it trusts."
    ),
    "CERTIFICATE_REFUSED": "Give a token (SANDBOXCTL_TOKEN, --token-file FILE), or a certificate of the platform.",
    "CERTIFICATE_EXPIRED": "Give a new certificate: --cert FILE --cert-key FILE.",
    "CLIENT_MISSING": "Say for which client: --for-client CLIENT or SANDBOXCTL_FOR_CLIENT.",
    "CLIENT_MISMATCH": "Leave --for-client out, or use a token of that client.",
    "SANDBOX_NOT_FOUND": "See which there are: sandboxctl ls",
    "COMMIT_IN_PROGRESS": "Follow it with: sandboxctl commit {sandbox} --follow",
    "IMAGE_NOT_FOUND": "See which there are: sandboxctl images {sandbox}",
    "IMAGE_NOT_RUNNING": "Let it run from that: sandboxctl pause {sandbox} && sandboxctl resume {sandbox}",
    "ROOT_NOT_SAVED": "See what became of the commit: sandboxctl images {sandbox} --all\nOr give it up with --force.",
    "PACKAGES_INTERRUPTED": "End the installation in the sandbox: sudo dpkg --configure -a",
    "SESSION_NOT_FOUND": "See which there are: sandboxctl sessions SANDBOX",
    "BACKUP_IN_PROGRESS": "Follow it with: sandboxctl backups follow {sandbox}",
    "BACKUP_IN_USE": "Wait until it is restored: sandboxctl show {sandbox}",
    "BACKUP_NOT_FOUND": "See which there are: sandboxctl backups ls {sandbox}",
    "BACKUP_UNNAMED": "See which there are: sandboxctl backups ls {sandbox}",
    "BACKUP_SNAPSHOT_NOT_FOUND": "Paths are those in the volume, as home:.bashrc or workspace:src/main.py.",
    "BACKUP_STATUS_INVALID": "See what it is: sandboxctl backups ls {sandbox} --all",
    "BACKUP_STORAGE_FULL": "Make room where it lies, or let backups go: sandboxctl backups rm",
    "BACKUP_REPOSITORY_BUSY": "Try again in some minutes.",
}
_BY_CODE = {
    "UNAUTHENTICATED": "Give a valid token: SANDBOXCTL_TOKEN, --token-file FILE or --token TOKEN.",
    "PERMISSION_DENIED": "Use a token whose role may do this.",
    "NOT_FOUND": "See which sandboxes there are: sandboxctl ls",
    "UNAVAILABLE": "Is sandboxd running at {address}? On this machine start one with: make run",
    "DEADLINE_EXCEEDED": "It may still be going on: see with sandboxctl ls, or give more time with --timeout.",
    "UNIMPLEMENTED": "The service is older or newer than this sandboxctl.",
    "RESOURCE_EXHAUSTED": "Try again later, or ask for a larger limit.",
}
_ANSWERED = frozenset({"UNAVAILABLE", "NOT_FOUND"})
"""Codes that a service which gives a reason does not mean so: it is there, or what is absent is no sandbox."""


class _Facts(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return key.upper()


def advise(code: str, reason: str, metadata: Mapping[str, str], *, address: str = "") -> str:
    """Return what to do, or an empty text where nothing sensible can be said.

    Args:
        code: Name of the gRPC status.
        reason: The service's own word.
        metadata: Facts of the error, by name; they fill the advice.
        address: Of the service.
    """
    if reason == "TURN_IN_PROGRESS" and "session" not in metadata:  # the sandbox is what is refused, not a prompt
        return "Wait for the turn to end, cancel it with Ctrl-C in `sandboxctl chat`, or give --force."
    if metadata.get("state") == "FAILED" and "sandbox" in metadata:  # whatever kept it from starting
        advice = "Try again with: sandboxctl resume {sandbox}\nOr end it with: sandboxctl rm {sandbox}"
    else:
        advice = _BY_REASON.get(reason) or ("" if code in _ANSWERED and reason else _BY_CODE.get(code, ""))
    facts = _Facts({name: value.removeprefix("sandboxes/") for name, value in metadata.items()})
    facts["address"] = address
    return advice.format_map(facts)
