"""A binary heap in a row of an array, smallest first: the sequences of a replica by their last step."""

from __future__ import annotations

from tokenmill.twin.compiling import inlined
from tokenmill.twin.floor_arrays import Array


@inlined
def sift_up(heap: Array, count: int, value: int) -> None:
    """Add a value to a heap of ``count``."""
    at = count
    while at > 0:
        parent = (at - 1) >> 1
        if heap[parent] <= value:
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = value


@inlined
def sift_down(heap: Array, count: int, value: int) -> None:
    """Put ``value`` where the least of a heap was taken, ``count`` being what is left."""
    at = 0
    while True:
        child = 2 * at + 1
        if child >= count:
            break
        if child + 1 < count and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = value
