from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from saccade.run.config import CONF, register
from saccade.run.identity import resolve_autos, run_name, signature

BASE = ["model=posemorph", "attention=gpa", "budget=smoke"]


def config(*overrides: str) -> DictConfig:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=[*BASE, *overrides])


def test_signature_ignores_the_machine_and_nothing_else() -> None:
    reference = signature(config())
    assert signature(config("runtime.root=/elsewhere", "runtime.devices=4", "runtime.wandb=off")) == reference
    changes = [
        "seed=1",
        "attention=full",
        "task.module.affine=0.2",
        "numerics=fp16",
        "budget.images=32",
        "data.module.flip=true",
    ]
    changed = [signature(config(c)) for c in changes]
    assert len({reference, *changed}) == len(changes) + 1


def test_auto_is_resolved_before_the_identity_is_taken(tmp_path) -> None:
    left = config(f"runtime.data_dir={tmp_path}")
    notices = resolve_autos(left)
    assert left.data.source == left.data.module.source == "standin"
    assert any("STAND-IN" in notice for notice in notices)
    assert "_standin-" in run_name(left)
    stated = config(f"runtime.data_dir={tmp_path}", "data.source=standin")
    resolve_autos(stated)
    assert signature(stated) == signature(left)


def test_files_that_are_not_there_are_an_error_with_layout_and_commands(tmp_path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=r"(?s)fasion-resize.*prepare_data\.py"):
        resolve_autos(config(f"runtime.data_dir={tmp_path}", "data.source=files"))
