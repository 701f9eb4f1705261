"""`train.py`: resolve the configuration, then train, resume or skip, and evaluate."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from saccade.run.config import CONF, register

log = logging.getLogger("saccade")

register()


def main() -> None:
    """Entry point of train.py. Errors that a user can mend end in one message and exit code 1; Ctrl-C in 130."""
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")(_job)()


def _job(config: DictConfig) -> float | None:
    from saccade.run.train import TrainingInterrupted, train

    try:
        result = train(config)
    except TrainingInterrupted:
        sys.exit(130)
    except (ValueError, RuntimeError, FileNotFoundError, HydraException) as error:
        if log.isEnabledFor(logging.DEBUG):
            raise
        print(f"\nError: {_message(error)}", file=sys.stderr, flush=True)
        sys.exit(1)
    if result.get("passed") is False:
        told = f"{result['failure']} (judge nothing: budget.max_ratio=null budget.max_rise=null)"
        print(f"\nFAILED: {told}", file=sys.stderr)
        sys.exit(2)
    return _headline(result)


def _message(error: BaseException) -> str:
    """The message of the error itself: Hydra wraps those of constructors in its own."""
    while isinstance(error, HydraException) and error.__cause__ is not None:
        error = error.__cause__
    return str(error)


def _headline(result: dict[str, Any]) -> float | None:
    """What sweepers minimise."""
    name = result.get("headline")
    return result["metrics"].get(name) if name else None
