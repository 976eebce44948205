"""What a training takes from the machine: joules of its GPU by NVML's counter, and the most memory it held.

On a CPU the floor accounts the energy (a counter or a stated model); here it is 0 and says so.
"""

from __future__ import annotations

import resource
from typing import Any

import torch


class Meter:
    """Reads the device that this process trains on. ``energy_source`` is empty where nothing is measured."""

    def __init__(self, device: str, local_rank: int = 0) -> None:
        self._handle: Any = None
        self._nvml: Any = None
        self.cuda = device == "cuda"
        self.energy_source = ""
        self.device_name = torch.cuda.get_device_name(local_rank) if self.cuda else "cpu"
        if self.cuda:
            self._open(local_rank)
        self._begin_mj = self._now_mj()

    def _open(self, local_rank: int) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            # By UUID: CUDA's numbers follow CUDA_VISIBLE_DEVICES, NVML's do not.
            uuid = f"GPU-{torch.cuda.get_device_properties(local_rank).uuid}"
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except Exception:  # noqa: BLE001 - no NVML, no right, no counter: there is no figure then
            self._handle = None
            return
        self._nvml = pynvml
        self.energy_source = "NVML total energy counter of the GPU"

    def _now_mj(self) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) if self._nvml else 0

    def begin(self) -> None:
        """Count from now on."""
        self._begin_mj = self._now_mj()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()

    @property
    def energy_mj(self) -> int:
        """Millijoules since ``begin``."""
        return self._now_mj() - self._begin_mj

    @property
    def peak_memory_bytes(self) -> int:
        """Most bytes that tensors took on the GPU since ``begin``, or this process on a CPU ever."""
        if self.cuda:
            return int(torch.cuda.max_memory_allocated())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
