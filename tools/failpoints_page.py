"""Writes docs/failpoints.md from the list in the code; a test compares them."""

from pathlib import Path

from sandboxd.model.failpoints import POINTS, VARIABLE

PAGE = Path(__file__).resolve().parent.parent / "docs" / "failpoints.md"
HEAD = f"""# Failpoints

Named places in the code where a test can break the process. They do nothing, and cost next to nothing, unless
`{VARIABLE}` was set when the process started: `name=action` pairs, separated by commas.

| Action | Does |
| --- | --- |
| `exit9` | SIGKILL to this process: nothing is said, nothing is handed over |
| `error` | raises an error that nobody expects |
| `sleep:SECONDS` | the whole process stands still for so long |
| `hang` | the whole process stands still for ever, like a stalled replica |

`action@N` strikes at the N-th pass only. A name or an action that does not exist is told at the start. A process that
starts with failpoints logs `role.failpoints_armed`; where one of its addresses can be reached from other machines it
does not start.

```sh
{VARIABLE}=conversation.after_append=exit9@4 sandboxd serve
```

This page is made by `.venv/bin/python tools/failpoints_page.py`.

| Name | What is true there |
| --- | --- |
"""


def render() -> str:
    """Return the page."""
    return HEAD + "".join(f"| `{name}` | {meaning} |\n" for name, meaning in POINTS.items())


if __name__ == "__main__":
    PAGE.write_text(render())
