"""Guided colourisation of Patch-based Stochastic Attention (arXiv 2202.03163, section 4.3): 1,860 parameters.

The training script in the history of the authors' repository and the paper's text differ; both are options here:

- `skip`: the script concatenates the grey picture with what attention brings ("concat", default); the text has "a
  residual connection so that attention only has to provide colour", read literally an addition to the output ("add");
  the first version of the script had neither ("none").
- `output`: the script ends in a sigmoid (default), of which the text says nothing ("none").
- `activation` of the projections (`ReferenceBlock`): ReLU in the script, not mentioned in the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from saccade.attention.block import SlotBlock
from saccade.attention.psal import PatchBasedStochasticAttention
from saccade.attention.reference_block import ReferenceBlock
from saccade.attention.slots import SlotPolicy
from saccade.geometry import Size, SlotSpec

Skip = Literal["concat", "add", "none"]
Output = Literal["sigmoid", "none"]
SKIPS: tuple[Skip, ...] = get_args(Skip)
OUTPUTS: tuple[Output, ...] = get_args(Output)
SLOT = "reference"


class SlotBuilder(Protocol):
    """What fills attention slots: a SlotPolicy."""

    def build(self, specs: Sequence[SlotSpec]) -> Mapping[str, SlotBlock]: ...


def paper_attention() -> SlotPolicy:
    """PSAL-3 as the script has it: 7x7 patches, 10 iterations, temperature 1, in `ReferenceBlock`."""
    return SlotPolicy(
        lambda spec: PatchBasedStochasticAttention(spec, iterations=10), exact_up_to=0, block=ReferenceBlock
    )


class ColorizationNet(nn.Module):
    """Colour for a grey picture from a reference: 3x3 projections, attention, one 3x3 convolution.

    ::

        grey ------> query ----+
                               v
        reference -> key ---> attention --> [grey, att] --> 3x3 convolution --> sigmoid --> colours
                  -> value ----^

    The one attention slot is called "reference".

    Args:
        image_size: side, or (rows, cols), of the training images in pixels; 256 in the paper.
        width: channels of queries, keys and values.
        attention: the policy that fills the slot; its blocks must not need as many query channels as they give out
            (`ReferenceBlock`). None is the paper's PSAL-3.
        skip, output: see the module's docstring.

    Raises:
        ValueError: an unknown option, or a slot that the policy cannot fill.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        width: int = 16,
        attention: SlotBuilder | None = None,
        skip: Skip = "concat",
        output: Output = "sigmoid",
    ) -> None:
        super().__init__()
        for name, value, valid in (("skip", skip, SKIPS), ("output", output, OUTPUTS)):
            if value not in valid:
                raise ValueError(f"ColorizationNet: {name} is one of {', '.join(valid)}; got {value!r}.")
        if width < 1:
            raise ValueError(f"ColorizationNet: width is a number of channels, 1 or more; got {width}.")
        self.image_size = Size.of(image_size)
        self.width, self.skip, self.output = width, skip, output
        self.final = nn.Conv2d(width + (3 if skip == "concat" else 0), 3, 3, padding=1)
        # last, so that whatever the policy builds leaves the weights above as they are
        self.attention = (paper_attention() if attention is None else attention).build(self.slot_specs())

    def slot_specs(self) -> list[SlotSpec]:
        """The one attention slot."""
        return [SlotSpec(SLOT, 3, 3, self.width, self.image_size, self.image_size)]

    @property
    def attention_blocks(self) -> dict[str, SlotBlock]:
        """The block of the slot, by its name."""
        return {SLOT: self.attention[SLOT]}

    def forward(self, grey: Tensor, reference: Tensor) -> Tensor:
        """Colour a grey picture.

        Args:
            grey: (B, 3, Y, X), or (B, 1, Y, X), in [0, 1]: the mean of R, G and B.
            reference: (B, 3, Yr, Xr) in [0, 1], of any size.

        Returns:
            (B, 3, Y, X), in [0, 1] with output="sigmoid", else unbounded.

        Raises:
            ValueError: shapes that do not fit.
        """
        self._check(grey, reference)
        grey = grey.expand(-1, 3, -1, -1)
        brought = self.attention[SLOT](grey, reference)
        painted: Tensor = self.final(torch.cat((grey, brought), dim=1) if self.skip == "concat" else brought)
        if self.skip == "add":
            painted = painted + grey
        return torch.sigmoid(painted) if self.output == "sigmoid" else painted

    def _check(self, grey: Tensor, reference: Tensor) -> None:
        channels = [maps.shape[1] if maps.dim() == 4 else 0 for maps in (grey, reference)]
        if channels[0] not in (1, 3) or channels[1] != 3 or grey.shape[0] != reference.shape[0]:
            raise ValueError(
                "ColorizationNet: grey must be (B, 1 or 3, rows, cols) and reference (B, 3, rows, cols) of the same "
                f"batch; got {tuple(grey.shape)} and {tuple(reference.shape)}."
            )
