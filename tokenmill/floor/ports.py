"""What the runtime asks of a floor, and what a floor may ask back.

These protocols are the seam between the real floor and a simulated one. They hold no code.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from tokenmill.control.state import State
from tokenmill.domain.effects import Effect
from tokenmill.domain.events import Event
from tokenmill.domain.factory import Factory, Node

Report = Callable[[Event], Awaitable[None]]
"""Hand an event to the runtime. Returns when the journal holds it, so that what proves the event
(a record file, a result) may be deleted afterwards, and never before."""

Current = Callable[[], State]
"""The state as it is now."""

Clock = Callable[[], int]
"""Microseconds since the epoch."""


class Floor(Protocol):
    """Carries out effects. Every call with an effect that is already done, or under way, does nothing."""

    async def start(self, report: Report, current: Current) -> None:
        """Begin to watch; nothing is reported before this."""

    async def adopt(self, state: State) -> None:
        """Take over what an earlier controller left, report what ended meanwhile, kill what nobody owns."""

    async def carry_out(self, effect: Effect) -> None:
        """Begin to do ``effect``. Returns soon; long work goes on in the floor's own tasks."""

    def inventory(self, factory: Factory) -> tuple[Node, ...]:
        """Return the nodes that are here now, as ``factory`` names them. Later ones are reported."""

    def energy(self) -> EnergyAccount:
        """Return the account of energy that engines used and nobody has paid for yet."""

    def progress(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the last progress line of each living job, and of each import as ``import-<model>``."""

    def url(self) -> str:
        """Return where the gateway listens; "" while it does not."""

    async def close(self, stop_all: bool) -> None:
        """Stop watching; with ``stop_all`` also end every process, and return when none is left."""


class EnergyAccount(Protocol):
    """Energy per replica since it was last taken: integers in millijoules, nothing lost in rounding."""

    def refresh(self) -> None:
        """Read the meters now. Blocks for a moment."""

    def owed(self) -> Mapping[str, int]:
        """Return what each replica used and nobody paid for, also of replicas that ended."""

    def ended(self) -> frozenset[str]:
        """Return the replicas that are gone but may still owe."""

    def forget_ended(self) -> None:
        """Drop those that are gone and owe nothing."""

    def take(self, amounts: Mapping[str, int]) -> None:
        """Mark amounts as paid, durably, before they are posted: a crash may lose them, never bill twice."""

    def give_back(self, amounts: Mapping[str, int]) -> None:
        """Undo ``take`` for a posting that failed."""

    def watts(self) -> float:
        """Return the mean power of all processes over the last seconds."""

    def source(self) -> str:
        """Say how the energy is known."""
