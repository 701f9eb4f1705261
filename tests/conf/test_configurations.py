"""Every combination that the command line offers composes and builds, on the meta device where it is large."""

from __future__ import annotations

import inspect
from pathlib import Path

import hydra
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from saccade.run.build import build_task
from saccade.run.config import CONF, register


def names(group: str) -> list[str]:
    folder = CONF / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def config(*overrides: str) -> DictConfig:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def fixed(model: str, budget: str = "smoke") -> list[str]:
    """What a run would look up before it builds anything."""
    if model == "sagan":
        return ["model.classes=10"]
    return ["task.module.perceptual.weights=random"] if budget in ("smoke", "paper") else []


def slots(chosen: DictConfig) -> dict[str, set[str]]:
    """The attention slots that a model's networks are to have."""
    if chosen.model.name == "sagan":
        return {"net": {f"up.{chosen.model.attention_at}"}, "discriminator": {f"down.{chosen.model.attention_at}"}}
    return {"net": {f"up.{chosen.model.image_size[0] >> level}" for level in range(len(chosen.model.channels))}}


@pytest.mark.parametrize("budget", names("budget"))
@pytest.mark.parametrize("attention", names("attention"))
@pytest.mark.parametrize("model", names("model"))
def test_any_backend_in_any_model(model: str, attention: str, budget: str) -> None:
    chosen = config(f"model={model}", f"attention={attention}", f"budget={budget}", *fixed(model, budget))
    wanted = chosen.attention.mixer._target_.rpartition(".")[2]
    exact = chosen.model.get("exact_up_to", 0)
    for network, expected in slots(chosen).items():
        with torch.device("meta"):
            built = instantiate(chosen.model[network], _convert_="all")
        assert set(built.attention_blocks) == expected
        above = [block for block in built.attention_blocks.values() if block.spec.q_size.area > exact**2]
        assert above
        assert {type(block.mixer).__name__ for block in above} == {wanted}


@pytest.mark.parametrize("attention", names("attention"))
def test_attention_files_list_every_option(attention: str) -> None:
    mixer = config("model=posemorph", f"attention={attention}", "budget=paper").attention.mixer
    own = OmegaConf.load(CONF / "attention" / f"{attention}.yaml").mixer
    options = set(inspect.signature(hydra.utils.get_class(mixer._target_)).parameters) - {"spec"}
    for listed in (own, mixer):  # as written, and with what models and budgets lay over it
        assert {str(key) for key in listed} - {"_target_", "_partial_"} == options
    built = instantiate(own, _convert_="all")()
    assert built.name == attention
    assert getattr(built, "kernel", "auto") == "auto"


def test_a_kernel_is_chosen_on_the_command_line() -> None:
    for attention in set(names("attention")) - {"none"}:
        chosen = config("model=posemorph", f"attention={attention}", "attention.mixer.kernel=reference")
        assert instantiate(chosen.attention.mixer, _convert_="all")().kernel == "reference"


@pytest.mark.parametrize("experiment", names("experiment"))
def test_experiments_are_strict_and_build(experiment: str) -> None:
    chosen = config(f"experiment={experiment}")
    assert chosen.data.source == chosen.data.module.source == "files"
    if "perceptual" in chosen.task.module:
        assert chosen.task.module.perceptual.weights == "pretrained"
    if "scores" in chosen.task.module:
        assert chosen.task.module.scores.weights == "pretrained"
    with torch.device("meta"):
        instantiate(chosen.model.net, _convert_="all")
        instantiate(chosen.model.discriminator, _convert_="all")


def test_paper_settings_of_the_pivot() -> None:
    chosen = config("experiment=gpa/fig5_gpa1024_12_64")
    with torch.device("meta"):
        blocks = instantiate(chosen.model.net, _convert_="all").attention_blocks
    assert {name: type(block.mixer).__name__ for name, block in blocks.items()} == {
        **dict.fromkeys(("up.8", "up.16", "up.32", "up.64"), "FullAttention"),
        **dict.fromkeys(("up.128", "up.256"), "GridPartitionedAttention"),
    }
    assert blocks["up.256"].mixer.keys_per_cell == 12


@pytest.mark.parametrize("task", names("task"))
def test_tasks_build_at_the_smallest_budget(task: str) -> None:
    model = "sagan" if task.startswith("generation") else "posemorph"
    built = build_task(config("budget=smoke", f"model={model}", f"task={task}", *fixed(model)))
    assert built.images == 16
    assert (built.discriminator is None) == (task == "distortion")


@pytest.mark.parametrize("model", names("model"))
def test_initial_weights_do_not_depend_on_the_backend(model: str) -> None:
    tasks = {
        name: build_task(config("budget=smoke", f"model={model}", f"attention={name}", *fixed(model)))
        for name in names("attention")
    }
    reference = tasks["gpa"].state_dict()
    for task in tasks.values():
        state = task.state_dict()
        assert state.keys() == reference.keys()
        assert all(torch.equal(state[name], reference[name]) for name in state)


def test_misfits_are_reported_together_with_valid_choices() -> None:
    chosen = config("budget=smoke", "attention.mixer.cells=[7,7]", "model.exact_up_to=8")
    with pytest.raises((ValueError, InstantiationException)) as raised:
        build_task(chosen)
    message = str(raised.value.__cause__ or raised.value)
    assert "up.16" in message
    assert "up.32" in message
    assert "alid" in message


def test_group_files_are_named_as_they_say() -> None:
    for group in ("model", "attention", "data", "task", "budget", "numerics"):
        for name in names(group):
            text = (Path(CONF) / group / f"{name}.yaml").read_text()
            assert f"\nname: {name}\n" in f"\n{text}", f"{group}/{name}.yaml"
