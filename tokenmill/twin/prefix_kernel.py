"""The prefix cache of a replica: which leading units of a prompt it holds, least recently used units go
first.

A hash table (open addressing, deletion by moving back; Knuth, TAOCP 6.4, algorithm R) over a doubly linked
list. Units in use by a running sequence are counted there in full and not here.
"""

from __future__ import annotations

from tokenmill.twin.compiling import compiled, inlined
from tokenmill.twin.floor_arrays import Array, Floor

EMPTY = -1
MASK = (1 << 31) - 1


@inlined
def unit_key(floor: Floor, slot: Array, at: int) -> int:
    """The identity of a prompt's unit ``at`` together with all before it."""
    if floor.units.shape[0] > 0:
        return int(floor.units[slot["key"] + at])
    if at < slot["shared"]:
        return int(((slot["tenant"] + 1) << 20) | at)
    return int(((slot["key"] + 1) << 36) | at)


@inlined
def _place(floor: Floor, key: int) -> int:
    size = floor.index.shape[1]
    low = key & MASK
    high = (key >> 31) & MASK
    mixed = low * 0x1E3779B1 + high * 0x05EBCA6B  # below 2**62: nothing overflows, in Python or compiled
    return int((mixed ^ (mixed >> 15)) & (size - 1))


@inlined
def _find(floor: Floor, r: int, key: int) -> int:
    """The position of a key in the index, or of the empty place where it would go."""
    last = floor.index.shape[1] - 1
    at = _place(floor, key)
    while floor.index[r, at] != EMPTY and floor.nodes[r, floor.index[r, at]]["key"] != key:
        at = (at + 1) & last
    return at


@inlined
def _unlink(floor: Floor, r: int, node: int) -> None:
    newer = floor.nodes[r, node]["newer"]
    older = floor.nodes[r, node]["older"]
    if newer == EMPTY:
        floor.replicas[r]["newest"] = older
    else:
        floor.nodes[r, newer]["older"] = older
    if older == EMPTY:
        floor.replicas[r]["oldest"] = newer
    else:
        floor.nodes[r, older]["newer"] = newer


@inlined
def _link(floor: Floor, r: int, node: int) -> None:
    newest = floor.replicas[r]["newest"]
    floor.nodes[r, node]["newer"] = EMPTY
    floor.nodes[r, node]["older"] = newest
    if newest == EMPTY:
        floor.replicas[r]["oldest"] = node
    else:
        floor.nodes[r, newest]["newer"] = node
    floor.replicas[r]["newest"] = node


@inlined
def _delete(floor: Floor, r: int, at: int) -> None:
    """Empty a place of the index and move back those that it had pushed on."""
    last = floor.index.shape[1] - 1
    hole = at
    at = (at + 1) & last
    while floor.index[r, at] != EMPTY:
        home = _place(floor, floor.nodes[r, floor.index[r, at]]["key"])
        if ((at - home) & last) >= ((at - hole) & last):
            floor.index[r, hole] = floor.index[r, at]
            hole = at
        at = (at + 1) & last
    floor.index[r, hole] = EMPTY


@compiled
def trim(floor: Floor, r: int, most: int) -> None:
    """Let the oldest units go until at most ``most`` are left."""
    while floor.replicas[r]["units"] > max(0, most):
        node = floor.replicas[r]["oldest"]
        _delete(floor, r, _find(floor, r, floor.nodes[r, node]["key"]))
        _unlink(floor, r, node)
        floor.nodes[r, node]["older"] = floor.replicas[r]["spare"]
        floor.replicas[r]["spare"] = node
        floor.replicas[r]["units"] -= 1


@compiled
def lookup(floor: Floor, r: int, slot: Array) -> int:
    """How many leading units of the prompt are cached; these become the most recently used, first one
    last."""
    found = 0
    while found < slot["units"]:
        if floor.index[r, _find(floor, r, unit_key(floor, slot, found))] == EMPTY:
            break
        found += 1
    for at in range(found - 1, -1, -1):
        node = floor.index[r, _find(floor, r, unit_key(floor, slot, at))]
        _unlink(floor, r, node)
        _link(floor, r, node)
    return found


@compiled
def insert(floor: Floor, r: int, slot: Array, most: int) -> None:
    """Keep a prompt's units, the last one first, so that a prompt's beginning outlives its end."""
    most = min(most, floor.nodes.shape[1])
    for at in range(min(slot["units"], most) - 1, -1, -1):
        key = unit_key(floor, slot, at)
        place = _find(floor, r, key)
        if floor.index[r, place] != EMPTY:
            node = floor.index[r, place]
            _unlink(floor, r, node)
            _link(floor, r, node)
            continue
        if floor.replicas[r]["units"] >= most:
            trim(floor, r, most - 1)
            place = _find(floor, r, key)
        node = floor.replicas[r]["spare"]
        if node == EMPTY:
            node = floor.replicas[r]["units"]
        else:
            floor.replicas[r]["spare"] = floor.nodes[r, node]["older"]
        floor.nodes[r, node]["key"] = key
        floor.index[r, place] = node
        _link(floor, r, node)
        floor.replicas[r]["units"] += 1
