"""A text that must not be seen: its representation hides it, and only `reveal` gives it out."""

from __future__ import annotations

from typing import Final, NoReturn, final

from typing_extensions import override


@final
class Secret:
    """An API key. Every accidental way into a log (repr, str, format, pickle) shows dots or fails."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text: Final = text

    def reveal(self) -> str:
        """Return the text. Call it only where a request to the model API is built or an answer is scrubbed."""
        return self._text

    @override
    def __repr__(self) -> str:
        return "Secret(…)"

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    @override
    def __hash__(self) -> int:
        return hash(self._text)

    @override
    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret cannot be pickled")
