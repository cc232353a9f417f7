"""What the person who waits is told."""

import sys


class ClusterError(Exception):
    """The cluster cannot be brought up; the text says why, and what to do."""


def say(text: str) -> None:
    """Print one line at once; on standard error, so that `status` stays alone on standard output."""
    print(f"cluster: {text}", file=sys.stderr, flush=True)
