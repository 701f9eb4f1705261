"""Residual blocks of SAGAN (Zhang et al. 2019) as in the TF-GAN example that Your Local GAN (arXiv 1911.12287) uses.

Resampling is folded into the convolution beside it, which is the same function up to rounding and saves work and
memory: nearest doubling, then 3x3, is a transposed 4x4 convolution of stride 2; 3x3, then the mean of 2x2, is a 4x4
convolution of stride 2. Both cost 4/9 of the plain form and hold no map of the larger size in between. A 1x1
convolution changes places with either.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saccade.layers.batch_norm import BatchNorm
from saccade.layers.equalised import full_precision
from saccade.layers.resample import require_even
from saccade.layers.spectral import Form, SpectralConv2d


def blur_matrix(*, turned: bool) -> Tensor:
    """(9, 16): what each pixel of a 3x3 kernel adds to the kernel blurred by 2x2 ones; that turned round, if asked."""
    side = torch.eye(3, 4)
    side = side + side.roll(1, 1)
    both = torch.kron(side, side)
    return both.flip(1) if turned else both


def _blurred(conv: SpectralConv2d, blur: Tensor) -> Tensor:
    """The kernel of a 3x3 convolution, normalised and blurred: (O, I, 4, 4), in the dtype of its weight."""
    return conv.mixed(blur.to(full_precision(conv.weight.dtype))).to(conv.weight.dtype)


def double_conv(x: Tensor, conv: SpectralConv2d, blur: Tensor) -> Tensor:
    """Nearest doubling, then the 3x3 convolution with its size kept: (B, in, Y, X) -> (B, out, 2 Y, 2 X).

    `blur` is `blur_matrix(turned=True)`: a transposed convolution turns its kernel round.
    """
    kernel = _blurred(conv, blur).transpose(0, 1)  # (I, O, 4, 4)
    return F.conv_transpose2d(x, kernel, conv.bias, stride=2, padding=1)


def conv_halve(x: Tensor, conv: SpectralConv2d, blur: Tensor) -> Tensor:
    """The 3x3 convolution with its size kept, then the mean of 2x2 pixels: (B, in, Y, X) -> (B, out, Y / 2, X / 2).

    `blur` is `blur_matrix(turned=False)`.
    """
    return F.conv2d(x, _blurred(conv, blur) * 0.25, conv.bias, stride=2, padding=1)


class GeneratorBlock(nn.Module):
    """Norm, ReLU, double, 3x3, norm, ReLU, 3x3; on the shortcut double, 1x1.

    Args:
        in_channels, out_channels: channels of the input and output maps.
        classes: of the conditional batch norm; None for plain batch norm.
        form: of the spectral normalisation.
        eps, momentum: of the batch norm.
    """

    blur: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        classes: int | None,
        form: Form = "bounded",
        eps: float = 1e-3,
        momentum: float = 1e-3,
    ) -> None:
        super().__init__()
        self.norm0 = BatchNorm(in_channels, classes=classes, eps=eps, momentum=momentum)
        self.conv0 = SpectralConv2d(in_channels, out_channels, 3, padding=1, form=form)
        self.norm1 = BatchNorm(out_channels, classes=classes, eps=eps, momentum=momentum)
        self.conv1 = SpectralConv2d(out_channels, out_channels, 3, padding=1, form=form)
        self.shortcut = SpectralConv2d(in_channels, out_channels, 1, form=form)
        self.register_buffer("blur", blur_matrix(turned=True), persistent=False)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, in, Y, X), labels (B,) long or None -> (B, out, 2 Y, 2 X)."""
        y = F.relu(self.norm0(x, labels), inplace=True)
        y = double_conv(y, self.conv0, self.blur)
        y = self.conv1(F.relu(self.norm1(y, labels), inplace=True))
        joined: Tensor = y + F.interpolate(self.shortcut(x), scale_factor=2.0, mode="nearest")
        return joined


class FirstDiscriminatorBlock(nn.Module):
    """3x3, ReLU, 3x3, halve; on the shortcut halve, 1x1: no activation on the image itself.

    Args:
        in_channels, out_channels: channels of the input and output maps.
        form: of the spectral normalisation.
    """

    blur: Tensor

    def __init__(self, in_channels: int, out_channels: int, *, form: Form = "bounded") -> None:
        super().__init__()
        self.conv0 = SpectralConv2d(in_channels, out_channels, 3, padding=1, form=form)
        self.conv1 = SpectralConv2d(out_channels, out_channels, 3, padding=1, form=form)
        self.shortcut = SpectralConv2d(in_channels, out_channels, 1, form=form)
        self.register_buffer("blur", blur_matrix(turned=False), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, Y, X) -> (B, out, Y / 2, X / 2).

        Raises:
            ValueError: a side is odd.
        """
        require_even(x, "FirstDiscriminatorBlock")
        y = F.relu(self.conv0(x), inplace=True)
        y = conv_halve(y, self.conv1, self.blur)
        short: Tensor = self.shortcut(F.avg_pool2d(x, 2))
        return y + short


class DiscriminatorBlock(nn.Module):
    """ReLU, 3x3, ReLU, 3x3, halve; on the shortcut 1x1, halve.

    Args:
        in_channels, out_channels: channels of the input and output maps.
        down: halve the map. Without it, and where the width stays, the shortcut is the input itself.
        form: of the spectral normalisation.
    """

    blur: Tensor

    def __init__(self, in_channels: int, out_channels: int, *, down: bool = True, form: Form = "bounded") -> None:
        super().__init__()
        self.down = down
        self.conv0 = SpectralConv2d(in_channels, out_channels, 3, padding=1, form=form)
        self.conv1 = SpectralConv2d(out_channels, out_channels, 3, padding=1, form=form)
        changes = down or in_channels != out_channels
        self.shortcut = SpectralConv2d(in_channels, out_channels, 1, form=form) if changes else None
        if down:
            self.register_buffer("blur", blur_matrix(turned=False), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, Y, X) -> (B, out, Y / 2, X / 2), or (B, out, Y, X) without `down`.

        Raises:
            ValueError: a side is odd and has to be halved.
        """
        y = F.relu(self.conv0(F.relu(x)), inplace=True)  # the first not in place: the shortcut reads x as it came
        if self.down:
            require_even(x, "DiscriminatorBlock")
            y = conv_halve(y, self.conv1, self.blur)
            x = F.avg_pool2d(x, 2)
        else:
            y = self.conv1(y)
        return y + (x if self.shortcut is None else self.shortcut(x))


def initialise(module: nn.Module, how: str) -> None:
    """Draw weights of all convolutions, linear layers and embeddings of a network anew; biases become 0.

    Args:
        module: the network.
        how: "xavier", uniform as in TF-GAN's SAGAN, or "orthogonal".

    Raises:
        ValueError: an unknown way.
    """
    ways = {"xavier": nn.init.xavier_uniform_, "orthogonal": nn.init.orthogonal_}
    if how not in ways:
        raise ValueError(f"{type(module).__name__}: init is one of {', '.join(ways)}; got {how!r}.")
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, (nn.Conv2d, nn.Linear, nn.Embedding)):
                ways[how](part.weight)
                bias = getattr(part, "bias", None)
                if isinstance(bias, Tensor):
                    bias.zero_()
