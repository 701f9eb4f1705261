"""Skeletons, error maps, grids and attention pictures: what lies where, in which colour."""

import numpy as np
import pytest
import torch

from saccade.geometry import Size
from saccade.pictures.attention import Look, attention_picture, query_colour
from saccade.pictures.canvas import blank
from saccade.pictures.grid import Column, grid, sample_grid
from saccade.pictures.heat import colour_map, error_map
from saccade.pictures.skeleton import JOINT_COLOURS, draw_skeleton, skeleton_picture


def points(**places):
    keypoints = torch.zeros(18, 3)
    for index, (x, y) in places.items():
        keypoints[int(index[1:])] = torch.tensor([x, y, 1.0])
    return keypoints


def near(picture, colour, slack=40):
    return np.abs(picture.astype(int) - np.asarray(colour)).max(axis=-1) <= slack


def test_a_limb_runs_between_its_joints_in_its_colour():
    drawn = draw_skeleton(blank(100, 100, (0, 0, 0)), points(p2=(20, 50), p3=(80, 50)))
    assert near(drawn[50, 30:70], JOINT_COLOURS[3]).all()
    assert (drawn[:40] == 0).all()
    assert (drawn[60:] == 0).all()


def test_missing_points_and_their_limbs_are_left_out():
    drawn = draw_skeleton(blank(100, 100, (0, 0, 0)), points(p2=(20, 50)))
    assert near(drawn[50, 20], JOINT_COLOURS[2])
    assert (drawn[:, 30:] == 0).all()
    assert (draw_skeleton(blank(8, 8, (0, 0, 0)), torch.zeros(18, 3)) == 0).all()


def test_scale_keeps_pixel_centres():
    keypoints = points(p0=(2, 1))
    drawn = draw_skeleton(blank(40, 40, (0, 0, 0)), keypoints, scale=10.0)
    rows, cols = np.nonzero(drawn.max(axis=-1))
    assert rows.mean() == pytest.approx(14.5, abs=0.6)
    assert cols.mean() == pytest.approx(24.5, abs=0.6)


def test_the_picture_given_is_not_drawn_on():
    ground = blank(50, 50)
    draw_skeleton(ground, points(p0=(20, 20)))
    assert (ground == 255).all()


@pytest.mark.parametrize(
    ("keypoints", "scale", "words"), [(torch.zeros(17, 3), 1.0, "18"), (torch.zeros(18, 3), 0.0, "scale")]
)
def test_wrong_skeletons_are_refused(keypoints, scale, words):
    with pytest.raises(ValueError, match=words):
        draw_skeleton(blank(8, 8), keypoints, scale=scale)


def test_skeleton_picture_has_the_images_aspect():
    assert skeleton_picture(torch.zeros(18, 3), (64, 44), height=128).shape == (128, 88, 3)
    assert skeleton_picture(torch.zeros(18, 3), (64, 44)).shape == (64, 44, 3)


def test_error_map_is_dark_where_right_and_pale_where_wrong():
    target = torch.zeros(3, 1, 3)
    generated = target.clone()
    generated[:, 0, 1] = 0.5
    generated[:, 0, 2] = 1.0
    heat = error_map(generated, target).astype(int).sum(axis=-1)[0]
    assert heat[0] < heat[1] < heat[2]
    assert error_map(generated, target, full_scale=0.5)[0, 1].tolist() == error_map(generated, target)[0, 2].tolist()
    with pytest.raises(ValueError, match="one shape"):
        error_map(generated, torch.zeros(3, 1, 4))


def test_colours_rise_in_lightness_and_broken_values_are_the_palest():
    lightness = colour_map(np.linspace(0, 1, 50)).astype(float) @ [0.3, 0.59, 0.11]
    assert (np.diff(lightness) > 0).all()
    assert colour_map(np.array([np.nan, 3.0]))[0].tolist() == colour_map(np.array([1.0]))[0].tolist()


def test_grid_holds_every_picture_once():
    columns = [Column(name, [blank(4, 4, (index, 7, row)) for row in (1, 2)]) for index, name in enumerate("ab")]
    sheet = grid(columns, tile=16)
    for index in range(2):
        for row in (1, 2):
            assert (sheet == (index, 7, row)).all(axis=-1).sum() == 16 * 16


