"""What looks like a secret or personal data in the texts of people and models. Pure.

Patterns, not understanding: what has a known form is found (keys, tokens, private keys, passwords in addresses and
assignments, e-mail addresses, international phone numbers, IBANs, card numbers), a name or a street is not. The formats
are those of their issuers' documentation. Every pattern is linear in the text's length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from sandboxd.stream.redaction import REDACTED, SECRETS

_MORE_SECRETS: Final = re.compile(
    r"""
      -----BEGIN\ [A-Z ]{0,40}PRIVATE\ KEY-----[^-]{0,16384}(?:-----END\ [A-Z ]{0,40}PRIVATE\ KEY-----)?
    | \b(?:AKIA|ASIA)[0-9A-Z]{16}\b                               # AWS access key ids
    | \bgh[pousr]_[0-9A-Za-z]{20,255}\b | \bgithub_pat_[0-9A-Za-z_]{20,255}\b
    | \bglpat-[0-9A-Za-z_\-]{20,}\b                               # GitLab
    | \bxox[abposr]-[0-9A-Za-z\-]{10,}\b                          # Slack
    | \b(?:sk|rk|pk)[_-](?:live|test|proj|ant)[_-][0-9A-Za-z_\-]{16,}\b   # Stripe, OpenAI, Anthropic
    | \bsk-[0-9A-Za-z]{32,}\b
    | \bnpm_[0-9A-Za-z]{36}\b | \bpypi-[0-9A-Za-z_\-]{16,}\b
    | (?<=://)[^\s/:@]{1,256}:[^\s/@]{1,256}(?=@)                 # user and password of an address
    | (?<![0-9A-Za-z])(?i:password|passwd|secret|access[_-]?token|client[_-]?secret)["']?\s{0,4}[:=]\s{0,4}
      (?:"[^"\n]{1,256}"|'[^'\n]{1,256}'|[^\s"',;]{4,256})
    """,
    re.VERBOSE,
)
_PERSONAL: Final = re.compile(
    r"""
      (?<![\w.+%\-])[\w.+%\-]{1,64}@[A-Za-z0-9\-]{1,63}(?:\.[A-Za-z0-9\-]{1,63}){1,8}\b     # e-mail
    | (?<![\w+])\+[1-9](?:[\ \-./()]{0,2}\d){6,14}(?!\d)                                     # phone, with its country
    """,
    re.VERBOSE,
)
_IBAN: Final = re.compile(r"\b[A-Z]{2}\d{2}(?:\ ?[0-9A-Z]{4}){2,7}(?:\ ?[0-9A-Z]{1,3})?\b")
_CARD: Final = re.compile(r"(?<![\d.\-])[2-6](?:[\ \-]?\d){12,18}(?![\d.\-])")


def personal_spans(text: str) -> list[tuple[int, int]]:
    """Return where a text holds what looks like a secret or personal data: sorted, apart from each other."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(_found(text)):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def redact_personal(text: str) -> str:
    """Replace what looks like a secret or personal data."""
    kept, at = [], 0
    for begin, end in personal_spans(text):
        kept += [text[at:begin], REDACTED]
        at = end
    return "".join([*kept, text[at:]])


def _found(text: str) -> Iterator[tuple[int, int]]:
    for pattern in (SECRETS, _MORE_SECRETS, _PERSONAL):
        for match in pattern.finditer(text):
            if match.end() > match.start():
                yield match.span()
    for match in _IBAN.finditer(text):
        if _is_iban(match.group().replace(" ", "")):
            yield match.span()
    for match in _CARD.finditer(text):
        if _passes_luhn([int(one) for one in match.group() if one.isdigit()]):
            yield match.span()


def _is_iban(number: str) -> bool:
    """ISO 13616: with the first four characters at the end and letters as two digits, the remainder by 97 is 1."""
    return int("".join(str(int(one, 36)) for one in number[4:] + number[:4])) % 97 == 1


def _passes_luhn(digits: list[int]) -> bool:
    """ISO/IEC 7812-1, annex B: the check digit of card numbers."""
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
