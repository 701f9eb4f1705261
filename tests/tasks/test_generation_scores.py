"""GenerationScores: names that hold the protocol, statistics cached once, one result whatever the batches and ranks."""

import socket
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from saccade import weights
from saccade.metrics.features import RandomConvFeatures, TFInceptionFeatures
from saccade.metrics.frechet import FeatureMoments, frechet_distance
from saccade.metrics.pixels import to_uint8
from saccade.metrics.precision_recall import precision_recall
from saccade.metrics.reference import ReferenceSet, real_statistics
from saccade.tasks.generation_scores import GenerationScores

INCEPTION = ["fid_tf_inception", "is_tf_inception", "precision_recall_tf_inception"]
PROXY = "frechet_proxy_random_conv"


class Data:
    """A stand-in for a data module of class images: two splits of noise, counting how often each was read."""

    def __init__(self, count=40, size=16):
        self.read = {"val": 0, "train": 0}
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)

    def reference(self, split):
        def images():
            self.read[split] += 1
            yield from self.images.split(9)

        size = f"{self.images.shape[2]}x{self.images.shape[3]}"
        return ReferenceSet(split, f"sha of {split}", len(self.images), size), images


def fakes(count=24, size=16):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2)) * 2 - 1


def score(scores, images, positions, batch=7):
    for rows in torch.arange(len(positions)).split(batch):
        scores.update(images[positions[rows]], positions[rows])
    return scores.compute()


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("SACCADE_WEIGHTS", raising=False)


def test_the_default_needs_no_weights_and_is_named_a_proxy():
    scores = GenerationScores()
    scores.begin(Data(), "cpu")
    results = score(scores, fakes(), torch.arange(24))
    assert list(results) == [
        f"{PROXY}_val_24",
        "precision_k3_proxy_random_conv_val_24",
        "recall_k3_proxy_random_conv_val_24",
    ]
    assert all(isinstance(value, float) for value in results.values())
    assert not any("fid" in name for name in results)