def test_uneven_grids_are_refused():
    with pytest.raises(ValueError, match="one length"):
        grid([Column("a", [blank(4, 4)]), Column("b", [])])
    with pytest.raises(ValueError, match="at least one"):
        grid([])


def sample(batch=3, size=16):
    images = {name: torch.zeros(batch, 3, size, size) for name in ("source", "generated", "target")}
    return {**images, "source_keypoints": torch.zeros(batch, 18, 3), "target_keypoints": torch.zeros(batch, 18, 3)}


def test_sample_grid_shows_at_most_count_rows_and_leaves_out_a_target_that_is_not_there():
    full = sample_grid(sample(), count=2, tile=32)
    more = sample_grid(sample(), count=9, tile=32)
    assert more.shape[0] == full.shape[0] + 32 + 6
    unpaired = {name: value for name, value in sample().items() if name != "target"}
    assert sample_grid(unpaired, count=2, tile=32).shape[1] < full.shape[1]


def test_sample_grid_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"missing \['generated'\]"):
        sample_grid({name: value for name, value in sample().items() if name != "generated"})
    with pytest.raises(ValueError, match="batch size"):
        sample_grid({**sample(), "target": torch.zeros(1, 3, 16, 16)})


# ---------------------------------------------------------------------- attention


def look(indices, weights, x=12.0, y=4.0):
    return Look("head", x, y, np.array(indices), np.array(weights, dtype=float))


def pair_of(picture, size=16, height=160):
    """The two large images of an attention picture: they end above the small ones."""
    top = next(row for row in range(picture.shape[0]) if (picture[row, 10:100] != 255).all())
    return picture[top : top + height, 10 : 10 + 2 * height + 8]


def test_lines_lead_from_the_query_to_its_keys_stronger_ones_more_opaque():
    keys = Size(4, 4)
    drawn = attention_picture(
        blank(16, 16, (0, 0, 0)), blank(16, 16, (0, 0, 0)), [look([3, 12], [0.2, 0.8])], keys, height=160
    )
    pair = pair_of(drawn).astype(int)
    colour = np.asarray(query_colour(0, 1))
    strong, weak, nothing = pair[139, 19], pair[19, 139], pair[139, 139]
    assert np.abs(strong - colour).max() < 20
    assert np.abs(weak - colour * 0.25).max() < 30
    assert nothing.max() == 0
    assert np.abs(pair[round((4 + 0.5) * 10), 160 + 8 + round((12 + 0.5) * 10)] - colour).max() < 20


def test_a_query_that_looks_everywhere_alike_is_drawn_faintly():
    keys = Size(8, 8)
    dark = blank(16, 16, (0, 0, 0))
    everywhere = attention_picture(dark, dark, [look(range(64), [1 / 64] * 64)], keys, height=160)
    somewhere = attention_picture(dark, dark, [look([7, 56], [0.5, 0.5])], keys, height=160)
    assert pair_of(everywhere)[:, :160].max() < 0.5 * pair_of(somewhere)[:, :160].max()
    few = attention_picture(dark, dark, [look([7, 56, 3, 30], [0.25] * 4)], keys, height=160)
    assert pair_of(few)[:, :160].max() > 0.9 * pair_of(somewhere)[:, :160].max()


def test_a_key_that_several_heads_name_counts_as_often():
    keys = Size(2, 2)
    once = attention_picture(blank(8, 8), blank(8, 8), [look([0, 3], [0.5, 0.5], 4, 4)], keys, height=80)
    twice = attention_picture(blank(8, 8), blank(8, 8), [look([0, 3, 0], [0.25, 0.5, 0.25], 4, 4)], keys, height=80)
    assert np.array_equal(once, twice)


@pytest.mark.parametrize(
    ("looks", "words"),
    [
        ([], "at least one"),
        ([look([16], [1.0])], r"0\.\.15"),
        ([look([-1], [1.0])], r"0\.\.15"),
        ([look([1, 2], [1.0])], "equally long"),
        ([look([], [])], "equally long"),
    ],
)
def test_wrong_queries_are_refused(looks, words):
    with pytest.raises(ValueError, match=words):
        attention_picture(blank(8, 8), blank(8, 8), looks, Size(4, 4))


def test_key_map_and_query_map_may_differ_in_aspect():
    drawn = attention_picture(blank(16, 8), blank(16, 24), [look([0], [1.0])], Size(4, 2), height=64, title="slot")
    assert drawn.shape[1] == 32 + 8 + 96 + 20
