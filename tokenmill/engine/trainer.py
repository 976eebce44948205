"""Fine-tuning of a causal language model: the way in. Its values are in ``engine.tuning``.

The work itself is transformers' ``Trainer`` on a PEFT model or on all weights, set up in ``engine.sft``, and
TRL's ``DPOTrainer`` for preferences; they are loaded on first use because they bring torch. Serving,
evaluating and converting the adapter are not done here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from tokenmill.domain.errors import MissingExtraError
from tokenmill.engine import environment
from tokenmill.engine.tuning import Progress, TrainOutcome, TrainRequest


def train(request: TrainRequest, report: Callable[[Progress], None] = lambda _: None) -> TrainOutcome:
    """Tune and write the adapter or model to ``request.out_dir``.

    Continues from the last checkpoint in ``work_dir``.

    Raises ``DataError`` when no row can be used (names file and line), ``EngineError`` when training
    diverges, ``ResourceError`` when memory does not suffice for a single row, ``MissingExtraError`` without
    ``tune``.
    """
    environment.prepare()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries among themselves
            from tokenmill.engine import sft
    except ImportError as error:
        raise MissingExtraError(
            f"tuning needs torch, transformers and peft ({error})", fix="pip install 'tokenmill[tune]'"
        ) from error
    return sft.run(request, report)
