"""report.html: everything inside, what matters said aloud, nothing fetched from anywhere."""

import base64
import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from saccade.pictures.canvas import blank, write_png
from saccade.run.metric_words import baseline_of, is_baseline, words
from saccade.run.report import command_of, write_report
from saccade.run.report_parts import duration, number
from saccade.run.run_record import read_curves, read_run

RESULT = {
    "status": "complete",
    "name": "posemorph/standin-gpa-demo-s0-1a2b3c4d",
    "signature": "1a2b3c4d",
    "model": "posemorph",
    "attention": "gpa",
    "data": "deepfashion",
    "task": "distortion",
    "budget": "demo",
    "numerics": "fp32",
    "seed": 0,
    "warnings": ["STAND-IN DATA <drawn> people"],
    "images_seen": 14000,
    "seconds": 171.4,
    "headline": "distortion/ratio_figure",
    "metrics": {
        "distortion/l1_figure": 0.2,
        "distortion/l1_figure_unchanged": 0.4,
        "distortion/ratio_figure": 0.5,
        "psnr": 20.0,
        "psnr_unchanged": 25.0,
        "frechet_random_pytorch_fid_vs_targets_32x32": float("nan"),
    },
    "memory": {
        "method": "counted storages",
        "phases": {
            "train": {"peak_allocated_mib": 84.25, "held_before_mib": 8.5, "peak_reserved_mib": None, "steps": 2}
        },
        "attention_blocks": {"slots_mib": {"up.32": 3.75}, "total_mib": 5.5, "method": "counted", "protocol": "alone"},
    },
    "ledger": [
        {"op": "gpa", "asked": "auto", "kernel": "recompute", "calls": 1834, "skipped": {"triton": ["no GPU here"]}}
    ],
    "provenance": {"perceptual": {"weights": "random-seed0"}},
    "machine": {"torch": "2.13.0", "gpus": []},
}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "metrics").mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(RESULT))
    (folder / "config.yaml").write_text("seed: 0  # <script>\n")
    (folder / "metrics" / "train.csv").write_text(
        "images_seen,loss/l1,loss/self_relu1_1,gradient_norm/generator\n8,0.5,,1.0\n16,0.25,2.0,\n"
    )
    (folder / "metrics" / "eval.csv").write_text(
        "images_seen,distortion/ratio_figure,distortion/l1_figure,distortion/l1_figure_unchanged\n"
        "8,0.9,0.36,0.4\n16,0.5,0.2,0.4\n"
    )
    for seen in (8, 16):
        write_png(folder / "pictures" / f"samples-distortion-{seen:010d}.png", blank(20, 30, (seen, 0, 0)))
    write_png(folder / "pictures" / "attention-up.32.png", blank(20, 30, (1, 2, 3)))
    return folder


