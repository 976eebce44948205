"""The nouns of the factory, its events, effects, errors and units. Imports nothing of ours.

Does no I/O, reads no clock and draws no random number.
"""
