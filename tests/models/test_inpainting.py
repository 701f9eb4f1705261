"""The two-stage inpainting network against a plain float64 restatement, the released keys, and pictures of any size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oracles import contextual_loops
from saccade.attention import (
    FullAttention,
    GridPartitionedAttention,
    LinearAttention,
    LocalAttention,
    NoAttention,
    NystromAttention,
    PatchBasedStochasticAttention,
    PerformerAttention,
    ReformerAttention,
    YourLocalAttention,
)
from saccade.attention.contextual import ContextualAttention, ContextualBlock
from saccade.attention.slots import SlotPolicy
from saccade.callbacks.allocation import count_allocations
from saccade.geometry import Size
from saccade.models import inpainting
from saccade.models.inpainting import InpaintingCritic, InpaintingCritics, InpaintingGenerator
from saccade.models.inpainting_layers import ConvBlock, Span, run, strips_of

PSAL = {"rate": 1, "everywhere": False, "known_window": 1}
BACKENDS: dict[str, Callable[..., Any]] = {
    "none": NoAttention,
    "full": ContextualAttention,
    "plain full": FullAttention,
    "gpa": partial(GridPartitionedAttention, coarse=8, cells=4, keys_per_cell=6),
    "ylg": partial(YourLocalAttention, heads=8),
    "psal": PatchBasedStochasticAttention,
    "local": partial(LocalAttention, window=9),
    "linear": LinearAttention,
    "performer": partial(PerformerAttention, features=64),
    "reformer": ReformerAttention,
    "nystromformer": partial(NystromAttention, landmarks=16),
}


def generator(mixer: Any = ContextualAttention, size: Any = 32, width: int = 4, **options: Any) -> InpaintingGenerator:
    policy = SlotPolicy(mixer, exact_up_to=0, block=partial(ContextualBlock, **options))
    torch.manual_seed(0)
    return InpaintingGenerator(image_size=size, width=width, attention=policy)


def louder(network: InpaintingGenerator, factor: float = 2.0) -> InpaintingGenerator:
    """With larger weights, so that attention and clamping matter."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(factor)
    return network


