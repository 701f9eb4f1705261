"""The attentions that reconstruct a frame: those of PSAL's Tables 2 and 3 by name, and any backend with its options.

Source: "Patch-Based Stochastic Attention" (arXiv 2202.03163), section 4.2, Tables 2 and 3. Patches of 7 x 7 RGB pixels
are compared by -|q - k|^2 / T. The paper tells neither T nor the number of iterations; the defaults, 1 and 10, are
those of its released demonstration. "Full" keeps only every so many-th key: 1, 2, 5, 10 at 64, 128, 256, 512.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import OmegaConf

from saccade.attention import SpatialAttention
from saccade.geometry import AttentionShape, Size
from saccade.run.config import CONF

CHANNELS = 3
# What yields the paper's strides 1, 2, 5, 10 at 64, 128, 256, 512: keys along a side, at least.
_KEYS_ALONG_SIDE = 51
_MANY = re.compile(r"(psal|exact|aggregate)([1-9]\d{0,3})")
FIXED = ("full", "local", "linear", "performer", "reformer", "aggregate", "exact", "exact_aggregate")


@dataclass(frozen=True)
class Settings:
    """What the named methods share.

    Attributes:
        patch_size: side of the compared patches, odd.
        iterations: rounds of PSAL's search.
        stride: of Full's keys; None is the paper's for the size.
        window: Local's side, key pixels.
        seed: of searches, hashes and random features.
    """

    patch_size: int = 7
    iterations: int = 10
    stride: int | None = None
    window: int = 50
    seed: int = 0


@dataclass(frozen=True)
class Method:
    """One attention with its options.

    Attributes:
        name: as it was asked for, unique in a study.
        attention: the backend.
        options: of the backend; `scale` is left to the temperature where `tempered`.
        tempered: whether the score is -|q - k|^2 / T.
        paper_stride: whether the stride of the keys depends on the map as in the paper.
        sizes: the only sizes (sides in pixels) to run it at; empty for all.
    """

    name: str
    attention: str
    options: Mapping[str, Any] = field(default_factory=dict)
    tempered: bool = False
    paper_stride: bool = False
    sizes: tuple[int, ...] = ()

    def settled(self, keys: Size, temperature: float) -> dict[str, Any]:
        """The options for a key map of this size at this temperature."""
        settled = dict(self.options)
        if self.tempered:
            settled["scale"] = 1.0 / temperature
        if self.paper_stride:
            settled["key_stride"] = paper_stride(keys)
        return settled

    def build(self, keys: Size, temperature: float) -> SpatialAttention:
        """The attention for a key map of this size.

        Raises:
            ValueError: an option that the backend refuses.
        """
        return make(self.attention, self.settled(keys, temperature))

    def label(self, keys: Size) -> str:
        """What tables call it."""
        found = _MANY.fullmatch(self.name)
        if self.attention == "full" and self.name == "full":
            return f"Full (stride {self.settled(keys, 1.0)['key_stride']})"
        if found and found[1] != "aggregate":
            return f"PSAL {found[2]}" if found[1] == "psal" else f"exact {found[2]}-NN"
        if found:
            return f"PSAL {found[2]} Aggreg."
        fixed = {"aggregate": "PSAL Aggreg.", "exact": "exact 1-NN", "exact_aggregate": "exact 1-NN Aggreg."}
        return fixed.get(self.name, self.name.capitalize() if self.name in FIXED else self.name)


def paper_stride(keys: Size) -> int:
    """Every how many-th key the paper's Full keeps: 1, 2, 5, 10 at 64, 128, 256, 512; others follow suit."""
    return max(1, math.isqrt(keys.area) // _KEYS_ALONG_SIDE)


def method_named(text: str, settings: Settings | None = None) -> Method:
    """The method of a name: one of `FIXED`, psal<K>, exact<K> or aggregate<K>; `name@64+128` only at these sizes.

    Raises:
        ValueError: no such name, or sizes that are no whole numbers.
    """
    name, sign, sides = text.partition("@")
    chosen = settings or Settings()
    if sign and not re.fullmatch(r"[1-9]\d{0,4}(\+[1-9]\d{0,4})*", sides):
        raise ValueError(f"methods={text}: after @ come the only sizes to run at, with + between, as in {name}@64+128")
    attention, options, tempered = _named(name, chosen)
    return Method(
        name,
        attention,
        options,
        tempered,
        paper_stride=name == "full" and chosen.stride is None,
        sizes=tuple(map(int, sides.split("+"))) if sign else (),
    )


def _named(name: str, chosen: Settings) -> tuple[str, dict[str, Any], bool]:
    """Backend, options, and whether the temperature applies."""
    patch: dict[str, Any] = {"patch_size": chosen.patch_size}
    l2 = {**patch, "score": "l2"}
    if name == "full":
        return "full", {**l2, "keys": "inside"} | ({} if chosen.stride is None else {"key_stride": chosen.stride}), True
    if name == "local":
        return "local", {**l2, "window": chosen.window}, True
    if name == "linear":
        return "linear", patch, False
    if name in ("performer", "reformer"):
        return name, {**patch, "seed": chosen.seed}, False
    kind, count = {
        "aggregate": ("aggregate", 1),
        "exact": ("exact", 1),
        "exact_aggregate": ("exact_aggregate", 1),
    }.get(name, ("", 0))
    found = _MANY.fullmatch(name)
    if found:
        kind, count = found[1], int(found[2])
    if not kind:
        near = difflib.get_close_matches(name, (*FIXED, "psal1", "psal3", "exact3"), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"methods={name}: no method is called that{hint} Valid here: {', '.join(FIXED)}, psal<K>, exact<K>, "
            f"aggregate<K> (as in psal3), and any backend by attention=<name> with its options."
        )
    search = {"search": "exact"} if kind.startswith("exact") else {"iterations": chosen.iterations}
    readout = {"readout": "aggregate"} if kind.endswith("aggregate") else {}
    return "psal", {**l2, "matches": count, "seed": chosen.seed, **search, **readout}, True


def method_of_backend(attention: str, given: Mapping[str, str], settings: Settings | None = None) -> Method:
    """Any backend as a method: its own defaults, l2 between patches where it knows them, and the options given.

    Args:
        attention: a file of conf/attention.
        given: options as text, `matches` -> "7".

    Raises:
        ValueError: no such backend, or an option that it does not have.
    """
    chosen = settings or Settings()
    schema = backend_options(attention)
    unknown = [key for key in given if key not in schema]
    if unknown:
        near = difflib.get_close_matches(unknown[0], schema, n=1)
        hint = f" (did you mean {near[0]}=?)" if near else ""
        raise ValueError(
            f"{unknown[0]}= is neither an option of the command nor of attention={attention}{hint}. Valid there: "
            f"{', '.join(schema)}."
        )
    ours = {"patch_size": chosen.patch_size, "score": "l2", "iterations": chosen.iterations, "seed": chosen.seed}
    options = {**schema, **{key: value for key, value in ours.items() if key in schema}}
    options |= {key: _value(text) for key, text in given.items()}
    tempered = "scale" in schema and "scale" not in given and options.get("score") == "l2"
    told = " ".join(f"{key}={text}" for key, text in given.items())
    return Method(f"{attention} {told}".strip(), attention, options, tempered)


def backend_options(attention: str) -> dict[str, Any]:
    """The options of a backend and their defaults, from its file in conf/attention.

    Raises:
        ValueError: no such backend.
    """
    mixer = _mixer(attention)
    return {key: value for key, value in mixer.items() if not key.startswith("_")}


def make(attention: str, options: Mapping[str, Any]) -> SpatialAttention:
    """Construct a backend outside any model.

    Raises:
        ValueError: no such backend, or a value that it refuses.
    """
    from hydra.utils import get_class

    return _checked(get_class(_mixer(attention)["_target_"])(**options))


def _checked(made: object) -> SpatialAttention:
    if not isinstance(made, SpatialAttention):
        raise ValueError(f"reconstruct: a backend is a SpatialAttention; got {type(made).__name__}")
    return made.eval()


def _mixer(attention: str) -> dict[str, Any]:
    known = {file.stem: file for file in sorted((CONF / "attention").glob("*.yaml")) if file.stem != "none"}
    if attention not in known:
        near = difflib.get_close_matches(attention, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"attention={attention} is unknown{hint} Valid here: {', '.join(known)}.")
    mixer: Any = OmegaConf.to_container(OmegaConf.load(known[attention]), resolve=True)
    found: dict[str, Any] = mixer["mixer"]
    return found


def _value(text: str) -> Any:
    value = OmegaConf.from_dotlist([f"value={text}"])["value"]
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def refusals(methods: Sequence[Method], keys: Size, queries: Size) -> list[str]:
    """Why methods cannot serve maps of these sizes; empty when all can."""
    found = []
    for method in methods:
        try:
            mixer = method.build(keys, 1.0)
        except ValueError as error:
            found.append(f"{method.name}: {error}")
            continue
        if CHANNELS % mixer.heads:
            found.append(f"{method.name}: {mixer.head_reason(CHANNELS)}")
            continue
        shape = AttentionShape(1, mixer.heads, CHANNELS // mixer.heads, CHANNELS // mixer.heads, queries, keys)
        found += [f"{method.name} at {queries}: {reason}" for reason in mixer.reasons_against(shape)]
    return found


@torch.no_grad()
def reconstruct(mixer: SpatialAttention, target: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The target from pixels of the reference: Q its patches, K the reference's patches, V the reference's pixels.

    Args:
        target: (B, 3, Y, X) in [0, 1].
        reference: (B, 3, Y', X') in [0, 1].

    Returns:
        (B, 3, Y, X), not clamped.
    """
    out: torch.Tensor = mixer(target, reference, reference)
    return out
