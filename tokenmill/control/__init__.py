"""The deterministic control core: ``step(state, event) -> (state, effects)``.

No clock, no randomness, no I/O, no await, no logging. A floor, or the twin, drives it.
"""
