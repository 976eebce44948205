"""The admin API and the status page over the controller's read side.

Decides nothing: it reads the state, and turns what a person asks for into events that ``control`` checks.
"""
