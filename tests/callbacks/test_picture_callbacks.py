import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers.logger import DummyLogger
from tiny_task import SIZE, Network, Pictures, TinyTask, fit
from torch.utils.data import DataLoader

from saccade.attention.block import AttentionBlock
from saccade.attention.full import FullAttention
from saccade.attention.pooled_block import PooledAttentionBlock
from saccade.attention.ylg import YourLocalAttention
from saccade.callbacks.attention_pictures import (
    AttentionPictures,
    QueryPoint,
    capture,
    draw_slot,
    find_blocks,
    finest,
    grid_points,
    head_names,
    looks_of,
    maps_of,
    query_cells,
    query_points,
    shows_whole,
)
from saccade.callbacks.observing import observing
from saccade.callbacks.samples import SampleGrids, sheet
from saccade.data.pose import KEYPOINT_NAMES
from saccade.geometry import Size, SlotSpec


class ImageLogger(DummyLogger):
    def __init__(self):
        super().__init__()
        self.images = []

    def log_image(self, key, images, **options):
        self.images.append((key, images, options))


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_pictures_come_after_every_evaluation_and_once_at_the_end(tmp_path):
    logger = ImageLogger()
    fit(TinyTask(), [SampleGrids(tmp_path, count=2), AttentionPictures(tmp_path)], logger=logger)
    assert files(tmp_path) == ["attention-up.8.png", "samples-copy-0000000008.png", "samples-copy-0000000016.png"]
    with Image.open(tmp_path / "attention-up.8.png") as picture:
        assert np.asarray(picture).std() > 10
    keys = [key for key, _, _ in logger.images]
    assert keys == ["samples/copy", "attention/up.8", "samples/copy", "attention/up.8"]
    assert logger.images[0][1] == [str(tmp_path / "samples-copy-0000000008.png")]
    assert logger.images[0][2] == {"caption": ["8 images seen"]}


def test_a_run_that_draws_ends_in_the_same_weights(tmp_path):
    plain, drawn = TinyTask(), TinyTask()
    fit(plain, [])
    fit(drawn, [SampleGrids(tmp_path), AttentionPictures(tmp_path)])
    for name, value in plain.state_dict().items():
        assert torch.equal(value, drawn.state_dict()[name]), name


