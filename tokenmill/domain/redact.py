"""Replaces e-mail and IP addresses, telephone, card, IBAN and US social security numbers by placeholders.

Finds what has a fixed form, and where there is a check digit, only what passes it. It does not find names,
addresses or anything that needs judgement.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

_EMAIL = re.compile(r"[A-Za-z0-9._%+\-]{1,64}@[A-Za-z0-9\-]{1,63}(?:\.[A-Za-z0-9\-]{1,63})*\.[A-Za-z]{2,24}")
_CARD = re.compile(r"(?<![\d.])(?:\d[ \-]?){12,18}\d(?!\d)")
_PHONE = re.compile(
    r"(?<![\w.])\+(?:[ .\-/()]{0,2}\d){9,15}(?!\w)"  # international, in groups of any length
    r"|(?<![\w.])\(?0\d{1,4}\)?[ .\-/]?\d{4,9}(?!\w|\.\d)"  # national with a trunk 0
    r"|(?<![\w.])(?:\+\d{1,3}[ .\-]?)?(?:\(\d{1,5}\)[ .\-]?)?\d{2,5}(?:[ .\-]\d{2,5}){1,4}(?![\w])"
)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b")
_IP = re.compile(
    r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])|(?<![\w:])(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}\b"
)
_SSN = re.compile(r"(?<![\d\-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d\-])")
MIN_PHONE_DIGITS, MAX_PHONE_DIGITS = 9, 15  # ITU-T E.164 allows 15


def redacted(text: str) -> tuple[str, Counter[str]]:
    """``text`` with [EMAIL], [IBAN], [CARD], [IP], [SSN] and [PHONE], and how many of each were put in."""
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

    def iban(match: re.Match[str]) -> str:
        return put("iban") if _mod97(match.group(0).replace(" ", "")) else match.group(0)

    def address(match: re.Match[str]) -> str:
        try:
            ipaddress.ip_address(match.group(0))
        except ValueError:
            return match.group(0)
        return put("ip")

    text = _EMAIL.sub(lambda _: put("email"), text)
    text = _IBAN.sub(iban, text)
    text = _IP.sub(address, text)
    text = _SSN.sub(lambda _: put("ssn"), text)
    text = _CARD.sub(card, text)
    return _PHONE.sub(phone, text), counts


def redacted_values(value: Any) -> tuple[Any, Counter[str]]:
    """Plain data with every text inside it redacted; names of fields stay as they are."""
    if isinstance(value, str):
        return redacted(value)
    counts: Counter[str] = Counter()
    if isinstance(value, Mapping):
        made: dict[Any, Any] = {}
        for name, inner in value.items():
            made[name], found = redacted_values(inner)
            counts += found
        return made, counts
    if isinstance(value, list | tuple):
        items = []
        for inner in value:
            item, found = redacted_values(inner)
            items.append(item)
            counts += found
        return items, counts
    return value, counts


def _mod97(text: str) -> bool:
    """The check of ISO 13616 for international bank account numbers."""
    turned = text[4:] + text[:4]
    return 15 <= len(text) <= 34 and int("".join(str(int(letter, 36)) for letter in turned)) % 97 == 1


def _luhn(digits: str) -> bool:
    """The check digit of ISO/IEC 7812 card numbers."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0
