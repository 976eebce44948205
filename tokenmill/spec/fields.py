"""Field types of the factory file: text that people write, parsed to our integers, with errors that help.

Each type is an ``Annotated`` that pydantic runs; its JSON Schema says what may be written. Bounds that need
another field are for ``documents``, those that need another document for ``references``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from tokenmill.domain import units
from tokenmill.domain.calendar import parse_moment
from tokenmill.domain.errors import UsageError
from tokenmill.domain.trigger import parse_cron

NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
ALIAS = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._:/-]{0,126}[A-Za-z0-9])?")
SECRET = re.compile(r"secret://(env/[A-Za-z_][A-Za-z0-9_]*|file/.+)")
MAX_COUNT = 1_000_000


def fail(message: str, expected: str = "", fix: str = "") -> NoReturn:
    """Stop the validation of one field with a message that ``documents.problems_of`` shows as it is."""
    context = {"message": message, "expected": expected, "fix": fix}
    raise PydanticCustomError("field", "{message}", context)


def _quantity(parse: Callable[[object], Any], example: str, *, zero: bool = True) -> Any:
    def read(value: object) -> Any:
        try:
            amount = parse(value)
        except UsageError as error:
            problem = error.problem
            fail(problem.message, problem.expected, problem.fix)
        if amount == 0 and not zero:
            fail("must be more than zero", f"for example {example}")
        return amount

    schema = {"type": ["string", "number"], "examples": [example]}
    return [BeforeValidator(read), WithJsonSchema(schema)]


def _text(pattern: re.Pattern[str], expected: str, fix: str = "") -> Any:
    def read(value: object) -> str:
        if not isinstance(value, str):
            fail(f"{value!r} is not text", expected, "Quote it." if isinstance(value, int | float) else fix)
        if not pattern.fullmatch(value):
            fail(f"{value[:80]!r} is not allowed", expected, fix)
        return value

    return [BeforeValidator(read), WithJsonSchema({"type": "string", "pattern": f"^{pattern.pattern}$"})]


def _whole(low: int, high: int) -> Any:
    def read(value: object) -> int:
        expected = f"a whole number from {low} to {high}"
        if isinstance(value, bool) or not isinstance(value, int | str):
            fail(f"{value!r} is not a whole number", expected)
        if isinstance(value, str) and not re.fullmatch(r"[+-]?\d{1,18}", value):
            fail(f"{value!r} is not a whole number", expected)
        if not low <= int(value) <= high:
            fail(f"{value} is out of range", expected)
        return int(value)

    schema = {"type": "integer", "minimum": low, "maximum": high}
    return [BeforeValidator(read), WithJsonSchema(schema)]


def choice(*allowed: str) -> Any:
    """Markers of a text field that takes one of ``allowed``; the error names the nearest."""

    def read(value: object) -> str:
        if value not in allowed:
            fix = units.did_you_mean(str(value), allowed)
            fail(f"{value!r} is not allowed", f"one of {', '.join(allowed)}", fix)
        return str(value)

    return [BeforeValidator(read), WithJsonSchema({"enum": list(allowed)})]


def _plain_text(value: object) -> str:
    if not isinstance(value, str) or not value:
        quote = isinstance(value, int | float)
        fail(f"{value!r} is not text" if value != "" else "is empty", "text", "Quote it." if quote else "")
    if value.startswith("secret://"):
        fail("a secret is not allowed here", "plain text", "Only a peer's `key` takes a secret reference.")
    if "\0" in value:
        fail("holds a NUL character", "text")
    return value


_NAME_RULE = "lower-case letters, digits, '-', '_' or '.', at most 63, for example my-name"
_ALIAS_RULE = "letters, digits and . _ : / -, at most 128, for example qwen3-8b"
_REFERENCE_RULE = "a reference: secret://env/NAME or secret://file/PATH"
_REFERENCE_FIX = "Never write a secret itself into a factory file."

_name, _alias = _text(NAME, _NAME_RULE), _text(ALIAS, _ALIAS_RULE)
_secret = _text(SECRET, _REFERENCE_RULE, _REFERENCE_FIX)
_region = _text(
    re.compile(r"[a-z]{2,8}(-[a-z0-9]{1,8})*"), "a jurisdiction in lower case, for example eu or de"
)
_digest = _text(re.compile(r"sha256:[0-9a-f]{64}"), "sha256: and 64 hexadecimal digits")
_url = _text(re.compile(r"https?://[^\s/]+\S*"), "an http or https address")
_GATEWAY = re.compile(r"(https?)://([^\s/?#@:\[\]]+|\[[0-9a-fA-F:]+\])(:\d{1,5})?(/v1)?/?")
_HERE = ("localhost", "127.0.0.1", "[::1]")


def _gateway_url(value: object) -> str:
    found = _GATEWAY.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        fail(f"{value!r} is not allowed", "the address of a gateway, for example https://b.example:8400")
    if found[1] == "http" and found[2] not in _HERE:
        fix = "Give the other gateway a certificate (TOKENMILL_TLS_CERT), or end TLS before it."
        fail(f"{value!r} would carry our key in the clear", "https://, or http:// to this machine", fix)
    return found[0]


_source = _text(
    re.compile(r"package:[A-Za-z0-9._-]+|hf://[^\s/]+/\S+|s3://\S+|file:\S+|[./~]\S*|[A-Za-z0-9_-]+/\S+"),
    "package:NAME, hf://OWNER/NAME, s3://BUCKET/KEY or a path such as ./weights.gguf",
)

Name = Annotated[str, *_name]
AliasName = Annotated[str, *_alias]
PriceTarget = Annotated[str, *_text(re.compile(ALIAS.pattern + r"|\*"), _ALIAS_RULE + ', or "*" for all')]
SecretRef = Annotated[str, *_secret]
Jurisdiction = Annotated[str, *_region]
Digest = Annotated[str, *_digest]
Url = Annotated[str, *_url]
GatewayUrl = Annotated[
    str,
    BeforeValidator(_gateway_url),
    WithJsonSchema({"type": "string", "pattern": f"^{_GATEWAY.pattern}$"}),
]
WeightsSource = Annotated[str, *_source]
Currency = Annotated[str, *_text(re.compile(r"[A-Z]{3}"), "an ISO 4217 code, for example EUR")]
Text = Annotated[str, BeforeValidator(_plain_text)]
Size = Annotated[int, *_quantity(units.parse_size, "24GB")]
Duration = Annotated[int, *_quantity(units.parse_duration, "30m", zero=False)]
Latency = Annotated[int, *_quantity(units.parse_duration, "2us")]
Power = Annotated[int, *_quantity(units.parse_power, "16MW", zero=False)]
BitRate = Annotated[int, *_quantity(units.parse_bit_rate, "800Gbit/s", zero=False)]
Count = Annotated[int, *_quantity(units.parse_count, "100k")]
PerMinute = Annotated[int, *_quantity(units.parse_rate, "600/min")]
PerDay = Annotated[int, *_quantity(lambda value: units.parse_rate(value, "day"), "5M")]
Moment = Annotated[int, *_quantity(parse_moment, "2026-01-01")]
Cpu = Annotated[int, *_quantity(units.parse_cpu, "250m")]
Small = Annotated[int, *_whole(0, 1000)]
Replicas = Annotated[int, *_whole(0, 100_000)]
Positive = Annotated[int, *_whole(1, MAX_COUNT)]
Context = Annotated[int, *_whole(16, 16_777_216)]
Priority = Annotated[int, *_whole(-1000, 1000)]


def _pue(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 5:
        fail(f"{value!r} does not fit", "a number from 1 to 5, for example 1.2")
    return round(value * 1000)


def _share(value: object) -> int:
    """Thousandths of "5%" or "0.5%"."""
    found = re.fullmatch(r"(\d{1,3}(?:\.\d)?)\s*%", value) if isinstance(value, str) else None
    if found is None or float(found[1]) > 100:
        fail(f"{value!r} is not a share", "a percentage of at most one decimal, for example 5%")
    return round(float(found[1]) * 10)


def _ratio(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 100:
        fail(f"{value!r} does not fit", "a number from 1 to 100, for example 1.5")
    return round(value * 1000)


def _cron(value: object) -> str:
    try:
        parse_cron(value if isinstance(value, str) else "")
    except ValueError as error:
        fail(str(error), "minute hour day month weekday, for example 30 2 * * 1-5")
    return str(value)


def _index(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 10:
        fail(f"{value!r} does not fit", "a number above 0 and up to 10, for example 0.25")
    return round(value * 1000)


def _money(value: object) -> tuple[int, str]:
    if isinstance(value, tuple):  # read before, as the price of every type
        return value
    try:
        micros, currency = units.parse_money(value)
    except UsageError as error:
        fail(error.problem.message, error.problem.expected)
    if micros < 0:
        fail("is negative", "an amount of zero or more")
    return micros, currency


def _ramp(value: object) -> tuple[int, int]:
    try:
        found = units.parse_ramp(value)
    except UsageError as error:
        fail(error.problem.message, error.problem.expected, error.problem.fix)
    if not found[0]:
        fail("must be more than zero", "for example 2MW/min")
    return found


_MONEY_SCHEMA = {"type": ["string", "number"], "examples": ["0.15 USD"]}
_RAMP_SCHEMA = {"type": "string", "examples": ["2MW/min"]}
_SHARE_SCHEMA = {"type": "string", "pattern": r"^\d{1,3}(\.\d)?\s*%$", "examples": ["5%"]}
Share = Annotated[int, BeforeValidator(_share), WithJsonSchema(_SHARE_SCHEMA)]
_RATIO_SCHEMA = {"type": "number", "minimum": 1, "maximum": 100}
Ratio = Annotated[int, BeforeValidator(_ratio), WithJsonSchema(_RATIO_SCHEMA)]
Cron = Annotated[str, BeforeValidator(_cron), WithJsonSchema({"type": "string"})]
Index = Annotated[
    int, BeforeValidator(_index), WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "maximum": 10})
]
Pue = Annotated[int, BeforeValidator(_pue), WithJsonSchema({"type": "number", "minimum": 1, "maximum": 5})]
Ramp = Annotated[tuple[int, int], BeforeValidator(_ramp), WithJsonSchema(_RAMP_SCHEMA)]
Money = Annotated[tuple[int, str], BeforeValidator(_money), WithJsonSchema(_MONEY_SCHEMA)]
TypePrices = Annotated[
    dict[str, Money],
    BeforeValidator(lambda value: value if isinstance(value, dict) else {"*": _money(value)}),
    WithJsonSchema({"anyOf": [_MONEY_SCHEMA, {"type": "object", "additionalProperties": _MONEY_SCHEMA}]}),
]
"""One amount for every type, ``*``, or an amount for each type by its name."""
