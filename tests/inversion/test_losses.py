"""The losses of inversion in closed form."""

import pytest
import torch
from tiny import networks

from saccade.attention import NoAttention
from saccade.inversion import METHODS, method_named, saliency
from saccade.inversion.losses import errors, first_block, losses, make_target, objective
from saccade.models.sagan import SaganDiscriminator

HEADS = {"heads": (0, 1)}


@pytest.fixture(scope="module")
def judge():
    return networks()[1].eval()


def pictures(count, seed=1):
    torch.manual_seed(seed)
    return torch.rand(count, 3, 16, 16, dtype=torch.float64) * 2 - 1


def enlarged(judge, images, normaliser):
    """S' of the paper by hand: each of 4x4 keys repeated over the 8x8 map."""
    keys = saliency(judge.attention_blocks["down.8"], judge.features(images), normaliser=normaliser)
    return keys.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_the_papers_loss_is_the_sum_over_heads_of_squared_weighted_norms(judge):
    x, fake = pictures(2), pictures(2, seed=2)
    method = METHODS["paper"]
    found = losses(errors(judge.features(fake), make_target(x, judge, method)), method)
    difference, weights = judge.features(fake) - judge.features(x), enlarged(judge, x, "queries")
    wanted = [sum(((difference[b] * weights[b, h]) ** 2).sum() for h in range(4)) for b in range(2)]
    torch.testing.assert_close(found, torch.stack(wanted))


def test_the_released_loss_is_a_sum_of_norms_of_the_right_to_left_heads(judge):
    x, fake = pictures(2), pictures(2, seed=2)
    method = METHODS["released"].but(**HEADS)
    squares = errors(judge.features(fake), make_target(x, judge, method))
    difference, weights = judge.features(fake) - judge.features(x), enlarged(judge, x, "attending")
    wanted = [sum(torch.linalg.norm((difference[b] * weights[b, h]).flatten()) for h in (0, 1)) for b in range(2)]
    torch.testing.assert_close(losses(squares, method), torch.stack(wanted))


def test_coupled_is_one_norm_a_head_over_all_starts_of_an_image(judge):
    x, fake = pictures(1), pictures(6, seed=2)
    method = METHODS["released"].but(coupled=True, **HEADS)
    target = make_target(torch.cat([x, x.flip(3)]), judge, method)
    squares = errors(judge.features(fake), target.of(torch.tensor([0, 0, 0, 1, 1, 1])))
    wanted = 0.0
    for image in range(2):
        starts = slice(3 * image, 3 * image + 3)
        original = [x, x.flip(3)][image]
        difference = judge.features(fake[starts]) - judge.features(original)
        weights = enlarged(judge, original, "attending")
        wanted = wanted + sum(torch.linalg.norm((difference * weights[:, h : h + 1]).flatten()) for h in (0, 1))
    torch.testing.assert_close(objective(squares, method, 3), wanted)
    alone = METHODS["released"].but(**HEADS)
    torch.testing.assert_close(objective(squares, alone, 3), losses(squares, alone).sum())


def test_the_baselines_compare_pixels(judge):
    x, fake = pictures(2), pictures(2, seed=2)
    plain, weighted = METHODS["pixel"], METHODS["generator_weighted"]
    found = losses(errors(fake, make_target(x, None, plain)), plain)
    torch.testing.assert_close(found, ((fake - x) ** 2).sum((1, 2, 3)))
    found = losses(errors(fake, make_target(x, judge, weighted)), weighted)
    weights = enlarged(judge, x, "queries").repeat_interleave(2, 2).repeat_interleave(2, 3)
    wanted = torch.stack([(((fake[b] - x[b]) * weights[b].unsqueeze(1)) ** 2).sum() for b in range(2)])
    torch.testing.assert_close(found, wanted)


def test_an_image_that_equals_its_target_has_no_loss_and_a_finite_gradient(judge):
    fake = pictures(1).requires_grad_()
    for name in ("paper", "released"):
        method = METHODS[name].but(**HEADS)
        loss = losses(errors(judge.features(fake), make_target(fake.detach(), judge, method)), method).sum()
        (gradient,) = torch.autograd.grad(loss, fake)
        assert loss.item() == 0.0
        assert gradient.abs().max() == 0.0


def test_what_the_sources_fix():
    paper, released = METHODS["paper"], METHODS["released"]
    assert (paper.lr, paper.steps, paper.seeds, paper.lookahead, paper.heads) == (0.05, 1500, 4, (5, 0.5), None)
    assert (paper.squared, paper.normaliser, paper.truncation) == (True, "queries", 2.0)
    assert (released.lr, released.steps, released.seeds, released.lookahead) == (0.07, 1000, 8, None)
    assert (released.squared, released.normaliser, released.heads) == (False, "attending", (0, 1, 2, 3))
    assert released.patience == 0
    for name in ("pixel", "generator_weighted"):  # they differ from the paper's method in the loss alone
        assert METHODS[name].but(name="paper", space="features", weighted=True) == paper


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps is a whole number, 1 or more"),
        ({"seeds": 1.5}, "seeds is a whole number"),
        ({"lr": -0.1}, "lr is above 0"),
        ({"lr": float("nan")}, "lr is above 0"),
        ({"gain": 1.0}, "gain is a share"),
        ({"patience": -1}, "patience is a whole number, 0 or more"),
        ({"normaliser": "mean"}, "Valid here: queries"),
        ({"coupled": True}, "squared=False, and patience=0"),
    ],
)
def test_wrong_options_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        METHODS["paper"].but(**changes)


def test_what_cannot_be_is_told(judge):
    with pytest.raises(ValueError, match="Valid here: paper, released, pixel, generator_weighted"):
        method_named("papre")
    with pytest.raises(RuntimeError, match="needs the discriminator"):
        make_target(pictures(1), None, METHODS["paper"])
    with pytest.raises(ValueError, match="from 0 to 3"):
        make_target(pictures(1), judge, METHODS["paper"].but(heads=(4,)))
    _, blind = networks(NoAttention)
    with pytest.raises(RuntimeError, match="attends nowhere"):
        first_block(blind)
    bare = SaganDiscriminator(image_size=16, channels=[8, 8, 8], attention=None, attention_at=8, classes=None)
    with pytest.raises(RuntimeError, match="has no attention"):
        make_target(pictures(1).float(), bare, METHODS["paper"])