def pictures(*size: int, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(batch, 3, *size, dtype=dtype, generator=torch.Generator().manual_seed(1)) * 2 - 1


def masks(*size: int, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    """Another box in every sample."""
    made = torch.zeros(batch, 1, *size, dtype=dtype)
    for sample in range(batch):
        top, left = size[0] // 4 + sample * 3, size[1] // 3 - sample * 5
        made[sample, :, top : top + size[0] // 3, max(left, 0) : left + size[1] // 3] = 1
    return made


def keys(name: str, network: nn.Module) -> list[str]:
    return [f"{name} {key} {tuple(value.shape)}" for key, value in network.state_dict().items()]


class TestReleased:
    def test_parameters_keys_and_shapes(self) -> None:
        net = generator(size=256, width=32)
        critics = InpaintingCritics(image_size=256, hole=128)
        networks = {"netG": net, "localD": critics.local, "globalD": critics.whole}
        counts = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
        assert counts == {"netG": 3_601_542, "localD": 2_684_289, "globalD": 2_733_441}
        assert sum(p.numel() for p in net.coarse_generator.parameters()) == 1_448_227
        assert sum(p.numel() for p in net.fine_generator.parameters()) == 2_153_315
        listed = "\n".join(line for name, network in networks.items() for line in keys(name, network))
        assert len(listed.splitlines()) == 104
        assert hashlib.sha256(listed.encode()).hexdigest() == RELEASED_KEYS

    @pytest.mark.parametrize("recorded", [False, True])
    def test_equals_the_oracle(self, recorded: bool) -> None:
        net = louder(generator(size=(32, 40))).double()
        images, holes = pictures(32, 40), masks(32, 40)
        with torch.set_grad_enabled(recorded):
            made = net(images, holes)
        for sample in range(2):
            coarse, fine = contextual_loops.complete(
                net.state_dict(), images[sample], holes[sample, 0], contextual_loops.attend
            )
            torch.testing.assert_close(made.coarse[sample].detach(), coarse, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(made.fine[sample].detach(), fine, rtol=1e-10, atol=1e-12)
            assert 0 < float((fine.abs() == 1).double().mean()) < 0.9
        assert torch.equal(made.completed, made.fine * holes + images * (1 - holes))

    def test_attention_reaches_the_picture(self) -> None:
        images, holes = pictures(32, 40), masks(32, 40)
        nets = [louder(generator(mixer, (32, 40))).double() for mixer in (ContextualAttention, NoAttention)]
        with torch.no_grad():
            full, none = (net(images, holes) for net in nets)
        assert torch.equal(full.coarse, none.coarse)
        assert float((full.fine - none.fine).abs().max()) > 1e-2

    def test_psal_in_its_place(self) -> None:
        mixer = partial(PatchBasedStochasticAttention, matches=3, patch_size=5, search="exact")
        net = louder(generator(mixer, (32, 40), **PSAL)).double()
        images, holes = pictures(32, 40, batch=1), masks(32, 40, batch=1)
        with torch.no_grad():
            made = net(images, holes)
        attend = partial(contextual_loops.nearest_known, matches=3, side=5)
        _, fine = contextual_loops.complete(net.state_dict(), images[0], holes[0, 0], attend)
        torch.testing.assert_close(made.fine[0], fine, rtol=1e-8, atol=1e-9)


# SHA-256 of "<network> <key> <shape>" of the released networks netG, localD and globalD, a line each.
RELEASED_KEYS = "bb42cd4dcec030271ed9db84516aa68ea6add7abde4b33bf0629a7cf8f1b2a9e"


class TestAnyPicture:
    @pytest.mark.parametrize("size", [(1, 1), (5, 9), (16, 40), (37, 50)])
    @pytest.mark.parametrize("options", [{}, PSAL])
    def test_any_size(self, size: tuple[int, int], options: dict[str, Any]) -> None:
        mixer = partial(PatchBasedStochasticAttention, patch_size=3) if options else ContextualAttention
        net = generator(mixer, 32, **options)
        images = pictures(*size, dtype=torch.float32)
        holes = masks(*size, dtype=torch.float32)
        if size == (1, 1) and options:
            holes.zero_()
        with torch.no_grad():
            made = net(images, holes)
        for picture in made[:3]:
            assert picture is not None
            assert picture.shape == images.shape
            assert float(picture.abs().max()) <= 1
        known = (holes == 0).expand_as(images)
        assert torch.equal(made.completed[known], images[known])

    def test_sides_are_mirrored(self) -> None:
        net = generator().double()
        images, holes = pictures(27, 38, batch=1), masks(27, 38, batch=1)
        padded = [torch.cat([x, x[:, :, -6:-1].flip(2)], 2) for x in (images, holes)]
        padded = [torch.cat([x, x[:, :, :, -3:-1].flip(3)], 3) for x in padded]
        with torch.no_grad():
            made, wanted = net(images, holes), net(*padded)
        torch.testing.assert_close(made.fine, wanted.fine[:, :, :27, :38])

    @pytest.mark.parametrize("options", [{}, PSAL])
    def test_what_a_hole_holds_is_not_looked_at(self, options: dict[str, Any]) -> None:
        mixer = partial(PatchBasedStochasticAttention, seed=0) if options else ContextualAttention
        net = generator(mixer, 32, **options)
        images, holes = pictures(32, 32, dtype=torch.float32), masks(32, 32, dtype=torch.float32)
        with torch.no_grad():
            first, second = net(images, holes), net(torch.where(holes > 0, -images, images), holes)
        assert torch.equal(first.fine, second.fine)
        assert torch.equal(first.completed, second.completed)

    def test_every_sample_has_its_own_mask(self) -> None:
        net = louder(generator()).double()
        images, holes = pictures(32, 32, batch=3), masks(32, 32, batch=3)
        with torch.no_grad():
            whole = net(images, holes).fine
            alone = torch.cat([net(images[n, None], holes[n, None]).fine for n in range(3)])
            shared = net(images, holes[:1]).fine
        torch.testing.assert_close(whole, alone, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(shared[0], whole[0], rtol=1e-10, atol=1e-12)
        assert not torch.allclose(shared[1], whole[1])

    def test_a_blended_mask(self) -> None:
        net = generator().double()
        images, holes = pictures(32, 32, batch=1), masks(32, 32, batch=1) * 0.25
        with torch.no_grad():
            made = net(images, holes)
        torch.testing.assert_close(made.completed, images + (made.fine - images) * holes)

    def test_wrong_input(self) -> None:
        net = generator()
        images, holes = pictures(16, 16, dtype=torch.float32), masks(16, 16, dtype=torch.float32)
        with pytest.raises(ValueError, match=r"masks must be \(2, 1, 16, 16\), as the images; got \(2, 1, 8, 16\)"):
            net(images, holes[:, :, :8])
        with pytest.raises(ValueError, match="1 in holes and 0 elsewhere; got values from 0 to 255"):
            net(images, holes * 255)
        with pytest.raises(ValueError, match=r"images must be floating \(batch, 3"):
            net(images[:, :1], holes)
        with pytest.raises(ValueError, match=r"width must be even; got 5\. Valid here: 4, 6"):
            InpaintingGenerator(image_size=32, width=5)


class TestLargePictures:
    @pytest.mark.parametrize("pixels", [100, 700, 5000])
    def test_strips_change_nothing(self, pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
        net = louder(generator(size=(72, 56))).double()
        images, holes = pictures(72, 56), masks(72, 56)
        with torch.no_grad():
            whole = net(images, holes)
            monkeypatch.setattr(inpainting, "STRIP_PIXELS", pixels)
            strips = net(images, holes)
        torch.testing.assert_close(strips.fine, whole.fine, rtol=1e-10, atol=1e-12)
        recorded = net(images, holes)  # never in strips
        torch.testing.assert_close(recorded.fine.detach(), whole.fine, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("pixels", [10, 300, 10**6])
    def test_calls_are_foretold(self, pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(inpainting, "STRIP_PIXELS", pixels)
        net = generator()
        calls: list[str] = []
        for module in net.modules():
            if isinstance(module, (ConvBlock, ContextualBlock)):
                module.register_forward_hook(lambda module, *_: calls.append(type(module).__name__))
        with torch.no_grad():
            net(pictures(37, 50, dtype=torch.float32), masks(37, 50, dtype=torch.float32))
        assert len(calls) == net.module_calls(Size(37, 50))
        assert calls.count("ContextualBlock") == 1
        assert (len(calls) == 43) == (pixels == 10**6)

    @pytest.mark.parametrize("rows", [1, 2, 7, 8, 23])
    def test_any_chain_in_any_strips(self, rows: int) -> None:
        torch.manual_seed(0)
        chain = [
            ConvBlock(2, 3, kernel=5),
            ConvBlock(3, 3, stride=2),
            ConvBlock(3, 2, dilation=3),
            ConvBlock(2, 2, double=True, activation="none"),
            ConvBlock(2, 2, stride=2, kernel=5, activation="relu"),
        ]
        for layer in chain:
            layer.double()
        x = torch.randn(1, 2, rows, 6, dtype=torch.float64)
        with torch.no_grad():
            whole = run(chain, x)
            for pixels in (1, 6 * rows // 3 + 1, 10**6):
                strips = list(strips_of(chain, Size(rows, 6), pixels))
                assert [strip.start for strip in strips] == [0, *(strip.stop for strip in strips[:-1])]
                assert strips[-1].stop == whole.shape[2]
                torch.testing.assert_close(run(chain, x, pixels), whole, rtol=1e-12, atol=1e-13)

    def test_doubling_and_convolving_are_one(self) -> None:
        layer = ConvBlock(3, 5, double=True).double()
        x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
        plain = F.elu(layer.conv(F.interpolate(x, scale_factor=2, mode="nearest")))
        torch.testing.assert_close(layer(x), plain)
        assert layer.needs(Span(3, 6), 5) == (Span(1, 4), 2)

    def test_no_map_of_full_size_has_many_channels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(inpainting, "STRIP_PIXELS", 2**12)
        mixer = partial(PatchBasedStochasticAttention, patch_size=3, iterations=1)
        net = generator(mixer, 32, width=8, **PSAL)
        images, holes = pictures(256, 192, batch=1, dtype=torch.float32), torch.zeros(1, 1, 256, 192)
        holes[:, :, 100:140, 40:80] = 1
        with torch.no_grad(), count_allocations() as counted:
            net(images, holes)
        channel = 4 * 256 * 192
        assert counted.peak < 26 * channel  # inputs and results of both stages; a map of 2 * 8 channels would be more
        monkeypatch.setattr(inpainting, "STRIP_PIXELS", 2**20)
        with torch.no_grad(), count_allocations() as whole:
            net(images, holes)
        assert whole.peak > 1.2 * counted.peak

    def test_a_matching_too_large_is_refused_at_once(self) -> None:
        net = generator(partial(ContextualAttention, memory_mib=20 * 1024))
        holes = torch.zeros(1, 1, 2700, 3300)
        with torch.no_grad(), pytest.raises(RuntimeError) as raised:
            net(torch.zeros(1, 3, 2700, 3300), holes)
        message = str(raised.value)
        for part in ("2700x3300", "full, slot fine.8", "338x413", "145.2 GiB", "20.0 GiB", "attention=psal"):
            assert part in message
        with torch.no_grad():
            assert net.reasons_against(Size(2700, 3300))
            assert not net.reasons_against(Size(1024, 1024))
        fits = generator(PatchBasedStochasticAttention, **PSAL)
        assert not fits.reasons_against(Size(2700, 3300))

    @pytest.mark.slow
    def test_the_step_that_counts_at_full_size(self) -> None:
        """PSAL in the small map of a 2700x3300 picture, 128 channels, four holes of 128x128 pixels."""
        mixer = PatchBasedStochasticAttention()
        net = InpaintingGenerator(
            image_size=256,
            attention=SlotPolicy(lambda spec: mixer, exact_up_to=0, block=partial(ContextualBlock, **PSAL)),
        )
        block = net.attention_blocks["fine.64"]
        maps = torch.rand(1, 128, 676, 826, generator=torch.Generator().manual_seed(0))
        known = torch.ones(1, 1, 676, 826, dtype=torch.bool)
        for top, left in ((20, 20), (400, 50), (300, 790), (640, 400)):
            known[:, :, top : top + 32, left : left + 32] = False
        with torch.no_grad(), count_allocations() as counted:
            out = block(maps, maps, known)
        assert torch.equal(out[known.expand_as(out)], maps[known.expand_as(maps)])
        assert not bool((out == maps).all(1)[~known[:, 0]].any())
        assert counted.peak < 5 * maps.nbytes


class TestSlot:
    @pytest.mark.parametrize("options", [{}, PSAL])
    @pytest.mark.parametrize("name", BACKENDS)
    def test_any_backend(self, name: str, options: dict[str, Any]) -> None:
        with torch.device("meta"):
            large = generator(BACKENDS[name], 256, width=32, **options)
        assert set(large.attention_blocks) == {"fine.64"}
        net = generator(BACKENDS[name], 64, width=4, **options)
        images, holes = (make(64, 64, dtype=torch.float32) for make in (pictures, masks))
        net(images, holes).completed.square().mean().backward()
        for key, parameter in net.named_parameters():
            assert parameter.grad is not None, key
            assert bool(torch.isfinite(parameter.grad).all()), key
        assert bool(net.fine_generator.pmconv1.conv.weight.grad.any())

    def test_initial_weights_do_not_depend_on_the_backend(self) -> None:
        states = [generator(make, 64).state_dict() for make in BACKENDS.values()]
        for state in states[1:]:
            assert state.keys() == states[0].keys()
            assert all(torch.equal(state[key], states[0][key]) for key in state)

    def test_a_swap_keeps_the_weights(self) -> None:
        trained = louder(generator())
        swapped = generator(PatchBasedStochasticAttention, **PSAL)
        swapped.load_state_dict(trained.state_dict(), strict=True)
        images, holes = pictures(32, 32, dtype=torch.float32), masks(32, 32, dtype=torch.float32)
        with torch.no_grad():
            assert torch.equal(swapped(images, holes).coarse, trained(images, holes).coarse)

    def test_misfits_are_named(self) -> None:
        with pytest.raises(ValueError, match=r"slot fine\.6: rate=4 does not divide a map of 6x6"):
            generator(size=24, rate=4)

    def test_offsets_are_optional(self) -> None:
        net = generator()
        images, holes = pictures(37, 50, dtype=torch.float32), masks(37, 50, dtype=torch.float32)
        with torch.no_grad():
            plain, shown = net(images, holes), net(images, holes, offsets=True)
        assert plain.offsets is None
        assert torch.equal(plain.fine, shown.fine)
        assert shown.offsets is not None
        assert shown.offsets.shape == (2, 2, 5, 7)  # 40x56 over 8
        assert shown.offsets.dtype == torch.long

    def test_without_a_slot(self) -> None:
        net = InpaintingGenerator(image_size=32, width=4)
        assert net.attention_blocks == {}
        with torch.no_grad():
            made = net(pictures(20, 20, dtype=torch.float32), masks(20, 20, dtype=torch.float32), offsets=True)
        assert made.offsets is None


class TestDifferencesFromTheMean:
    def net(self, size: Any = 32, **options: Any) -> InpaintingGenerator:
        torch.manual_seed(0)
        policy = SlotPolicy(ContextualAttention, exact_up_to=0, block=partial(ContextualBlock, **options))
        return InpaintingGenerator(image_size=size, width=4, attention=policy, skip="mean").double()

    def test_begins_with_the_mean_of_what_is_known(self) -> None:
        images, holes = pictures(37, 30), masks(37, 30)
        made = self.net()(images, holes)
        for sample in range(2):
            known = images[sample][:, holes[sample, 0] == 0].mean(1)
            for picture in (made.coarse, made.fine):
                torch.testing.assert_close(picture[sample], known[:, None, None].expand(3, 37, 30))

    def test_is_the_network_of_the_differences(self) -> None:
        plain, differing = louder(generator(size=(32, 40)), 1.2).double(), self.net((32, 40))
        differing.load_state_dict(plain.state_dict(), strict=True)
        images, holes = pictures(32, 40) / 2, masks(32, 40)
        known = (holes == 0).double()
        mean = (images * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True)
        with torch.no_grad():
            made, wanted = differing(images, holes), plain(images - mean, holes)
            moved = differing(images + 0.2, holes)
        assert float(wanted.coarse.abs().max()) < 0.7  # nothing is clamped
        assert float(wanted.fine.std()) > 0.001
        torch.testing.assert_close(made.coarse, wanted.coarse + mean)
        torch.testing.assert_close(made.fine, wanted.fine + mean)
        torch.testing.assert_close(moved.fine, made.fine + 0.2)
        with torch.no_grad():
            bright = differing(images + 1.1, holes)
        torch.testing.assert_close(bright.coarse, (made.coarse + 1.1).clamp(max=1))

    def test_a_picture_that_is_all_hole(self) -> None:
        made = self.net()(pictures(32, 32), torch.ones(2, 1, 32, 32, dtype=torch.float64))
        assert bool(torch.isfinite(made.completed).all())

    def test_unknown_ways(self) -> None:
        with pytest.raises(ValueError, match=r"skip=median is unknown\. Valid here: none, mean"):
            InpaintingGenerator(image_size=32, width=4, skip="median")  # type: ignore[arg-type]


class TestCritics:
    @pytest.mark.parametrize("size", [(32, 32), (40, 17)])
    def test_equals_plain_convolutions(self, size: tuple[int, int]) -> None:
        torch.manual_seed(0)
        critic = InpaintingCritic(Size(*size), 4).double()
        state = critic.state_dict()
        x = images = pictures(*size)
        for layer in range(1, 5):
            x = F.conv2d(x, *(state[f"dis_conv_module.conv{layer}.conv.{what}"] for what in ("weight", "bias")), 2, 2)
            x = torch.maximum(x, 0.2 * x)
        wanted = x.flatten(1) @ state["linear.weight"].t() + state["linear.bias"]
        torch.testing.assert_close(critic(images), wanted)
        assert critic(images).shape == (2, 1)

    def test_twice_differentiable(self) -> None:
        torch.manual_seed(0)
        critic = InpaintingCritic(Size(5, 6), 1).double()
        images = pictures(5, 6, batch=1).requires_grad_()
        assert torch.autograd.gradgradcheck(critic, (images,))
        (gradient,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
        (gradient.norm() - 1).square().backward()
        assert bool(critic.dis_conv_module.conv1.conv.weight.grad.any())

    def test_sizes(self) -> None:
        critics = InpaintingCritics(image_size=(48, 64), hole=24, width=2)
        assert critics.whole(torch.zeros(3, 3, 48, 64)).shape == (3, 1)
        assert critics.local(torch.zeros(3, 3, 24, 24)).shape == (3, 1)
        with pytest.raises(ValueError, match=r"images must be \(batch, 3, 24, 24\); got \(3, 3, 48, 64\)"):
            critics.local(torch.zeros(3, 3, 48, 64))