def test_the_numbers_are_those_of_the_parts():
    data, extractor, images = Data(), RandomConvFeatures(), fakes()
    scores = GenerationScores()
    scores.begin(data, "cpu")
    results = score(scores, images, torch.arange(24))
    features, real = extractor(to_uint8(images)), extractor(data.images)
    moments, wanted = FeatureMoments(64), FeatureMoments(64)
    moments.update(features)
    wanted.update(real)
    assert results[f"{PROXY}_val_24"] == pytest.approx(frechet_distance(moments, wanted), rel=1e-6)
    # and torch-fidelity's, of the same features
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    sets = [fid_features_to_statistics(found.double()) for found in (features, real)]
    fid = fid_statistics_to_metric(*sets, verbose=False)["frechet_inception_distance"]
    assert results[f"{PROXY}_val_24"] == pytest.approx(fid, rel=1e-5)
    # as many real as generated images, spread evenly over the real set
    spread = [index * 40 // 24 for index in range(24)]
    precision, recall = precision_recall(features, real[spread])
    assert results["precision_k3_proxy_random_conv_val_24"] == precision
    assert results["recall_k3_proxy_random_conv_val_24"] == recall


def test_order_and_batches_do_not_matter():
    first, second = GenerationScores(), GenerationScores()
    first.begin(Data(), "cpu")
    second.begin(Data(), "cpu")
    alone = score(first, fakes(), torch.arange(24), batch=24)
    assert score(second, fakes(), torch.randperm(24), batch=5) == pytest.approx(alone, rel=1e-5)


def test_names_hold_split_count_and_truncation():
    scores = GenerationScores(splits=("val", "train"), count=20)
    scores.begin(Data(), "cpu", truncation=2.0)
    results = score(scores, fakes(), torch.arange(24))
    assert f"{PROXY}_val_20_truncated2" in results
    assert f"{PROXY}_train_20_truncated2" in results
    assert "recall_k3_proxy_random_conv_train_20_truncated2" in results
    scores.begin(Data(), "cpu", truncation=0.5)
    assert f"{PROXY}_val_20_truncated0.5" in score(scores, fakes(), torch.arange(24))


@pytest.mark.slow
def test_one_pass_of_the_inception_gives_every_score(monkeypatch):
    passes = []
    inside = TFInceptionFeatures._features
    monkeypatch.setattr(TFInceptionFeatures, "_features", lambda self, x: passes.append(len(x)) or inside(self, x))
    # of 2048 channels it takes long, and is compared with torch-fidelity's elsewhere
    monkeypatch.setattr("saccade.metrics.generation.frechet_distance", lambda made, real: float(made.count))
    scores = GenerationScores(names=INCEPTION, weights="random", neighbours=8)
    data = Data(count=12)
    scores.begin(data, "cpu")
    assert sum(passes) == 12
    results = score(scores, fakes(10), torch.arange(10), batch=5)
    assert sum(passes) == 12 + 10
    assert list(results) == [
        "frechet_random_tf_inception_val_10",
        "is_random_tf_inception_1008_10",
        "is_random_tf_inception_1008_10_10splits",
        "is_random_tf_inception_1008_10_10splits_std",
        "is_random_tf_inception_1008_bias_10",
        "precision_k3_random_tf_inception_val_8",
        "recall_k3_random_tf_inception_val_8",
    ]
    # torch-fidelity's own function on the same logits
    from torch_fidelity.metric_isc import isc_features_to_metric

    extractor = TFInceptionFeatures("random")
    logits = extractor.logits(extractor(to_uint8(fakes(10))))
    isc = isc_features_to_metric(logits, splits=1, shuffle=False)["inception_score_mean"]
    assert results["is_random_tf_inception_1008_10"] == pytest.approx(isc, rel=1e-6)
    record = scores.provenance()["frechet_random_tf_inception"]
    assert record["generated_count"] == 10
    assert record["real_count"] == {"val": 12}
    assert record["images"] == "uint8"


def test_statistics_are_computed_once_and_kept(tmp_path):
    data = Data()
    first, second = GenerationScores(), GenerationScores()
    first.begin(data, "cpu")
    first.begin(data, "cpu")
    assert data.read == {"val": 1, "train": 0}
    second.begin(data, "cpu")
    assert data.read == {"val": 1, "train": 0}
    files = sorted(path.name for path in (tmp_path / "cache" / "statistics").iterdir())
    assert [name.endswith("-features40.npz") for name in files] == [True, False]
    # the same numbers, to the last bit, from statistics that were computed and from those that were read
    assert score(first, fakes(), torch.arange(24)) == score(second, fakes(), torch.arange(24))
    third = GenerationScores(neighbours=10)  # other features are kept, so one more pass
    third.begin(data, "cpu")
    assert data.read["val"] == 2


def test_a_torn_file_of_features_is_a_miss(tmp_path):
    data, extractor = Data(), RandomConvFeatures()
    reference, images = data.reference("val")
    wanted = real_statistics(extractor, reference, images, tmp_path, keep=5)
    (file,) = tmp_path.glob("*-features5.npz")
    file.write_bytes(file.read_bytes()[:-100])
    again = real_statistics(extractor, reference, images, tmp_path, keep=5)
    assert data.read["val"] == 2
    assert torch.equal(again.features, wanted.features)
    assert torch.equal(wanted.features, extractor(data.images)[[0, 8, 16, 24, 32]])


def test_begin_forgets_the_last_evaluation():
    scores, data = GenerationScores(), Data()
    scores.begin(data, "cpu")
    first = score(scores, fakes(), torch.arange(24))
    scores.begin(data, "cpu")
    assert score(scores, fakes(), torch.arange(24)) == first


def test_the_number_in_the_name_is_true():
    scores = GenerationScores()
    scores.begin(Data(), "cpu")
    assert f"{PROXY}_val_20" in score(scores, fakes(), torch.arange(20))
    assert scores.provenance()[PROXY]["generated_count"] == 20
    scores.update(fakes()[21:], torch.arange(21, 24))
    with pytest.raises(ValueError, match=r"must be 0\.\.23, each once; 1 are not \(position 20 came 0 times\)"):
        scores.compute()
    scores.update(fakes()[20:22], torch.arange(20, 22))
    with pytest.raises(ValueError, match="position 21 came 2 times"):
        scores.compute()
    scores.begin(Data(), "cpu")
    with pytest.raises(ValueError, match="at least 2 generated images are needed; got 0"):
        scores.compute()


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match="known: fid_tf_inception"):
        GenerationScores(names=["fid"])
    with pytest.raises(ValueError, match="some of val, train"):
        GenerationScores(splits=("test",))
    with pytest.raises(ValueError, match="count must be 2 or more"):
        GenerationScores(count=1)
    with pytest.raises(ValueError, match="valid here: pretrained, random"):
        GenerationScores(names=INCEPTION, weights="auto")
    with pytest.raises(RuntimeError, match=r"begin\(data\) comes before"):
        GenerationScores().compute()
    scores = GenerationScores()
    scores.begin(Data(), "cpu")
    with pytest.raises(ValueError, match=r"\(B, 3, Y, X\) images and \(B,\) positions"):
        scores.update(fakes()[:3], torch.arange(2))
    broken = fakes()[:3]
    broken[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="position 8 holds values that are not finite"):
        scores.update(broken, torch.tensor([7, 8, 9]))


