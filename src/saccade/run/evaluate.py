"""`evaluate.py`: score a run again, with another attention in its slots if asked, or score somebody else's images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from saccade.run.config import CONF, register

USAGE = """usage: python evaluate.py run=<run folder> [weights=last|best] [attention=<backend>] [<key>=<value> ...]
       python evaluate.py images=<folder> reference=<folder> [out=<file.json>]

run=        evaluate the weights of a run (checkpoints/last.ckpt, or weights.pt) on its test data; any key of its
            config.yaml can be changed: budget.eval_samples=500, data.source=files, runtime.data_dir=/data
weights=    best takes checkpoints/best.ckpt, chosen by the run's own score, where its task keeps one
attention=  put another backend into the run's slots first: train with one, test with another
images=     score a folder of pictures against reference=, file by file, under the same protocols;
            names=<metric,metric,...> chooses them (saccade.metrics.pairs.METRIC_NAMES)
            weights=auto|pretrained|random, weights_dir=<folder>
"""


class UsageError(ValueError):
    """The command line is wrong."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point of evaluate.py. Errors that a user can mend end in one message and exit code 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        sys.exit(0 if arguments else 2)
    try:
        options = _parse(arguments)
        if "run" in options:
            evaluate_run(Path(options.pop("run")), options)
        else:
            evaluate_folder(options)
    except (ValueError, RuntimeError, FileNotFoundError, OmegaConfBaseException) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)


def _parse(arguments: list[str]) -> dict[str, str]:
    pairs = [argument.partition("=") for argument in arguments]
    wrong = [key for key, sign, _ in pairs if not sign]
    if wrong:
        raise UsageError(f"{wrong[0]!r} is not of the form key=value\n\n{USAGE}")
    options = {key: value for key, _, value in pairs}
    if "run" not in options and not {"images", "reference"} <= set(options):
        raise UsageError(f"give run=<folder>, or images=<folder> with reference=<folder>\n\n{USAGE}")
    return options


def evaluate_run(path: Path, options: dict[str, str]) -> dict[str, Any]:
    """Evaluate a run and write `evaluations/[best-]<attention>-<signature>/` with record and pictures into its folder.

    Args:
        path: run folder.
        options: `attention`, `weights` and dotted keys of the configuration, with their new values.

    Returns:
        The record, with metrics under their protocol names.

    Raises:
        ValueError: no run folder, no weights, or an unknown key.
    """
    from saccade.callbacks.attention_pictures import AttentionPictures
    from saccade.callbacks.samples import SampleGrids
    from saccade.ops import dispatch
    from saccade.run import banner
    from saccade.run.build import build_data, build_trainer, export_folders
    from saccade.run.folder import RunFolder
    from saccade.run.identity import resolve_autos, signature
    from saccade.run.load import checkpoint_of, load_task
    from saccade.run.train import describe, machine

    folder = RunFolder(path)
    weights = cast(Any, options.pop("weights", "last"))
    checkpoint_of(folder, weights)  # a wrong word must fail before anything is built
    config = folder.read_config()
    trained = config.attention.name
    if "attention" in options:
        config = swap_attention(config, options.pop("attention"))
    config = override(config, options)
    export_folders(config)
    notices = resolve_autos(config)
    config, task = load_task(path, config, weights=weights)
    name = f"{config.attention.name}-{signature(config)}"
    out = folder.path / "evaluations" / (name if weights == "last" else f"{weights}-{name}")
    banner.show(config, out, notices)
    data = build_data(config)
    dispatch.reset_ledger()
    trainer = build_trainer(
        config,
        folder=out,
        loggers=[],
        callbacks=[SampleGrids(out / "pictures", count=config.budget.pictures), AttentionPictures(out / "pictures")],
        batch_size=data.batch_size,  # type: ignore[attr-defined]
    )
    metrics = trainer.test(task, datamodule=data, verbose=False)[0]
    result = {
        "status": "evaluated",
        **describe(config, folder.path.name, notices),
        "trained_with": trained,
        "weights": weights,
        "images_seen": int(task.images_seen),
        "metrics": {key.removeprefix("eval/"): value for key, value in metrics.items() if key.startswith("eval/")},
        "ledger": dispatch.ledger(),
        "provenance": task.provenance(),
        "machine": machine(),
    }
    record = RunFolder(out)
    record.write_result(result)
    banner.show_result(result, out, None)
    return result


