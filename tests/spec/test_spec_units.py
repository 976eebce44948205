"""Quantities: what people write, what we keep, and what the errors say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.domain import units
from tokenmill.domain.errors import UsageError

AMOUNTS = st.integers(min_value=0, max_value=2**60)


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (units.parse_size, "24GB", 24 * 10**9),
        (units.parse_size, "24 GiB", 24 * 2**30),
        (units.parse_size, "1.5kB", 1500),
        (units.parse_size, 0, 0),
        (units.parse_duration, "30s", 30_000_000),
        (units.parse_duration, "1h30m", 5_400_000_000),
        (units.parse_duration, "250ms", 250_000),
        (units.parse_power, "16 MW", 16 * 10**9),
        (units.parse_power, "700W", 700_000),
        (units.parse_ramp, "50kW/s", (50 * 10**6, 10**6)),
        (units.parse_ramp, "2 MW / min", (2 * 10**9, 60 * 10**6)),
        (units.parse_bit_rate, "800Gbit/s", 800 * 10**9),
        (units.parse_bit_rate, "800Gb/s", 800 * 10**9),
        (units.parse_bit_rate, "100 GB/s", 800 * 10**9),
        (units.parse_count, "1.5M", 1_500_000),
        (units.parse_count, 600, 600),
        (units.parse_cpu, "250m", 250),
        (units.parse_cpu, 2, 2000),
        (units.parse_cpu, "0.5", 500),
        (units.parse_percent, "87.3%", 873),
        (units.parse_percent, 0.873, 873),
        (units.parse_rate, "10/s", 600),
        (units.parse_money, "0.15 USD", (150_000, "USD")),
        (units.parse_money, 0.1, (100_000, "")),
    ],
)
def test_quantity_is_read_exactly(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "error"),
    [
        (
            units.parse_size,
            "24Gb",
            (
                "'Gb' is not a unit of size. Expected a size, for example 24GB, 512MiB. "
                "Gb means bits; for bytes write GB."
            ),
        ),
        (units.parse_size, "-1GB", "'-1GB' is negative. Expected a size of zero or more."),
        (units.parse_size, "0.3B", "'0.3B' is finer than we keep. Expected a size. Round it."),
        (
            units.parse_power,
            "16 mw",
            (
                "'mw' is not a unit of power. Expected a power, for example 700W, 142kW, 16MW. "
                "Did you mean mW or MW?"
            ),
        ),
        (
            units.parse_duration,
            "30",
            (
                "'30' has no unit. Expected a duration, for example 30s, 5m, 2h. "
                "Use one of the units us, ms, s, m, min, h, d."
            ),
        ),
        (
            units.parse_count,
            True,
            "True is not a whole number. Expected a whole number, for example 600, 100k, 1.5M.",
        ),
        (
            units.parse_rate,
            "5/week",
            (
                "'5/week' is not a rate. Expected a count per period, for example 600/min. "
                "Use one of the periods s, second, min, minute, h, hour, d, day."
            ),
        ),
        (
            units.parse_money,
            "3 dollars",
            (
                "'3 dollars' is not an amount of money. "
                "Expected a number and an ISO 4217 currency, for example 0.15 USD."
            ),
        ),
        (units.parse_size, "9e18PB", "'9e18PB' is too large. Expected a size that fits 63 bits."),
    ],
)
def test_wrong_unit_says_what_fits(parse, text, error):
    with pytest.raises(UsageError) as raised:
        parse(text)
    assert str(raised.value) == error


@given(AMOUNTS)
def test_shown_size_is_near_what_was_kept(amount):
    assert units.parse_size(units.format_size(amount)) == pytest.approx(amount, rel=0.006)


@given(st.integers(min_value=0, max_value=86400 * 10**9))
def test_shown_duration_is_near_what_was_kept(amount):
    assert units.parse_duration(units.format_duration(amount)) == pytest.approx(amount, rel=0.006)


@given(AMOUNTS)
def test_money_is_shown_exactly(micros):
    assert units.parse_money(units.format_money(micros, "EUR")) == (micros, "EUR")


@given(st.text(max_size=80) | st.integers() | st.floats() | st.none() | st.lists(st.integers()))
def test_any_input_is_read_or_refused(value):
    for parse in (
        units.parse_size,
        units.parse_duration,
        units.parse_money,
        units.parse_rate,
        units.parse_cpu,
    ):
        try:
            parse(value)
        except UsageError as error:
            if not error.problem.expected:
                pytest.fail(f"no hint for {value!r}")


def test_nearest_name_ignores_case():
    assert units.did_you_mean("SMOL", ["smol", "desk"]) == "Did you mean smol?"
    assert units.did_you_mean("zzz", ["smol", "desk"]) == ""


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.5, "0.5 seconds"), (1, "1 second"), (600, "10 minutes"), (86400, "24 hours")]
)
def test_a_length_of_time_in_words(seconds: float, words: str) -> None:
    assert units.format_duration(round(seconds * 1e6), words=True) == words
