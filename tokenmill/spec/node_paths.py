"""The files of one node of a factory: what it shares with all others, and what is its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenmill.spec.paths import Paths


@dataclass(frozen=True, slots=True)
class NodePaths(Paths):
    """Jobs, logs and artifacts lie where they lie for every node; records of processes are the node's own."""

    node: str

    @property
    def run(self) -> Path:
        return self.root / "run" / "nodes" / self.node

    @property
    def shared_nonce(self) -> Path:
        """Holds a random text of the controller: who reads it sees the same directory."""
        return self.root / "run" / "nonce"


def node_names(paths: Paths) -> tuple[str, ...]:
    """Return the nodes, other than the controller's own, that ever worked in this data directory."""
    folder = paths.run / "nodes"
    return tuple(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else ()
