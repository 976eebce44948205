"""What a line's stations do: intake, curate, tune, evaluate and pack; each runs as a job of its own process.

Decides nothing about order, placement or release: ``control`` does, and its gate reads what evaluate found.
"""
