"""What places whose rise is bounded drew lately: noted as work and nodes come and go.

It decides nothing: ``control.placing`` asks ``policy.power`` whether something may start. The draw is what
the admitted work may draw at most, as for caps.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenmill.control.draft import Draft
from tokenmill.control.placing import drawn_mw
from tokenmill.policy.power import remembered


def note(draft: Draft, now_us: int) -> None:
    """Remember the draw of each place with a ramp when it may have changed in this step."""
    base, ramps = draft.base, draft.index.ramps
    if not ramps and not draft.draws:
        return
    for place in sorted(draft.draws):
        if place not in ramps:
            draft.put_draw(place, ())
    fresh = any(place not in draft.draws for place in ramps)
    if fresh or draft.leases is not base.leases or draft.nodes is not base.nodes:
        _note(draft, ramps, now_us)


def due(draft: Draft, place: str, now_us: int) -> None:
    """The least draw of a place has left its window: it may rise, so what waits may start."""
    _note(draft, [place], now_us)
    draft.freed, draft.freed_nodes = True, None


def _note(draft: Draft, places: Iterable[str], now_us: int) -> None:
    for place, draw_mw in drawn_mw(draft, places).items():
        window_us = draft.index.ramps[place].window_us
        draft.put_draw(place, remembered(draft.draws.get(place, ()), now_us, draw_mw, window_us))