def test_testing_alone_draws_too(tmp_path):
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[SampleGrids(tmp_path, count=1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.test(TinyTask(), DataLoader(Pictures(), batch_size=8), verbose=False)
    assert files(tmp_path) == ["samples-copy-0000000000.png"]


def test_without_attention_there_is_no_attention_picture(tmp_path):
    fit(TinyTask(attends=False), [AttentionPictures(tmp_path / "pictures")])
    assert not (tmp_path / "pictures").exists()


def test_observing_leaves_modes_and_random_states_as_they_were():
    task = TinyTask().train()
    task.frozen.eval()
    state = torch.get_rng_state()

    def look():
        with observing(task):
            assert not any(part.training for part in task.modules())
            assert not torch.is_grad_enabled()
            torch.rand(3)
            raise KeyError

    with pytest.raises(KeyError):
        look()
    assert torch.equal(torch.get_rng_state(), state)
    assert not task.frozen.training
    assert task.training
    assert task.generator.drop.training


@pytest.mark.parametrize(("kind", "options"), [(SampleGrids, {"count": 0}), (AttentionPictures, {"slots": 0})])
def test_nothing_to_draw_is_refused(tmp_path, kind, options):
    with pytest.raises(ValueError, match="1 or more"):
        kind(tmp_path, **options)


# ---------------------------------------------------------------------- capture and queries


def test_capture_keeps_the_first_input_and_removes_its_hooks():
    network = Network(True)
    first, second = torch.ones(1, 3, *SIZE), torch.zeros(1, 3, *SIZE)
    with capture(find_blocks(network)) as seen:
        network(first)
        network(second)
    assert torch.equal(seen["up.8"].q_map, first)
    network(second)
    assert torch.equal(seen["up.8"].q_map, first)
    assert not network.block._forward_pre_hooks


def test_finest_slots_come_first():
    network = Network(True)
    with capture(find_blocks(network)) as seen:
        network(torch.ones(1, 3, *SIZE))
    seen["up.2"] = type(seen["up.8"])(seen["up.8"].block, torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2))
    assert finest(seen, 5) == ["up.8", "up.2"]
    assert finest(seen, 1) == ["up.8"]


def test_looks_are_the_blocks_own_weights():
    network = Network(True).eval()
    images = torch.randn(2, 3, *SIZE)
    with capture(find_blocks(network)) as seen, torch.no_grad():
        network(images)
        points = [QueryPoint("a", 0.0, 0.0), QueryPoint("b", 6.9, 2.2)]
        first, second = looks_of(seen["up.8"], 1, points, SIZE)
        block = network.block
        values = block.value(images[1:])[0].flatten(1).double()  # (E, N)
        brought = block.mixer(block.query(images[1:]), block.key(images[1:]), block.value(images[1:]))[0].flatten(1)
    for look, query in ((first, 0), (second, 2 * 8 + 7)):
        found = torch.zeros(64, dtype=torch.float64).index_add_(
            0, torch.from_numpy(look.indices), torch.from_numpy(look.weights)
        )
        assert torch.allclose(values @ found, brought[:, query].double(), atol=1e-6)


def figure(**joints):
    points = torch.zeros(18, 3)
    for name, (x, y) in joints.items():
        points[KEYPOINT_NAMES.index(name)] = torch.tensor([x, y, 1.0])
    return points


def test_query_points_are_joints_inside_the_image_and_apart():
    keypoints = figure(
        nose=(50, 10),
        neck=(50, 20),
        right_hip=(40, 60),
        left_hip=(60, 60),
        right_wrist=(50, 11),  # on the nose
        left_wrist=(120, 50),  # outside
    )
    found = {point.name: (point.x, point.y) for point in query_points(keypoints, Size(100, 100))}
    assert found.keys() == {"head", "chest", "hips", "neck"}
    assert found["hips"] == (50, 60)
    assert found["chest"] == pytest.approx((50, 140 / 3))
    assert len(query_points(keypoints, Size(100, 100), count=2)) == 2


def test_a_figure_with_too_few_joints_gets_a_grid():
    points = query_points(figure(nose=(3, 3)), Size(11, 11))
    assert [(point.x, point.y) for point in points] == [(3, 3), (7, 3), (3, 7), (7, 7)]


def test_points_fall_into_the_cells_that_hold_them():
    points = [QueryPoint("a", -0.5, -0.5), QueryPoint("b", 31.4, 31.4), QueryPoint("c", 15.4, 16.0)]
    cells = query_cells(points, Size(32, 32), Size(4, 8))
    assert cells.tolist() == [[0, 0], [3, 7], [2, 3]]


# ---------------------------------------------------------------------- generators from noise


def test_a_sheet_has_a_row_a_class_and_at_most_as_many_as_asked_for():
    generated = torch.linspace(-1, 1, 12)[:, None, None, None].expand(12, 3, 8, 8)
    sample = {"generated": generated, "labels": torch.tensor([0, 0, 0, 4, 4, 4, 2, 2, 2, 1, 1, 1])}
    names = ["ape", "bee", "cat", "dog", "eel"]
    whole, two = (sheet(sample, count=count, title="t", class_names=names) for count in (9, 2))
    assert two.shape[1] == whole.shape[1]
    tiles = [96 * rows + 4 * (rows - 1) for rows in (4, 2)]
    assert whole.shape[0] - two.shape[0] == tiles[0] - tiles[1]
    unnamed = sheet(sample, count=9, title="t")
    assert unnamed.shape[0] == whole.shape[0]
    assert not np.array_equal(unnamed[:, :60], whole[:, :60])  # "class 4" in place of "eel"


def test_a_sheet_without_classes_has_rows_of_eight():
    picture = sheet({"generated": torch.zeros(16, 3, 8, 8)}, count=1, title="")
    assert picture.shape[1] == 2 * 10 + 8 * 96 + 7 * 4


class Pooled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        spec = SlotSpec("up.8", 16, 16, 16, SIZE, Size(4, 4))
        self.block = PooledAttentionBlock(spec, YourLocalAttention(spec, heads=4), qk_ratio=4)
        self.attention_blocks = {"up.8": self.block}

    def forward(self, features):
        return self.block(features, features)


def test_maps_of_a_pooled_block_number_its_pooled_keys_head_by_head():
    network = Pooled().eval()
    with capture(find_blocks(network)) as seen, torch.no_grad():
        network(torch.randn(2, 16, *SIZE))
    points = [QueryPoint("a", 0.0, 0.0), QueryPoint("b", 6.9, 2.2)]
    with torch.no_grad():
        maps = maps_of(seen["up.8"], 1, points, SIZE)
    names = head_names(network.block, 4)
    assert names == ["0 rtl1", "1 rtl2", "2 ltr1", "3 ltr2"]
    for query, flat in zip(maps, (0, 2 * 8 + 7), strict=True):
        assert query.weights.shape == (4, 4, 4)
        np.testing.assert_allclose(query.weights.sum((1, 2)), 1.0, rtol=1e-6)
        for head, pattern in enumerate(network.block.mixer.patterns):
            expected = pattern(16)  # in enumeration order, which ESA permutes
            assert query.allowed[head].sum() in expected.sum(1).tolist(), (query.name, head, flat)
    assert (maps[1].row, maps[1].col) == pytest.approx((2.7 / 8, 7.4 / 8))


def test_a_picture_without_joints_has_a_column_a_head():
    network = Pooled().eval()
    with capture(find_blocks(network)) as seen, torch.no_grad():
        network(torch.randn(6, 16, *SIZE))
        picture = draw_slot(seen["up.8"], {"generated": torch.rand(6, 3, *SIZE)}, title="slot", count=2)
        one = draw_slot(seen["up.8"], {"generated": torch.rand(6, 3, *SIZE)}, title="slot", count=1)
    assert picture.shape[1] == one.shape[1]
    assert picture.shape[0] > 1.8 * one.shape[0]
    assert head_names(object(), 2) == ["head 0", "head 1"]


def test_other_tasks_get_a_column_for_each_kind_of_picture():
    low, high = torch.full((3, 3, 8, 8), -1.0), torch.ones(3, 3, 16, 16)
    both = sheet({"low": low, "high": high}, count=2, title="t")
    one = sheet({"high": high}, count=2, title="t")
    assert both.shape[1] > one.shape[1]
    assert both.shape[0] == one.shape[0]  # each kind is enlarged to one height
    assert sheet({"high": high}, count=3, title="t").shape[0] > one.shape[0]


class Masked(torch.nn.Module):
    """Attends to the left half of its map."""

    def __init__(self):
        super().__init__()
        spec = SlotSpec("up.8", 16, 16, 16, SIZE, SIZE)
        self.block = AttentionBlock(spec, FullAttention(spec))
        self.attention_blocks = {"up.8": self.block}

    def forward(self, features):
        mask = torch.zeros(len(features), 1, *SIZE, dtype=torch.bool)
        mask[..., : SIZE.cols // 2] = True
        return self.block(features, features, mask)


def test_pictures_of_a_masked_block_look_where_it_looked():
    network = Masked().eval()
    with capture(find_blocks(network)) as seen, torch.no_grad():
        network(torch.randn(2, 16, *SIZE))
        maps = maps_of(seen["up.8"], 1, grid_points(SIZE), SIZE)
        views = {"keys": torch.rand(2, 3, *SIZE), "made": torch.rand(2, 3, 2 * SIZE.rows, 2 * SIZE.cols)}
        picture = draw_slot(seen["up.8"], views, title="slot", count=1, views=("keys", "made"))
    assert all(not query.weights[:, :, SIZE.cols // 2 :].any() for query in maps)
    assert all(query.weights[:, :, : SIZE.cols // 2].all() for query in maps)
    assert picture.ndim == 3
    assert shows_whole(seen["up.8"], views["made"])
    assert not shows_whole(seen["up.8"], views["made"][..., :-2])  # a tile of a larger picture
