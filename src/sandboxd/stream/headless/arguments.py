"""Command line and stdin of one headless run. Pure.

The prompt goes over stdin: arguments are limited to 128 KiB each, and can be read by everybody who sees the processes.
"""

from __future__ import annotations

from collections.abc import Sequence

from sandboxd.model.session import Attachment, PromptInput

_MODES = {"default": "default", "autoEdit": "auto_edit", "yolo": "yolo", "plan": "plan"}
"""The modes in ACP's words and in those of `--approval-mode`."""
MODES = tuple(_MODES)


def run_arguments(*, cli_session: str, mode: str, model: str) -> Sequence[str]:
    """Arguments for the CLI.

    Args:
        cli_session: Conversation to continue, or empty for a new one.
        mode: Approval mode, or empty for the CLI's own.
        model: Model, or empty for the CLI's choice.
    """
    arguments = ["--output-format", "stream-json"]
    if cli_session:
        arguments += ["--resume", cli_session]
    if mode in _MODES:
        arguments += ["--approval-mode", _MODES[mode]]
    if model:
        arguments += ["--model", model]
    return arguments


def run_stdin(prompt: PromptInput) -> tuple[bytes, Sequence[Attachment]]:
    """The prompt with the text files in it, and the attachments that this way of talking cannot carry."""
    parts = [prompt.text]
    left: list[Attachment] = []
    for attachment in prompt.attachments:
        try:
            said = attachment.data.decode("utf-8")
        except UnicodeDecodeError:
            left.append(attachment)
        else:
            parts.append(f"--- {attachment.name} ---\n{said}")
    return "\n\n".join(part for part in parts if part).encode("utf-8", "replace"), left
