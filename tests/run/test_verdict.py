"""What a budget holds against a run's headline."""

from __future__ import annotations

from omegaconf import OmegaConf

from saccade.run.train import failure_of


def failure(values: list[float], *, ratio: float | None = None, rise: float | None = None) -> str | None:
    config = OmegaConf.create({"budget": {"max_ratio": ratio, "max_rise": rise}})
    curves = {"a/ratio": ([100.0 * at for at in range(len(values))], values)}
    return failure_of(config, "a/ratio", curves, {"eval/a/ratio": values[-1]})


def test_a_headline_above_the_limit_fails() -> None:
    assert failure([0.9, 0.6], ratio=0.5) == "a/ratio is 0.600, above the budget's 0.5 (budget.max_ratio)"
    assert failure([0.9, 0.5], ratio=0.5) is None
    assert failure([0.9, float("nan")], ratio=0.5) is not None
    assert failure([0.9, 7.0]) is None


def test_a_headline_that_rises_fails() -> None:
    told = failure([0.9, 0.5, 0.52, 0.4], rise=0.02)
    assert told is not None
    assert "from 0.5000 at image 100 to 0.5200 at 200" in told
    assert failure([0.9, 0.5, 0.52, 0.4], rise=0.05) is None
    assert failure([0.9, float("nan"), 0.4], rise=0.05) is not None


def test_a_task_without_a_headline_is_not_judged() -> None:
    config = OmegaConf.create({"budget": {"max_ratio": 0.1, "max_rise": 0.1}})
    assert failure_of(config, None, {}, {}) is None
