"""A run is identified by a hash of its whole resolved configuration minus the `runtime` group."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, ListConfig, OmegaConf

SIGNATURE_LENGTH = 8
_REPEATED = re.compile(r"\$\{([\w.]+)\}")


def resolve_autos(config: DictConfig) -> list[str]:
    """Replace, in place, every `auto` that would make one configuration name two different runs.

    A class that is the `_target_` of a node may define `resolve_auto(options, runtime) -> (changes, notices)`, where
    `options` are the node's plain values and `runtime` the runtime group's; `changes` replace the node's values.

    Returns:
        The notices: what the user must know (stand-in data, random weights).
    """
    runtime = OmegaConf.to_container(config.runtime, resolve=True)
    notices: list[str] = []
    for node in _targets(config):
        resolver = getattr(get_class(node._target_), "resolve_auto", None) if _is_class(node._target_) else None
        if resolver is None:
            continue
        options = {str(key): node[key] for key in node if key != "_target_"}
        changes, told = resolver(options, runtime)
        for key, value in changes.items():
            _set(config, node, key, value)
        notices += [notice for notice in told if notice not in notices]
    return notices


def _set(config: DictConfig, node: DictConfig, key: str, value: Any) -> None:
    """Change an option where it is written: if it repeats another key, that one, so that no `auto` remains there."""
    raw = OmegaConf.to_container(node, resolve=False)
    written = str(raw[key]) if isinstance(raw, dict) and key in raw else ""
    repeated = _REPEATED.fullmatch(written)
    if repeated:
        OmegaConf.update(config, repeated.group(1), value)
    else:
        OmegaConf.update(node, key, value)


def _is_class(path: str) -> bool:
    return path.rsplit(".", 1)[-1][:1].isupper()


def _targets(node: Any) -> list[DictConfig]:
    if isinstance(node, DictConfig):
        here = [node] if "_target_" in node else []
        return here + [found for key in node for found in _targets(node[key])]
    if isinstance(node, ListConfig):
        return [found for item in node for found in _targets(item)]
    return []


def identity(config: DictConfig) -> dict[str, Any]:
    """The resolved configuration without `runtime`: what the signature is taken of."""
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    if not isinstance(plain, dict):
        raise ValueError("the root of a configuration must be a mapping")
    return {str(key): value for key, value in plain.items() if key != "runtime"}


def signature(config: DictConfig) -> str:
    """Hexadecimal digest of `identity`, 8 characters."""
    text = json.dumps(identity(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:SIGNATURE_LENGTH]


def run_name(config: DictConfig) -> str:
    """`<model>/<data>-<attention>-<budget>-s<seed>-<signature>`; data that is a stand-in says so."""
    data = config.data.name
    if OmegaConf.select(config, "data.source") == "standin":
        data = f"{data}_standin"
    stem = f"{data}-{config.attention.name}-{config.budget.name}-s{config.seed}-{signature(config)}"
    return f"{config.model.name}/{stem}"
