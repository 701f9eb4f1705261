import io

import pytest
import torch
from rich.console import Console
from tiny_task import TinyTask, fit

from saccade.callbacks.progress import ImagesProgress, Rate, clock, main_terms


def run(style, *, terminal=False, every_seconds=0.0, task=None):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=160)
    progress = ImagesProgress(total=16, style=style, every_seconds=every_seconds, console=console)
    fit(task or TinyTask(), [progress])
    return progress, text.getvalue()


def test_lines_tell_how_far_how_fast_and_the_weighted_terms():
    _, text = run("lines")
    lines = text.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("4 of 16 images (25%)")
    assert lines[-1].startswith("16 of 16 images (100%)")
    assert "images/s" in lines[-1]
    assert "0:00 left" in lines[-1]
    assert "l1 " in lines[-1]
    assert "ratio " in lines[-1]
    assert "unused" not in text


def test_lines_are_rare():
    _, text = run("lines", every_seconds=3600.0)
    assert len(text.splitlines()) == 1  # the last one


def test_auto_is_a_bar_on_a_terminal_and_lines_elsewhere():
    progress, text = run("auto", terminal=True)
    assert progress.style == "bar"
    assert "16/16" in text
    assert progress._bar is None
    assert run("auto")[0].style == "lines"


def test_off_says_nothing():
    assert run("off")[1] == ""


def test_an_error_closes_the_bar():
    class Failing(TinyTask):
        def training_step(self, batch, batch_idx):
            raise ValueError("no")

    console = Console(file=io.StringIO(), force_terminal=True)
    progress = ImagesProgress(total=16, style="bar", console=console)
    with pytest.raises(ValueError, match="no"):
        fit(Failing(), [progress])
    assert progress._bar is None


def test_the_rate_is_that_of_the_last_minute():
    rate = Rate()
    assert rate.per_second is None
    for second in range(200):
        rate.mark(float(second), 10 * second if second < 100 else 1000 + 2 * (second - 100))
    assert rate.per_second == pytest.approx(2.0)
    rate.mark(200.0, 0)  # a clock that ran backwards is no rate
    assert rate.per_second is None


def test_clock():
    times = [clock(seconds) for seconds in (0, 42, 725, 11045, 183600)]
    assert times == ["0:00", "0:42", "12:05", "3:04:05", "2 d 03:00"]


def test_terms_without_weights_are_the_first_few():
    metrics = {f"loss/{name}": torch.tensor(1.0) for name in "abcde"}
    assert main_terms(metrics, {}, None) == "a 1.000, b 1.000, c 1.000"
    assert main_terms(metrics, {"d": 2.0}, "x/ratio") == "d 1.000"


@pytest.mark.parametrize(
    ("options", "words"), [({"style": "loud"}, "auto, bar, lines, off"), ({"total": 0}, "1 or more")]
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ImagesProgress(**{"total": 1, **options})