def test_auto_says_what_is_not_computed(tmp_path):
    options = {"names": INCEPTION, "weights": "auto", "splits": ["val"], "count": None}
    changes, notices = GenerationScores.resolve_auto(options, {"weights_dir": str(tmp_path)})
    assert changes["weights"] == "pretrained"
    assert changes["names"] == [PROXY, "precision_recall_proxy_random_conv"]
    assert len(notices) == 1
    assert "NOT COMPUTED" in notices[0]
    assert all(name in notices[0] for name in INCEPTION)
    GenerationScores(**{**options, **changes})
    assert GenerationScores.resolve_auto({"names": None, "weights": "auto"}, {}) == ({"weights": "pretrained"}, [])


def test_missing_weights_name_file_and_folder(tmp_path):
    file = weights.KNOWN["inception_tf"].file
    options = {"names": INCEPTION, "weights": "pretrained"}
    with pytest.raises(weights.WeightsError, match=file) as refused:  # before training, not at its first evaluation
        GenerationScores.resolve_auto(options, {"weights_dir": str(tmp_path)})
    assert str(tmp_path) in str(refused.value)
    scores = GenerationScores(**options)
    with pytest.raises(weights.WeightsError, match=file):
        scores.begin(Data(), "cpu")


def test_random_weights_are_told():
    changes, notices = GenerationScores.resolve_auto({"names": INCEPTION, "weights": "random"}, {})
    assert changes == {}
    assert "RANDOM FEATURES" in notices[0]


def _one_process(rank, port, folder, results):
    import os

    os.environ["SACCADE_CACHE"] = folder
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    scores, data = GenerationScores(), Data()
    scores.begin(data, "cpu")
    results[rank] = score(scores, fakes(), torch.arange(23)[rank::2])
    # one rank has lost the cache: both compute, none waits
    if rank == 1:
        os.environ["SACCADE_CACHE"] = f"{folder}-other"
    again = GenerationScores()
    again.begin(data, "cpu")
    results[f"again{rank}"] = (score(again, fakes(), torch.arange(23)[rank::2]), data.read["val"])
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo over tcp as set up here")
def test_two_processes_equal_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = mp.get_context("spawn").Manager().dict()
    mp.spawn(_one_process, (port, str(tmp_path / "shared"), results), nprocs=2)
    scores = GenerationScores()
    scores.begin(Data(), "cpu")
    alone = score(scores, fakes(), torch.arange(23))
    for rank in (0, 1):
        assert results[rank] == pytest.approx(alone, rel=1e-5)
        assert results[f"again{rank}"] == (results[rank], 2)
    assert len(list(Path(tmp_path / "shared" / "statistics").glob("*.npz"))) == 2
