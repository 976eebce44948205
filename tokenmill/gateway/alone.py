"""What admission and routing remember in a process that shares its port with none.

Nobody else writes, so memory is what counts. Meters are in the file of ``shared`` too, so that a dead gateway
forgets no budget: what changed is written when the loop has turned once more, together for all requests of
that turn and after their bytes have gone out. A process that is killed within it forgets that turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec.structs import astuple

from tokenmill.control.edge import EndpointMemory
from tokenmill.gateway.shared import SharedFile
from tokenmill.policy.admit import Meter


class OwnMeters:
    """``control.edge.Kept`` of meters. ``soon`` calls what it is given when the loop turns."""

    def __init__(self, file: SharedFile, kind: str, soon: Callable[[Callable[[], None]], object]) -> None:
        self._file = file
        self._kind = kind
        self._soon = soon
        self._values: dict[str, Meter] = {}
        self._changed: dict[str, Meter] = {}
        self._due = False
        self._bases: dict[str, int] = {}
        self._generation = file.generation

    def get(self, name: str) -> Meter:
        """What was set last, in this life or an earlier one; else an empty meter."""
        found = self._values.get(name)
        if found is None:
            base = self._file.find(self._kind + name)
            found = self._values[name] = Meter() if base is None else self._read(base)
        return found

    def set(self, name: str, value: Meter) -> OwnMeters:
        self._values[name] = self._changed[name] = value
        if not self._due:
            self._due = True
            self._soon(self.flush)
        return self

    def delete(self, name: str) -> OwnMeters:
        """Forget it here; who is taken out of the table and put in again has no new budget."""
        self._values.pop(name, None)
        return self

    def items(self) -> Iterable[tuple[str, Meter]]:
        """Those that this process has used."""
        return self._values.items()

    def flush(self) -> None:
        """Write what changed. What no disk takes is tried again with the next change."""
        changed, self._changed, self._due = self._changed, {}, False
        if not changed:
            return
        file = self._file
        if self._generation != file.generation:
            self._bases, self._generation = {}, file.generation
        for name, value in changed.items():
            try:
                base = self._bases.get(name)
                if base is None:
                    base = self._bases[name] = file.slot(self._kind + name)
                opened, *numbers = astuple(value)  # type: ignore[arg-type]
                file.put_alone(base, tuple(numbers), opened)
            except OSError:
                self._changed.setdefault(name, value)

    def close(self) -> None:
        """Write what changed, for the last time."""
        self.flush()
        self._changed = {}

    def _read(self, base: int) -> Meter:
        *numbers, opened = self._file.read_alone(base)
        return Meter(opened, *numbers)


class OwnEndpoints(dict[str, EndpointMemory]):
    """``control.edge.Kept`` of replicas."""

    def set(self, name: str, value: EndpointMemory) -> OwnEndpoints:
        self[name] = value
        return self

    def delete(self, name: str) -> OwnEndpoints:
        self.pop(name, None)
        return self
