"""Is the candidate better, or was it luck? A paired exact test on the same items; fails closed.

Candidate and reference answered the same items, so only the items on which they differ carry evidence:
McNemar's test in its exact one-sided form (a binomial test on the discordant pairs; McNemar 1947,
Psychometrika 12). The 95 % interval of the difference is Newcombe's hybrid score interval for paired
proportions with continuity-corrected phi (method 10 of Newcombe 1998, Statistics in Medicine 17, 2635).
Graded scores are compared by ``policy.signflip``. Against several references every one must be beaten, and
every bound on another figure be kept (an intersection-union test), so no correction for several comparisons
is due.

With ``rule: not_clearly_worse`` the same exact test is turned round: the candidate is stopped when it is
worse beyond luck. Few items stop little then; it is meant for a tenant's own model, which no other tenant is
served.

Evidence that is missing, contradicts itself, is about another number of items, or does not name by digest
what it is about, rejects the candidate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenmill.domain.bounds import parse_bound
from tokenmill.domain.work import GateVerdict
from tokenmill.policy.signflip import mean_interval, sign_flip_p

Z95 = 1.959963984540054
MIN_ITEMS = 30
ALPHA = 0.05
MAX_UNGRADED = 0.05
NAMED = ("data", "items", "engine", "settings", "candidate_weights")
"""What evidence must name, beside the weights of every reference: else nobody could say what was judged."""
EXACT_MOST = 2000
"""Up to this many discordant pairs the tail is summed in whole numbers, above it in logarithms."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """How two answered the same items: both right, neither, only the candidate, only the reference."""

    both: int
    neither: int
    candidate_only: int
    reference_only: int

    @property
    def n(self) -> int:
        return self.both + self.neither + self.candidate_only + self.reference_only


def exact_p(candidate_only: int, reference_only: int) -> float:
    """One-sided p: the chance of at least ``candidate_only`` heads in that many fair throws."""
    n = candidate_only + reference_only
    if n <= EXACT_MOST:
        tail = sum(math.comb(n, k) for k in range(candidate_only, n + 1))
        return tail / (1 << n)
    log_all = math.lgamma(n + 1) - n * math.log(2.0)
    terms = (
        math.exp(log_all - math.lgamma(k + 1) - math.lgamma(n - k + 1)) for k in range(candidate_only, n + 1)
    )
    return min(1.0, math.fsum(terms))


def interval(pairs: Pairs) -> tuple[float, float]:
    """The 95 % interval of (candidate's - reference's) share of right answers. Needs at least one item."""
    n = pairs.n
    candidate = (pairs.both + pairs.candidate_only) / n
    reference = (pairs.both + pairs.reference_only) / n
    low_c, high_c = wilson(candidate, n)
    low_r, high_r = wilson(reference, n)
    phi = _phi(pairs)
    down_c, up_c = candidate - low_c, high_c - candidate
    down_r, up_r = reference - low_r, high_r - reference
    difference = candidate - reference
    low = difference - math.sqrt(max(0.0, down_c**2 - 2 * phi * down_c * up_r + up_r**2))
    high = difference + math.sqrt(max(0.0, up_c**2 - 2 * phi * up_c * down_r + down_r**2))
    return max(-1.0, low), min(1.0, high)


def judge(evidence: Mapping[str, Any], params: Mapping[str, Any], *, champion: bool) -> GateVerdict:
    """Decide on a candidate.

    ``evidence`` is what an evaluate station left: ``metric``, ``n`` and ``pairs`` by reference. ``params``
    are the gate's: ``against`` (base, champion, both), ``rule``, ``min_items``, ``alpha`` and
    ``min_difference_milli``.
    ``champion`` says whether a champion served when the candidate was evaluated; without one, the base is the
    reference. The verdict's numbers are those of the reference that was hardest to beat.
    """
    metric = str(evidence.get("metric", ""))
    digests = _digests(evidence)
    against, notes = _against(str(params.get("against", "both")), champion=champion)
    if not against:
        return GateVerdict(False, notes, metric, digests=digests)
    nameless = [name for name in (*NAMED, *(f"{name}_weights" for name in against)) if not digests.get(name)]
    if nameless:
        unnamed = f"The evidence does not name by digest: {', '.join(nameless)}. The gate stays shut."
        return GateVerdict(False, (*notes, unnamed), metric, digests=digests)
    if champion and _weights(digests, "candidate") == _weights(digests, "champion"):
        notes = (*notes, "The candidate is the champion itself, byte for byte: nothing was made anew.")
    if ungraded := _ungraded(evidence, against, float(params.get("max_ungraded", MAX_UNGRADED))):
        return GateVerdict(False, (*notes, ungraded), metric, digests=digests)
    found: list[GateVerdict] = []
    for name in against:
        verdict = _graded(evidence, name, params, metric) if evidence.get("graded") else None
        if verdict is None:
            pairs = _pairs(evidence, name)
            verdict = pairs if isinstance(pairs, str) else _compare(name, pairs, params, metric)
        if isinstance(verdict, str):
            return GateVerdict(False, (*notes, verdict), metric, digests=digests)
        found.append(verdict)
    worst = max(found, key=lambda verdict: (not verdict.passed, verdict.p_value, -verdict.difference_milli))
    kept = [_bound(text, evidence, champion=champion) for text in params.get("bounds", ())]
    return replace(
        worst,
        passed=all(verdict.passed for verdict in found) and all(ok for ok, _ in kept),
        reasons=(
            *notes,
            *(reason for verdict in found for reason in verdict.reasons),
            *(_said(ok, sentence) for ok, sentence in kept),
        ),
        digests=digests,
    )


def _digests(evidence: Mapping[str, Any]) -> dict[str, str]:
    found = evidence.get("digests")
    pairs = sorted(found.items()) if isinstance(found, Mapping) else ()
    return {str(name): str(value) for name, value in pairs if value is not None}


def _weights(digests: Mapping[str, str], name: str) -> tuple[str, str]:
    return digests.get(f"{name}_weights", ""), digests.get(f"{name}_adapter", "")


def _bound(text: str, evidence: Mapping[str, Any], *, champion: bool) -> tuple[bool, str]:
    """Whether a bound on one figure is kept. A figure that is missing, or no number, does not keep it."""
    try:
        bound = parse_bound(str(text))
    except ValueError as error:
        return False, f"{error}; the gate stays shut"
    # Where no champion serves yet, the base is what must not be fallen behind.
    name = "base" if bound.reference == "champion" and not champion else bound.reference
    value = _figure(evidence, "candidate", bound.name)
    other = _figure(evidence, name, bound.name) if name else 0.0
    if value is None or other is None:
        whose = "candidate" if value is None else name
        return False, f"there is no {bound.name} of the {whose}, so {bound.text} is not kept"
    limit = bound.limit(other)
    ok = value <= limit if bound.at_most else value >= limit
    sign = "<=" if bound.at_most else ">="
    return ok, f"{bound.name} is {value:g}, {sign} {limit:g} is needed ({bound.text})"


def _figure(evidence: Mapping[str, Any], subject: str, name: str) -> float | None:
    subjects = evidence.get("subjects")
    report = subjects.get(subject) if isinstance(subjects, Mapping) else None
    value = report.get(name) if isinstance(report, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _graded(
    evidence: Mapping[str, Any], name: str, params: Mapping[str, Any], metric: str
) -> GateVerdict | str:
    """Compare graded scores with one reference; the sentence that says why not, where that cannot be."""
    by_name = evidence.get("differences_milli")
    raw = by_name.get(name) if isinstance(by_name, Mapping) else None
    if not isinstance(raw, list | tuple) or any(isinstance(d, bool) or not isinstance(d, int) for d in raw):
        return f"There is no evidence against the {name}: the gate stays shut."
    n, without = len(raw), _dropped(evidence, name)
    if n + without != evidence.get("n"):
        left = f" and {without} ungraded ones" if without else ""
        return f"The evidence against the {name} counts {n} items{left}, not n = {evidence.get('n')}."
    if n < 2:
        return f"{n} items were evaluated against the {name}: the gate stays shut."
    low, high = mean_interval(raw)
    means = [_figure(evidence, subject, "score_milli") for subject in ("candidate", name)]
    return _verdict(
        name,
        params,
        metric,
        n=n,
        p=sign_flip_p(raw),
        p_worse=sign_flip_p([-d for d in raw]),
        sum_milli=sum(raw),
        bounds=(low, high),
        shares=(round(means[0] or 0), round(means[1] or 0)),
    )


def _dropped(evidence: Mapping[str, Any], name: str) -> int:
    """Items that are not compared with ``name``, because a judge graded only one answer or none."""
    by_name = evidence.get("ungraded")
    count = by_name.get(name) if isinstance(by_name, Mapping) else None
    return count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else 0


def _ungraded(evidence: Mapping[str, Any], against: Sequence[str], most: float) -> str:
    """Why too much is without a grade, where it is: those left out may be just the bad answers."""
    n = evidence.get("n")
    for name in against:
        missing = _dropped(evidence, name)
        if missing and (not isinstance(n, int) or missing > most * n):
            return (
                f"{missing} of {n} items have no grade to compare with the {name}, at most {most:.1%}"
                " may be without: the gate stays shut."
            )
    for name in ("candidate", *against):
        milli = _figure(evidence, name, "judge_ungraded_milli")
        if milli is not None and milli > most * 1000:
            return (
                f"The judge left {milli / 10:.1f} % of the answers of the {name} without a grade, at most"
                f" {most:.1%} may be: the gate stays shut."
            )
    return ""


def _against(asked: str, *, champion: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if asked not in ("base", "champion", "both"):
        return (), (f"The gate's 'against' is {asked!r}; expected base, champion or both. It stays shut.",)
    if asked == "base":
        return ("base",), ()
    if not champion:
        return ("base",), ("No champion serves yet, so the base is the reference.",)
    return (("champion",) if asked == "champion" else ("base", "champion")), ()


def _pairs(evidence: Mapping[str, Any], name: str) -> Pairs | str:
    """The pairs against one reference, or the sentence that says why they cannot be used."""
    by_name = evidence.get("pairs")
    raw = by_name.get(name) if isinstance(by_name, Mapping) else None
    if not isinstance(raw, Mapping):
        return f"There is no evidence against the {name}: the gate stays shut."
    counts = [raw.get(field) for field in ("both", "neither", "candidate_only", "reference_only")]
    if any(not isinstance(count, int) or isinstance(count, bool) or count < 0 for count in counts):
        return f"The evidence against the {name} is not four whole counts: the gate stays shut."
    pairs = Pairs(*(int(count or 0) for count in counts))
    if pairs.n != evidence.get("n"):
        return f"The evidence against the {name} counts {pairs.n} items, not n = {evidence.get('n')}."
    if pairs.n == 0:
        return f"No item was evaluated against the {name}: the gate stays shut."
    return pairs


def _compare(name: str, pairs: Pairs, params: Mapping[str, Any], metric: str) -> GateVerdict:
    n = pairs.n
    low, high = interval(pairs)
    return _verdict(
        name,
        params,
        metric,
        n=n,
        p=exact_p(pairs.candidate_only, pairs.reference_only),
        p_worse=exact_p(pairs.reference_only, pairs.candidate_only),
        sum_milli=(pairs.candidate_only - pairs.reference_only) * 1000,
        bounds=(low * 1000, high * 1000),
        shares=(_milli(pairs.both + pairs.candidate_only, n), _milli(pairs.both + pairs.reference_only, n)),
    )


def _verdict(
    name: str,
    params: Mapping[str, Any],
    metric: str,
    *,
    n: int,
    p: float,
    p_worse: float,
    sum_milli: int,
    bounds: tuple[float, float],
    shares: tuple[int, int],
) -> GateVerdict:
    """The checks that every comparison goes through. ``sum_milli`` is of the items' differences."""
    min_items = int(params.get("min_items", MIN_ITEMS))
    alpha = float(params.get("alpha", ALPHA))
    floor_milli = int(params.get("min_difference_milli", 0))
    low_milli, high_milli = math.floor(bounds[0]), math.ceil(bounds[1])
    better = f"it is {sum_milli / n / 10:.1f} points better than the {name}"
    shown = f"95 % interval {low_milli / 10:.1f} to {high_milli / 10:.1f}"
    counted = (n >= min_items, f"{n} items were compared with the {name}, {min_items} are needed")
    if params.get("rule", "better") == "not_clearly_worse":
        text = f"{better} ({shown}); that it is worse by luck alone has p = {p_worse:.4g}"
        checks: tuple[tuple[bool, str], ...] = (
            counted,
            (p_worse > alpha, f"{text}, {alpha:g} or less is a no"),
        )
    else:
        checks = (
            counted,
            (p <= alpha, f"by luck this against the {name} has p = {p:.4g}, at most {alpha:g} is allowed"),
            (sum_milli >= floor_milli * n, f"{better} ({shown}), {floor_milli / 10:.1f} are needed"),
        )
    return GateVerdict(
        passed=all(ok for ok, _ in checks),
        reasons=tuple(_said(ok, sentence) for ok, sentence in checks),
        metric=metric,
        n=n,
        candidate_milli=shares[0],
        reference_milli=shares[1],
        difference_milli=(2 * sum_milli + n) // (2 * n),
        low_milli=low_milli,
        high_milli=high_milli,
        p_value=p,
    )


def _said(ok: bool, sentence: str) -> str:
    return f"{'Passed' if ok else 'Failed'}: {sentence}."


def _milli(count: int, n: int) -> int:
    return (2 * count * 1000 + n) // (2 * n)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's score interval at 95 % (Wilson 1927)."""
    z2 = Z95 * Z95
    middle = share + z2 / (2 * n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n))


def _phi(pairs: Pairs) -> float:
    a, b, c, d = pairs.both, pairs.candidate_only, pairs.reference_only, pairs.neither
    product = (a + b) * (c + d) * (a + c) * (b + d)
    if product == 0:
        return 0.0
    numerator = float(a * d - b * c)
    if numerator > 0:
        numerator = max(0.0, numerator - pairs.n / 2)
    return numerator / math.sqrt(product)
