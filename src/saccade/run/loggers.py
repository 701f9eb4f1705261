"""Mirrors of a run's record: W&B, online if a key exists, else offline with one notice, never a prompt."""

from __future__ import annotations

import logging
import netrc
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger, WandbLogger

log = logging.getLogger(__name__)

WANDB_MODES = ("auto", "online", "offline", "off")


def wandb_key_exists() -> bool:
    """Whether W&B would find a key without asking: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].split("/")[0]
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def wandb_mode(asked: str) -> str:
    """`online`, `offline` or `off` for the runtime option `wandb`; WANDB_MODE in the environment decides for `auto`.

    Raises:
        ValueError: an unknown mode.
    """
    if asked not in WANDB_MODES:
        raise ValueError(f"runtime.wandb={asked} is unknown; choose one of {', '.join(WANDB_MODES)}")
    if asked != "auto":
        return asked
    from_environment = os.environ.get("WANDB_MODE")
    if from_environment in ("online", "offline"):
        return from_environment
    if from_environment in ("disabled", "dryrun"):
        return "off" if from_environment == "disabled" else "offline"
    if wandb_key_exists():
        return "online"
    log.info("W&B: no API key found, so this run is logged offline (later: `wandb sync`). Silence: runtime.wandb=off")
    return "offline"


def wandb_logger(config: DictConfig, folder: Path, *, name: str, signature: str, tags: list[str]) -> Logger | None:
    """A W&B logger that continues the run of the same signature, on an axis of images seen; None if it is off."""
    mode = wandb_mode(config.runtime.wandb)
    if mode == "off":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    options: dict[str, Any] = {"resume": "allow"} if mode == "online" else {}
    logger = WandbLogger(
        name=name.split("/", 1)[-1],
        project=config.runtime.wandb_project,
        group=name.split("/", 1)[0],
        save_dir=str(folder),
        id=signature,
        offline=mode == "offline",
        tags=tags,
        **options,
    )
    logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    logger.experiment.define_metric("images_seen")
    logger.experiment.define_metric("*", step_metric="images_seen")
    return logger
