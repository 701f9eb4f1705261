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
from saccade.run.evaluate import swap_attention


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
    if model != "posemorph":
        return []
    return ["task.module.perceptual.weights=random"] if budget in ("smoke", "paper") else []


def slots(chosen: DictConfig) -> dict[str, set[str]]:
    """The attention slots that a model's networks are to have."""
    if chosen.model.name == "colorization":
        return {"net": {"reference"}}
    if chosen.model.name == "inpainting":
        return {"net": {f"fine.{chosen.model.image_size[0] // 4}"}}
    if chosen.model.name == "superres":
        return {"net": {"cross_scale", "in_scale"}}
    if chosen.model.name == "sagan":
        return {"net": {f"up.{chosen.model.attention_at}"}, "discriminator": {f"down.{chosen.model.attention_at}"}}
    return {"net": {f"up.{chosen.model.image_size[0] >> level}" for level in range(len(chosen.model.channels))}}


@pytest.mark.parametrize("budget", names("budget"))
@pytest.mark.parametrize("attention", names("attention"))
@pytest.mark.parametrize("model", names("model"))
def test_any_backend_in_any_model(model: str, attention: str, budget: str) -> None:
    chosen = config(f"model={model}", f"attention={attention}", f"budget={budget}", *fixed(model, budget))
    wanted = chosen.attention.mixer._target_.rpartition(".")[2]
    fixed_slots = {"in_scale"}  # which attention= leaves alone
    exact = chosen.model.get("exact_up_to", 0)
    for network, expected in slots(chosen).items():
        with torch.device("meta"):
            built = instantiate(chosen.model[network], _convert_="all")
        assert set(built.attention_blocks) == expected
        chosen_slots = {name: block for name, block in built.attention_blocks.items() if name not in fixed_slots}
        above = [block for block in chosen_slots.values() if block.spec.q_size.area > exact**2]
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
        if chosen.task.adversarial:
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
    homes = {
        "generation": "sagan",
        "generation_strong": "sagan",
        "guided_colorization": "colorization",
        "wgan_inpainting": "inpainting",
        "super_resolution": "superres",
    }
    model = homes.get(task, "posemorph")
    chosen = config("budget=smoke", f"model={model}", f"task={task}", *fixed(model))
    built = build_task(chosen)
    assert built.images == 16
    assert (getattr(built, "discriminator", None) is not None) == chosen.task.adversarial


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


def listed_options(config: DictConfig, path: str) -> set[str]:
    return {str(key) for key in OmegaConf.select(config, path)} - {"_target_", "_partial_"}


@pytest.mark.parametrize("model", ["colorization", "inpainting", "superres"])
def test_data_files_list_every_option(model: str) -> None:
    chosen = config(f"model={model}", "budget=paper")
    given = {"self", "root", "cache", "workers", "seed", "pin_memory", "name"}  # by the run, or by the class
    for path in ("data.module", "model.net"):
        options = set(inspect.signature(hydra.utils.get_class(OmegaConf.select(chosen, path)._target_)).parameters)
        assert listed_options(chosen, path) - given == options - given


def test_a_swapped_backend_brings_the_options_of_the_block_around_it() -> None:
    run = config("model=inpainting", "attention=full", "budget=smoke", "model.net.width=12")
    swapped = swap_attention(run, "psal")
    assert swapped.attention.name == "psal"
    block = swapped.model.net.attention.block
    assert (block.rate, block.everywhere, block.known_window) == (1, False, 1)
    assert swapped.model.net.width == 12  # what the run itself changed stays
    back = swap_attention(swapped, "full").model.net.attention.block
    assert (back.rate, back.everywhere, back.known_window) == (2, True, 3)


def test_in_scale_attention_is_a_choice_of_its_own() -> None:
    for name, wanted in (("full", "FullAttention"), ("local", "LocalAttention")):
        chosen = config("model=superres", "attention=psal", "budget=smoke", f"model.in_scale={name}")
        with torch.device("meta"):
            blocks = instantiate(chosen.model.net, _convert_="all").attention_blocks
        assert type(blocks["in_scale"].mixer).__name__ == wanted
        assert type(blocks["cross_scale"].mixer).__name__ == "PatchBasedStochasticAttention"
