"""Writes the table of docs/access.md from the permission table; a test compares them."""

from pathlib import Path

from sandboxd.api.grpc.permissions import PERMISSIONS
from sandboxd.model.caller import Role

PAGE = Path(__file__).resolve().parent.parent / "docs" / "access.md"
BEGIN, END = "<!-- made by tools/access_page.py -->\n", "<!-- end -->"


def render() -> str:
    """Return the page, with the table as it must be."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}"


def table() -> str:
    """Return the table."""
    titles = ["RPC", *[role.value for role in Role], "changes", "reach"]
    lines = [f"| {' | '.join(titles)} |", f"| {' | '.join(['---'] * len(titles))} |"]
    for method, row in sorted(PERMISSIONS.items()):
        allowed = [_word(role in row.roles) for role in Role]
        cells = [f"`{method.removeprefix('sandboxd.v1.')}`", *allowed, _word(row.mutating), row.scope.value]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _word(yes: bool) -> str:
    return "yes" if yes else "-"


if __name__ == "__main__":
    PAGE.write_text(render())
