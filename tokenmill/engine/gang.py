"""The gang that a trainer's process belongs to: its rank, its peers, and how they agree on one value.

Reads what ``torchrun`` and the floors set (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) and joins
no process group: the trainer does, with NCCL on GPUs and gloo on CPUs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenmill.domain.errors import UsageError

NEEDED = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Gang:
    """``rank`` of ``world`` processes, ``local_rank`` among those of this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process speaks, saves and decides for all."""
        return self.rank == 0

    def agree(self, values: Sequence[float]) -> list[float]:
        """Rank 0's ``values`` on every rank; must be called by all. Clocks differ, so one decides."""
        if self.world == 1:
            return list(values)
        import torch
        from torch import distributed

        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        agreed = torch.tensor(list(values), dtype=torch.float64, device=device)
        distributed.broadcast(agreed, src=0)
        return [float(value) for value in agreed.tolist()]

    def gather(self, value: float) -> list[float]:
        """Every rank's ``value`` on every rank, by rank; must be called by all."""
        if self.world == 1:
            return [value]
        import torch
        from torch import distributed

        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        mine = torch.tensor([value], dtype=torch.float64, device=device)
        every = [torch.zeros_like(mine) for _ in range(self.world)]
        distributed.all_gather(every, mine)
        return [float(one.item()) for one in every]


def gang_of(environ: Mapping[str, str] = os.environ) -> Gang:
    """The gang that the environment describes; one process without one. Raises ``UsageError``."""
    try:
        world = int(environ.get("WORLD_SIZE") or 1)
        rank = int(environ.get("RANK") or 0)
        local = int(environ.get("LOCAL_RANK") or 0)
    except ValueError as error:
        raise UsageError(f"RANK, LOCAL_RANK or WORLD_SIZE is no whole number: {error}") from error
    if world < 1 or not 0 <= rank < world:
        raise UsageError(f"rank {rank} of {world} workers", expected="RANK from 0 to WORLD_SIZE - 1")
    missing = [name for name in NEEDED if not environ.get(name)]
    if world > 1 and missing:
        raise UsageError(
            f"worker {rank} of {world} does not know where the first one is: {', '.join(missing)} not set",
            fix="Start the workers with torchrun, or as a gang of a floor.",
        )
    return Gang(rank, world, local)
