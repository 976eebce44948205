"""Whether a line is due to run by itself: the time, enough new rows, data that drifted, or worse answers.

Drift of lengths is the population stability index of the new rows against those that the last run read:
the sum of (p - q) ln(p / q) over buckets. By custom 0.1 is some change and 0.25 a large one. Drift of words
is the Jensen-Shannon divergence in bits (Lin 1991, IEEE Transactions on Information Theory 37), from 0 to 1,
less what two samples of the same words would show by chance: (k - 1) (1/n + 1/m) / (8 ln 2) for k buckets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from tokenmill.domain.trigger import Trigger, parse_cron
from tokenmill.policy.gate import wilson

MIN_DRIFT_ROWS = 50  # fewer new rows say nothing about drift
MIN_DRIFT_WORDS = 300
MIN_OPINIONS = 20
HALF = 0.5  # added to each bucket, so that an empty one does not make the index infinite


@dataclass(frozen=True, slots=True)
class Due:
    """The decision, with what was looked at and what came of it."""

    run: bool
    reasons: tuple[str, ...]


def due(
    trigger: Trigger,
    profile: Sequence[int],
    *,
    last_profile: Sequence[int],
    words: Sequence[int] = (),
    opinions: tuple[int, int] = (0, 0),
    last_words: Sequence[int] = (),
    last_started_us: int,
    now_us: int,
) -> Due:
    """Decide on data of this ``profile`` and ``words``; the last ones are of what the line's last run read.
    ``opinions`` are good and bad ones on the answers of the release that serves, since that run began.

    Without an earlier run ``last_started_us`` is when the trigger was first looked at, so that a cron time
    before it is not made up for.
    """
    fresh = _new(profile, last_profile)
    checks: list[tuple[bool, str]] = []
    if trigger.cron:
        at_us = parse_cron(trigger.cron).next_after(last_started_us)
        checks.append((at_us is not None and at_us <= now_us, f"cron {trigger.cron!r}"))
    if trigger.new_rows:
        new = sum(profile) - sum(last_profile)
        checks.append((new >= trigger.new_rows, f"{new} new rows, {trigger.new_rows} are enough"))
    if trigger.drift_milli:
        index = stability_milli(last_profile, fresh)
        told = sum(fresh) >= MIN_DRIFT_ROWS and sum(last_profile) > 0
        sentence = (
            f"the new rows drifted by {index / 1000:.2f}, {trigger.drift_milli / 1000:.2f} is the bound"
        )
        checks.append((told and index >= trigger.drift_milli, sentence))
    if trigger.words_drift_milli:
        new_words = _new(words, last_words)
        moved = divergence_milli(last_words, new_words)
        told = sum(fresh) >= MIN_DRIFT_ROWS and sum(new_words) >= MIN_DRIFT_WORDS <= sum(last_words)
        sentence = f"the new rows' words moved by {moved / 1000:.3f} bits"
        sentence += f", {trigger.words_drift_milli / 1000:.3f} is the bound"
        checks.append((told and moved >= trigger.words_drift_milli, sentence))
    if trigger.quality_milli:
        good, said = opinions[0], sum(opinions)
        _, high = wilson(good / said, said) if said else (0.0, 1.0)
        sentence = f"{good} of {said} opinions are good, {trigger.quality_milli / 10:g} % is the bound"
        checks.append((said >= MIN_OPINIONS and high < trigger.quality_milli / 1000, sentence))
    reasons = tuple(f"{'due' if yes else 'not due'}: {sentence}" for yes, sentence in checks)
    return Due(any(yes for yes, _ in checks), reasons)


def stability_milli(before: Sequence[int], after: Sequence[int]) -> int:
    """The population stability index of two profiles in thousandths; 0 when one is empty."""
    if not sum(before) or not sum(after):
        return 0
    pairs = _padded(before, after)
    total_p, total_q = (sum(counts) + HALF * len(pairs) for counts in (before, after))
    shares = [((a + HALF) / total_p, (b + HALF) / total_q) for a, b in pairs]
    return round(1000 * math.fsum((a - b) * math.log(a / b) for a, b in shares))


def divergence_milli(before: Sequence[int], after: Sequence[int]) -> int:
    """The Jensen-Shannon divergence of two counts in thousandths of a bit, less chance; 0 without one."""
    n, m = sum(before), sum(after)
    if not n or not m:
        return 0
    pairs = [(a / n, b / m) for a, b in _padded(before, after)]
    found = math.fsum(_part(a, b) + _part(b, a) for a, b in pairs) / 2
    chance = (len(pairs) - 1) * (1 / n + 1 / m) / (8 * math.log(2))
    return round(1000 * max(0.0, found - chance))


def _part(share: float, other: float) -> float:
    return share * math.log2(2 * share / (share + other)) if share else 0.0


def _new(now: Sequence[int], then: Sequence[int]) -> list[int]:
    return [max(0, a - b) for a, b in _padded(now, then)]


def _padded(one: Sequence[int], other: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip_longest(one, other, fillvalue=0))
