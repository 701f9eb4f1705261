"""draw_curves.py: runs in one chart on the clock of steps, and plain words where a metric is not there."""

import numpy as np
import pytest
from PIL import Image

from saccade.pictures.charts import PALETTE
from saccade.pictures.curves import Curve, Panel, draw_curves
from saccade.run.curves import draw, find_metric, main, read_scored

FID, IS = "fid_tf_inception_val_50000", "is_tf_inception_1008_50000"
TRAIN, BIAS = "fid_tf_inception_train_50000", "is_tf_inception_1008_bias_50000"
HEAD = f"images_seen,{FID},{TRAIN},{IS},{IS}_10splits,{IS}_10splits_std,{BIAS}"


def make_run(folder, attention, rows, head=HEAD, devices=4):
    (folder / "metrics").mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"model: {{batch_size: 64}}\nattention: {{name: {attention}}}\n"
        f"data: {{module: {{batch_size: '${{model.batch_size}}'}}}}\nruntime: {{devices: {devices}, num_nodes: 1}}\n"
    )
    (folder / "metrics" / "eval.csv").write_text("\n".join([head, *rows]) + "\n")
    return folder


@pytest.fixture
def runs(tmp_path):
    ylg = ["0,250,260,2,2,.1,2", "256000,40,44,30,29,.5,31", "512000,18,20,55,53,.6,57", "768000,21,23,50,49,.6,52"]
    full = ["0,250,260,2,2,.1,2", "256000,60,66,20,19,.5,21", "512000,24,26,45,44,.6,46"]
    return make_run(tmp_path / "a", "ylg", ylg), make_run(tmp_path / "b", "full", full)


def has_colour(path, colour):
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(picture - wanted).sum(-1) < 12).any())


def test_several_runs_share_a_chart_on_the_clock_of_steps(runs, tmp_path):
    panels = draw(runs, tmp_path / "curves.png", metrics=[FID, IS])
    assert [panel.metric for panel in panels] == [FID, IS]
    assert [curve.label for curve in panels[0].curves] == ["ylg", "full"]
    assert list(panels[0].curves[0].xs) == [0, 1000, 2000, 3000]  # steps of 4 x 64 images
    assert [panel.better for panel in panels] == ["lower", "higher"]
    assert panels[0].curves[0].best("lower") == (2000, 18)
    assert panels[1].curves[1].best("higher") == (2000, 45)
    assert has_colour(tmp_path / "curves.png", PALETTE[0])
    assert has_colour(tmp_path / "curves.png", PALETTE[1])
    assert not has_colour(tmp_path / "curves.png", PALETTE[2])
    assert list(draw(runs, tmp_path / "curves.png", metrics=[FID], x="images")[0].curves[1].xs) == [0, 256000, 512000]


def test_the_default_is_the_papers_figure(runs, tmp_path):
    names = [panel.metric for panel in draw(runs, tmp_path / "curves.png")]
    assert names == [FID, TRAIN, IS]


def test_a_ratio_to_the_start_is_no_second_panel(tmp_path):
    run = make_run(tmp_path / "a", "ylg", ["0,250,1", "256000,50,0.2"], head=f"images_seen,{FID},{FID}_ratio_to_start")
    assert [panel.metric for panel in draw([run], tmp_path / "curves.png")] == [FID]


def test_the_beginning_of_a_name_is_enough_where_it_is_clear(runs):
    scored = [read_scored(run) for run in runs]
    assert find_metric("fid_tf_inception_val", scored) == FID
    with pytest.raises(ValueError, match=f"metric=fid is the beginning of several: {FID}, {TRAIN}"):
        find_metric("fid", scored)
    assert find_metric(IS, scored) == IS  # a whole name is never a beginning


def test_a_metric_that_is_not_there_is_named(runs, tmp_path, capsys):
    proxy = make_run(tmp_path / "c", "local", ["0,9", "64,3"], head="images_seen,frechet_proxy_random_conv_val_500")
    assert main([f"runs={runs[0]},{proxy}", f"metric={FID}", f"out={tmp_path / 'x.png'}"]) == 1
    told = capsys.readouterr().err
    assert f"{proxy} has no metric {FID}; it has frechet_proxy_random_conv_val_500" in told
    assert not (tmp_path / "x.png").exists()
    with pytest.raises(ValueError, match="no Frechet distance and no Inception score in common"):
        draw([runs[0], proxy], tmp_path / "x.png")
    other = make_run(tmp_path / "d", "local", ["0,9"], head="images_seen,fid_tf_inception_val_10000")
    with pytest.raises(ValueError, match="other protocols cannot share a chart"):
        draw([runs[0], other], tmp_path / "x.png", metrics=["fid_tf_inception_val"])


def test_the_command_line_says_best_and_last(runs, tmp_path, capsys):
    out = tmp_path / "new" / "fid.png"
    assert main([f"runs={runs[0]},{runs[1]}", f"metric={FID}", f"out={out}", "labels=YLG,SAGAN"]) == 0
    told = capsys.readouterr().out
    assert f"{FID}  YLG: best 18 at 2,000 steps, last 21 at 3,000 steps" in told
    assert "SAGAN: best 24 at 2,000 steps" in told
    assert out.is_file()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["runs=nowhere"], "is no run folder"),
        (["run=a"], "run= is not an option; did you mean runs=?"),
        (["metric=fid"], "missing: runs="),
        (["runs={a}", "out=curves.svg"], "nearest: curves.png"),
        (["runs={a}", "x=epochs"], "choose steps or images"),
        (["runs={a},{b}", "labels=one"], "2 runs need as many different labels"),
    ],
)
def test_wrong_use_is_told(runs, tmp_path, capsys, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert main([argument.format(a=runs[0], b=runs[1]) for argument in arguments]) == 1
    assert told in capsys.readouterr().err


def test_a_run_without_evaluation_and_one_without_batch_size(runs, tmp_path):
    (runs[0] / "metrics" / "eval.csv").unlink()
    with pytest.raises(ValueError, match=r"eval\.csv holds no evaluation yet"):
        read_scored(runs[0])
    (runs[1] / "config.yaml").write_text("attention: {name: full}\n")
    with pytest.raises(ValueError, match="does not tell its batch size; use x=images"):
        draw(runs[1:], tmp_path / "x.png")
    assert draw(runs[1:], tmp_path / "x.png", x="images")[0].metric == FID


def test_two_runs_of_one_attention_are_told_apart_by_folder(runs, tmp_path):
    again = make_run(tmp_path / "e", "ylg", ["0,1,1,1,1,0,1"])
    panels = draw([runs[0], again], tmp_path / "x.png", metrics=[FID])
    assert [curve.label for curve in panels[0].curves] == [str(runs[0]), str(again)]


def test_a_value_that_is_not_finite_is_left_out(tmp_path):
    curve = Curve("run", [0, 1, 2], [float("nan"), 3.0, 2.0])
    assert curve.best("lower") == (2, 2.0)
    broken = Curve("broken", [0], [float("nan")])
    assert broken.best("higher") is None
    path = draw_curves(tmp_path / "a.png", [Panel("m", "what", "lower", [curve, broken])], x_label="steps")
    assert has_colour(path, PALETTE[0])
    with pytest.raises(ValueError, match="a curve in each"):
        draw_curves(tmp_path / "b.png", [Panel("m", "", "", [])], x_label="steps")
