"""docs/ylg.md: its tables are those that the commands print, its commands and files exist."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from saccade.attention.flow_table import missing_table, paths_table
from saccade.geometry import Size
from saccade.run.arguments import read_options
from saccade.run.config import CONF, register

PROJECT = Path(__file__).resolve().parents[2]
PAGE = (PROJECT / "docs" / "ylg.md").read_text()
EXPERIMENTS = sorted((PROJECT / "conf" / "experiment" / "ylg").glob("*.yaml"))
HEADS = ["rtl1", "rtl2", "ltr1", "ltr2"]


def test_flow_tables_are_computed() -> None:
    assert missing_table() in PAGE
    assert paths_table(9) in PAGE


def test_tables_of_locality_are_computed() -> None:
    script = runpy.run_path(str(PROJECT / "scripts" / "draw_esa.py"))
    assert script["orders_table"](Size(16, 16), ["esa", "hilbert", "row"]) in PAGE
    assert script["mappings_table"](Size(32, 32), Size(16, 16), HEADS) in PAGE


def test_every_experiment_is_in_the_table_with_its_published_numbers() -> None:
    rows = [line for line in PAGE.splitlines() if re.match(r"\| `(table1_|hilbert|ours_)", line)]
    named = {name: row for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert sorted(named) == [file.stem for file in EXPERIMENTS]
    for file in EXPERIMENTS:
        published = re.search(r"FID (\d+\.\d+), IS (\d+\.\d+)", file.read_text())
        told = [cell.strip() for cell in named[file.stem].split("|")[3:5]]
        assert told == (list(published.groups()) if published else ["", ""]), file.stem


@pytest.mark.parametrize(
    "link", sorted(set(re.findall(r"\]\(([\w./]+)\)", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL))))
)
def test_links_lead_somewhere(link: str) -> None:
    assert (PROJECT / "docs" / link).exists()


@pytest.mark.parametrize("command", sorted(set(re.findall(r"(?:scripts/)?\w+\.py", PAGE))))
def test_commands_exist(command: str) -> None:
    assert (PROJECT / command).is_file()


@pytest.mark.parametrize(
    "line", re.findall(r"^python train.py (.*?)(?:  +#.*)?$", PAGE.replace("\\\n", ""), re.MULTILINE)
)
def test_training_commands_compose(line: str) -> None:
    register()
    words = [word.split(",")[0] if word[0].islower() and "[" not in word else word for word in shlex.split(line)]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=[word for word in words if word != "-m"])
    assert config.model.name == "sagan"
    assert len(config.model.channels) == (config.model.image_size[0] // 4).bit_length()


@pytest.mark.parametrize("line", re.findall(r"^python scripts/sample.py (.*?)(?:  +#.*)?$", PAGE, re.MULTILINE))
def test_sampling_commands_are_understood(line: str) -> None:
    from saccade.run.sample import parse

    assert parse(line.split()).run == Path("<run>")


@pytest.mark.parametrize("line", re.findall(r"^python scripts/invert.py (.*?)(?:  +#.*)?$", PAGE, re.MULTILINE))
def test_inversion_commands_have_known_options(line: str) -> None:
    from saccade.run import invert

    read_options(line.split(), required=invert._REQUIRED, optional=invert._OPTIONAL, usage="")