class Page(HTMLParser):
    """Tags that could fetch something, pictures, and the text."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, html):
        super().__init__()
        self.open, self.sources, self.tags, self.text = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not (self.open and self.open[-1] == "style"):
            self.text.append(data)


def read(path):
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page, " ".join(" ".join(page.text).split())


def test_the_page_is_whole_and_fetches_nothing(run):
    path = write_report(run)
    assert path == run / "report.html"
    page, _ = read(path)
    assert len(page.sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "http" not in path.read_text(encoding="utf-8").replace("http-equiv", "")


def test_the_newest_grid_comes_first(run):
    page, _ = read(write_report(run))
    with Image.open(io.BytesIO(base64.b64decode(page.sources[0].partition(",")[2]))) as picture:
        assert np.asarray(picture)[0, 0].tolist() == [16, 0, 0]


def test_what_matters_is_said(run):
    _, text = read(write_report(run))
    for words_ in (
        "posemorph with gpa attention",
        "Not comparable with published numbers STAND-IN DATA <drawn> people",
        "0.50\N{MULTIPLICATION SIGN}",
        "14,000",
        "2 min 51 s",
        "gpa recompute auto 1,834 triton: no GPU here",
        "up.32 3.75",
        "train 84.25 8.5 \N{EN DASH} 2",
        "python train.py model=posemorph attention=gpa task=distortion data=deepfashion budget=demo numerics=fp32",
        "seed: 0 # <script>",
        "weights: random-seed0",
        "not finite",
        "random features",
    ):
        assert words_ in text, words_
    assert "not finished" not in text


def test_metrics_stand_beside_the_unchanged_source(run):
    html = write_report(run).read_text(encoding="utf-8")
    rows = {row.partition("</td>")[0].rpartition(">")[2]: row for row in html.split("<tr>") if "<td" in row}
    better, worse = rows["distortion/l1_figure"], rows["psnr"]
    assert "0.500\N{MULTIPLICATION SIGN}" in better
    assert "good" in better
    assert "0.800\N{MULTIPLICATION SIGN}" in worse  # lower than the source's, and higher would be better
    assert "poor" in worse
    assert "distortion/l1_figure_unchanged" not in rows


def test_curves_have_the_baseline_as_a_mark(run):
    html = write_report(run).read_text(encoding="utf-8")
    assert html.count("<svg") == 5  # ratio, l1, losses, layers, gradient norms
    assert "l1_figure, source unchanged" in html


def test_an_unfinished_run_and_failed_bars_are_named(run):
    (run / "result.json").unlink()
    _, text = read(write_report(run))
    assert "This run is not finished" in text
    (run / "result.json").write_text(json.dumps({**RESULT, "passed": False, "nonfinite_steps": 3}))
    _, text = read(write_report(run))
    assert "failed its bar" in text
    assert "3 training steps were not finite" in text


def test_shipped_runs_get_their_own_section(run, tmp_path):
    shipped = tmp_path / "demo" / "pose_transfer"
    shipped.mkdir(parents=True)
    (shipped / "result.json").write_text(json.dumps({**RESULT, "task": "pose_transfer", "images_seen": 250_000}))
    write_png(shipped / "samples.png", blank(8, 8, (7, 7, 7)))
    page, text = read(write_report(run, [shipped]))
    assert "Shipped with the project: posemorph, gpa attention, pose_transfer" in text
    assert "250,000" in text
    assert len(page.sources) == 4


def test_a_large_picture_is_embedded_as_jpeg(run):
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    write_png(run / "pictures" / "samples-distortion-0000000024.png", noise)
    page, _ = read(write_report(run))
    assert page.sources[0].startswith("data:image/jpeg;base64,")


def test_wrong_folders_and_files_are_named(run, tmp_path):
    with pytest.raises(ValueError, match="no run folder"):
        write_report(tmp_path)
    (run / "metrics" / "train.csv").write_text("images_seen,loss/l1\n8,zero\n")
    with pytest.raises(ValueError, match=r"train\.csv, line 2.*zero"):
        write_report(run)
    (run / "metrics" / "train.csv").write_text("step,loss/l1\n8,1\n")
    with pytest.raises(ValueError, match="no column images_seen"):
        write_report(run)
    (run / "result.json").write_text("{")
    with pytest.raises(ValueError, match=r"result\.json is not JSON"):
        write_report(run)


def test_curves_are_sorted_and_the_last_value_stands(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("images_seen,a,b\n16,1,\n8,2,5\n16,3,\n,9,9\n")
    assert read_curves(file) == {"a": ([8, 16], [2, 3]), "b": ([8], [5])}
    assert read_curves(tmp_path / "none.csv") == {}


def test_samples_of_the_runs_own_task_come_first(run):
    for name in ("transfer", "another"):
        write_png(run / "pictures" / f"samples-{name}-0000000008.png", blank(4, 4))
    assert list(read_run(run).samples) == ["distortion", "another", "transfer"]
    write_png(run / "pictures" / "attention-up.8.png", blank(4, 4))
    assert [path.stem for path in read_run(run).attention] == ["attention-up.32", "attention-up.8"]


def test_a_recorded_command_wins():
    assert command_of({**RESULT, "command": "python train.py lr=1"}) == "python train.py lr=1"


def test_numbers_and_times_read_well():
    values = [number(value) for value in (0.123456, 1234, 12345.6, None, float("inf"), True, "x")]
    assert values == ["0.1235", "1,234", "12,346", "\N{EN DASH}", "not finite", "True", "x"]
    assert [duration(value) for value in (4, 65, 3700, 200_000)] == ["4 s", "1 min 05 s", "1 h 01 min", "2 d 7 h"]


def test_metrics_are_explained_by_their_longest_name():
    assert "inside the figure" in words("distortion/l1_figure").what
    assert "inside the figure" not in words("l1_unchanged").what
    assert words("ssim_patn").better == "higher"
    assert "random" in words("frechet_random_tf_inception_vs_targets_32x32").what
    assert words("unheard_of").what == ""


GENERATION = {
    **RESULT,
    "model": "sagan",
    "task": "generation",
    "headline": "frechet_proxy_random_conv_val_500_ratio_to_start",
    "metrics": {
        "frechet_proxy_random_conv_val_500": 1.5,
        "precision_k3_proxy_random_conv_val_500": 0.75,
        "recall_k3_proxy_random_conv_val_500": 0.25,
        "frechet_proxy_random_conv_val_500_ratio_to_start": 0.31,
        "diversity_to_real": 0.9,
    },
}


def test_a_run_of_generation_speaks_of_generation(run):
    (run / "result.json").write_text(json.dumps(GENERATION))
    names = list(GENERATION["metrics"])
    rows = [",".join(["images_seen", *names]), "0,5,0,0,1,0.1", "8,1.5,0.75,0.25,0.31,0.9"]
    (run / "metrics" / "eval.csv").write_text("\n".join(rows) + "\n")
    (run / "metrics" / "train.csv").write_text("images_seen,loss/gan,sigma/up.16\n8,0.5,0.01\n16,0.25,0.02\n")
    path = write_report(run)
    _, text = read(path)
    html = path.read_text(encoding="utf-8")
    assert "over its value before training: Fréchet distance over a small random network" in text
    assert "0.31\N{MULTIPLICATION SIGN}" in text
    assert "a row is a class" in text
    assert "target pose" not in text
    assert "scripts/sample.py run=" in text
    assert "scripts/invert.py" in text
    assert "morph.py" not in text
    assert "before training" in html
    assert "source unchanged" not in html
    # distance; its ratio; precision and recall; diversity; losses; sigma
    assert html.count("<svg") == 6


def test_scores_of_generators_have_words():
    fid, score = words("fid_tf_inception_val_50000"), words("is_tf_inception_1008_50000")
    assert (fid.better, score.better) == ("lower", "higher")
    parts = words("is_tf_inception_1008_50000_10splits_truncated2")
    assert parts.better == "higher"
    assert parts.what.startswith("mean over ten parts")
    assert words("is_tf_inception_1008_50000_10splits_std").better == ""
    assert words("frechet_random_tf_inception_val_500_ratio_to_start").better == "lower"
    assert words("precision_k3_tf_inception_val_10000").better == "higher"


def test_metrics_of_other_tasks_stand_beside_their_own_baselines(run):
    names = ["psnr_y_shave2", "psnr_y_shave2_bicubic", "l2_hole_ratio_to_mean_fill", "l2_hole_percent_mean_fill"]
    assert baseline_of("psnr_y_shave2", names).what == "bicubic"
    assert baseline_of("l2_hole_percent", names).what == "mean fill"
    assert baseline_of("ssim_y_shave2", names) is None
    assert [is_baseline(name) for name in names] == [False, True, False, True]
    assert words("l2_hole_percent_mean_fill") == words("l2_hole_percent")
    assert words("l1_hole_percent").what != words("l1").what
