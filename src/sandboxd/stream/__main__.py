"""`python -m sandboxd.stream replay FILE`: the events of a recording as JSON lines on stdout."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from sandboxd.stream.recording import RecordingFormat
from sandboxd.stream.replay import replay

CHUNK_BYTES = 1 << 16
UNUSABLE = 2
"""Exit code where there is no recording to read; lines that make no sense are events, and no failure."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; answers its exit code."""
    options = _parser().parse_args(arguments)
    format_ = None if options.format == "auto" else RecordingFormat(options.format)
    try:
        with _open(options.file) as recording:
            for entry in replay(_chunks(recording), format_=format_):
                if not options.session or (entry["session"] or "").startswith(options.session):
                    line = json.dumps(entry, ensure_ascii=False, separators=(",", ":"))
                    sys.stdout.buffer.write(line.encode("utf-8", "replace") + b"\n")
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        # The reader has seen enough (`| head`). Python would complain once more at exit, about flushing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"Cannot read {options.file}: {error.strerror}.", file=sys.stderr)
        return UNUSABLE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sandboxd.stream",
        description="Tools for recordings of Gemini CLI.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "replay",
        help="print the events of a recording as JSON lines",
        description="Print the events of a recording as JSON lines. Exit code 2: the file cannot be read.",
    )
    command.add_argument("file", metavar="FILE", help="the recording; - reads stdin")
    formats = ["auto", *(format_.value for format_ in RecordingFormat)]
    command.add_argument("--format", choices=formats, default="auto", help="what the recording is (default: auto)")
    command.add_argument("--session", default="", metavar="ID", help="only events of sessions whose id begins so")
    return parser


def _open(file: str) -> BinaryIO:
    return sys.stdin.buffer if file == "-" else Path(file).open("rb")


def _chunks(recording: BinaryIO) -> Iterator[bytes]:
    while chunk := recording.read(CHUNK_BYTES):
        yield chunk


if __name__ == "__main__":
    sys.exit(main())
