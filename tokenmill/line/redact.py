"""Replaces e-mail addresses, telephone numbers and payment cards in text by placeholders.

Finds what has a fixed form. It does not find names, addresses or anything that needs judgement.
"""

from __future__ import annotations

import re
from collections import Counter

from tokenmill.line.rows import Row, with_messages

_EMAIL = re.compile(r"[A-Za-z0-9._%+\-]{1,64}@[A-Za-z0-9\-]{1,63}(?:\.[A-Za-z0-9\-]{1,63})*\.[A-Za-z]{2,24}")
_CARD = re.compile(r"(?<![\d.])(?:\d[ \-]?){12,18}\d(?!\d)")
_PHONE = re.compile(
    r"(?<![\w.])(?:\+\d{1,3}[ .\-]?)?(?:\(\d{1,5}\)[ .\-]?)?\d{2,5}(?:[ .\-]\d{2,5}){1,4}(?![\w])"
)
MIN_PHONE_DIGITS, MAX_PHONE_DIGITS = 9, 15  # ITU-T E.164 allows 15


def redacted(text: str) -> tuple[str, Counter[str]]:
    """``text`` with [EMAIL], [CARD] and [PHONE], and how many of each were put in."""
    counts: Counter[str] = Counter()

    def put(kind: str) -> str:
        counts[kind] += 1
        return f"[{kind.upper()}]"

    def card(match: re.Match[str]) -> str:
        digits = re.sub(r"\D", "", match.group(0))
        return put("card") if _luhn(digits) else match.group(0)

    def phone(match: re.Match[str]) -> str:
        digits = re.sub(r"\D", "", match.group(0))
        fits = MIN_PHONE_DIGITS <= len(digits) <= MAX_PHONE_DIGITS
        return put("phone") if fits else match.group(0)

    text = _EMAIL.sub(lambda _: put("email"), text)
    text = _CARD.sub(card, text)
    return _PHONE.sub(phone, text), counts


def redacted_row(row: Row) -> tuple[Row, Counter[str]]:
    """``row`` with every message redacted; the same object when there was nothing to redact."""
    counts: Counter[str] = Counter()
    messages = []
    for message in row.messages:
        text, found = redacted(message["content"])
        counts += found
        messages.append({"role": message["role"], "content": text})
    return (with_messages(row, messages), counts) if counts else (row, counts)


def _luhn(digits: str) -> bool:
    """The check digit of ISO/IEC 7812 card numbers."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0
