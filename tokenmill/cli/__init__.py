"""The command line: one file per verb under ``cli/verbs``, imported only when that verb is called."""

from tokenmill.cli.app import main

__all__ = ["main"]
