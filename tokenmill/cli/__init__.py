"""The command line: one file per verb under ``cli/verbs``, imported only when that verb is called."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Ctrl-C while it is still being imported ends it at once: nothing has begun that would have to end well.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not one that was told to ignore it
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from tokenmill.cli.app import app

    signal.signal(signal.SIGINT, before)
    app(args)