def evaluate_folder(options: dict[str, str]) -> dict[str, Any]:
    """Score `images` against `reference`, print the metrics and write them to `out` if it is given."""
    from saccade.files import write_text
    from saccade.metrics.folder import score_folders
    from saccade.metrics.pairs import PLAIN_METRICS

    known = {"images", "reference", "out", "names", "weights", "weights_dir"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise UsageError(f"{', '.join(unknown)}: not an option of scoring a folder; valid: {', '.join(sorted(known))}")
    names = options["names"].split(",") if "names" in options else PLAIN_METRICS
    score = score_folders(
        options["images"],
        options["reference"],
        names=names,
        weights=options.get("weights", "auto"),
        weights_dir=options.get("weights_dir"),
    )
    for notice in score.notices:
        print(f"* {notice}")
    for name, value in score.metrics.items():
        print(f"{name:44s} {value:.5f}")
    result = {"metrics": score.metrics, "provenance": score.provenance, "notices": score.notices}
    if "out" in options:
        write_text(Path(options["out"]), json.dumps({**result, "per_image": score.per_image}, indent=2) + "\n")
    return result


def swap_attention(config: DictConfig, name: str) -> DictConfig:
    """The same run with another backend, set up as training it would have been.

    Options of the model that its backends set otherwise (`conf/tuning/<model>_net_<attention>.yaml`) change along.

    Raises:
        ValueError: unknown backend.
    """
    known = sorted(file.stem for file in (CONF / "attention").glob("*.yaml"))
    if name not in known:
        raise ValueError(f"attention={name} is unknown; choose one of {', '.join(known)}")
    before, after = _composed(config, config.attention.name), _composed(config, name)
    swapped = config.copy()
    swapped.attention = after.attention
    _follow(swapped.model, before.model, after.model)
    return swapped


def _composed(config: DictConfig, attention: str) -> DictConfig:
    """What the command line would make of the run's groups with a backend."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [f"{group}={config[group].name}" for group in ("model", "budget")]
        return compose("train", overrides=[*overrides, f"attention={attention}"])


def _follow(node: DictConfig, before: DictConfig, after: DictConfig) -> None:
    """Change, in place, what differs between two configurations; what the run itself changed stays."""
    theirs, ours = (OmegaConf.to_container(side, resolve=False) for side in (before, after))
    for key in after:
        if isinstance(after._get_node(key), DictConfig) and isinstance(before._get_node(key), DictConfig):
            _follow(node[key], before[key], after[key])
        elif cast(Any, theirs).get(key) != cast(Any, ours)[key]:
            node[key] = cast(Any, ours)[key]


def override(config: DictConfig, options: dict[str, str]) -> DictConfig:
    """Change existing keys.

    Raises:
        ValueError: a key that the configuration does not have; names its neighbours.
    """
    changed = config.copy()
    OmegaConf.set_struct(changed, True)
    for key, value in options.items():
        parent = OmegaConf.select(changed, key.rpartition(".")[0]) if "." in key else changed
        leaf = key.rpartition(".")[2]
        if not isinstance(parent, DictConfig) or leaf not in parent:
            near = ", ".join(map(str, parent)) if isinstance(parent, DictConfig) else ", ".join(map(str, changed))
            raise ValueError(f"{key} is not in the run's configuration; valid there: {near}")
        OmegaConf.update(changed, key, OmegaConf.from_dotlist([f"value={value}"])["value"])
    return changed
