"""Pretrained weight files: which exist, where they are looked for, how they are checked, and what to do offline.

A file is looked for in the configured folder (config key ``runtime.weights_dir``), in ``$SACCADE_WEIGHTS`` and in torch
hub's cache (``$TORCH_HOME/hub/checkpoints``), and used only if its SHA-256 starts with the prefix that its publisher
put into its name. It is then read with ``weights_only=True``, which refuses a file that carries code.
Set ``SACCADE_OFFLINE=1`` to forbid downloads.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

Mode = Literal["auto", "pretrained", "random"]
ResolvedMode = Literal["pretrained", "random"]

PROBE_SECONDS = 4.0
"""Longest time to find out whether a download host answers."""
STALL_SECONDS = 20.0
"""A download that receives nothing for this long is given up."""


class WeightsError(RuntimeError):
    """A weight file is missing, damaged, or not what its name says."""


@dataclass(frozen=True)
class WeightFile:
    """A published weight file; ``megabytes`` are 10^6 bytes, ``aliases`` other names of the same bytes."""

    name: str
    file: str
    url: str
    megabytes: int
    sha256_prefix: str
    what: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoundWeights:
    """A weight file on this machine whose checksum is right."""

    name: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class Resolution:
    """What ``auto`` became, and, when it became ``random``, a notice to show and to record."""

    mode: ResolvedMode
    notice: str | None
    files: tuple[FoundWeights, ...]


_TORCHVISION = "https://download.pytorch.org/models/"
_FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"

KNOWN: dict[str, WeightFile] = {
    weight.name: weight
    for weight in (
        WeightFile(
            "vgg19",
            "vgg19-dcbb9e9d.pth",
            _TORCHVISION + "vgg19-dcbb9e9d.pth",
            575,
            "dcbb9e9d",
            "torchvision VGG-19, ImageNet: perceptual loss",
        ),
        WeightFile(
            "vgg16",
            "vgg16-397923af.pth",
            _TORCHVISION + "vgg16-397923af.pth",
            553,
            "397923af",
            "torchvision VGG-16, ImageNet: backbone of lpips_vgg",
        ),
        WeightFile(
            "alexnet",
            "alexnet-owt-7be5be79.pth",
            _TORCHVISION + "alexnet-owt-7be5be79.pth",
            244,
            "7be5be79",
            "torchvision AlexNet, ImageNet: backbone of lpips_alex",
        ),
        WeightFile(
            "inception_torchvision",
            "inception_v3_google-0cc3c7bd.pth",
            _TORCHVISION + "inception_v3_google-0cc3c7bd.pth",
            109,
            "0cc3c7bd",
            "torchvision Inception v3, ImageNet: FID of the GFLA family",
        ),
        WeightFile(
            "inception_tf",
            "weights-inception-2015-12-05-6726825d.pth",
            _FIDELITY + "weights-inception-2015-12-05-6726825d.pth",
            96,
            "6726825d",
            "TensorFlow's FID Inception (2015-12-05), converted: fid_tf_inception and fid_pytorch_fid",
            aliases=("pt_inception-2015-12-05-6726825d.pth",),
        ),
    )
}


def known(name: str) -> WeightFile:
    """The table entry of a name.

    Raises:
        ValueError: the name is not in the table.
    """
    if name not in KNOWN:
        raise ValueError(f"weights: unknown name {name!r}; known: {', '.join(KNOWN)}")
    return KNOWN[name]


def places(folder: str | os.PathLike[str] | None = None) -> list[Path]:
    """The folders that are searched, in order, without repeats. The first one is where a download is written."""
    candidates = [folder, os.environ.get("SACCADE_WEIGHTS"), Path(torch.hub.get_dir()) / "checkpoints"]
    return list(dict.fromkeys(Path(place).expanduser() for place in candidates if place))


def locate(name: str, folder: str | os.PathLike[str] | None = None) -> FoundWeights | None:
    """Find a weight file whose checksum is right, or None. Touches no network.

    Raises:
        ValueError: the name is not in the table.
    """
    return _search(known(name), folder)[0]


def find(name: str, folder: str | os.PathLike[str] | None = None, *, download: bool = True) -> FoundWeights:
    """Find a weight file on this machine, or download it if that is allowed and a host answers.

    Args:
        name: a name of ``KNOWN``.
        folder: the configured folder, searched first.
        download: False forbids the network, as ``SACCADE_OFFLINE=1`` does.

    Raises:
        ValueError: the name is not in the table.
        WeightsError: no good file here and none could be fetched; the message names the file, its size, the places
            looked at, the config key and the command that fetches it.
    """
    weight = known(name)
    found, damaged = _search(weight, folder)
    if found is not None:
        return found
    why_not = _download(weight, places(folder)[0]) if download else "downloads are switched off"
    found, _ = _search(weight, folder)
    if found is None:
        raise WeightsError(_missing_message(weight, folder, damaged, why_not or "the downloaded file disappeared"))
    return found


def load_state_dict(
    name: str, folder: str | os.PathLike[str] | None = None, *, download: bool = True
) -> tuple[dict[str, Tensor], FoundWeights]:
    """Read a weight file as tensors on the CPU, after its checksum; also tell which file it was.

    Raises:
        ValueError: the name is not in the table.
        WeightsError: as ``find``, or the file is not a plain dict of tensors.
    """
    found = find(name, folder, download=download)
    try:
        state = torch.load(found.path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise WeightsError(f"weights: {found.path} cannot be read as plain tensors ({error})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"weights: {found.path} holds a {type(state).__name__}, not a dict of tensors")
    return state, found


def resolve_mode(
    mode: str, names: Iterable[str], folder: str | os.PathLike[str] | None = None, *, download: bool = True
) -> Resolution:
    """Turn ``auto`` into ``pretrained`` or ``random``, so that a run's identity is known before it starts.

    ``pretrained`` and ``auto`` fetch what is missing. ``auto`` falls back to ``random``, for all names together, as
    soon as one file is missing and its host does not answer within ``PROBE_SECONDS``; the notice says so.

    Raises:
        ValueError: unknown mode or name.
        WeightsError: mode ``pretrained`` and a file is missing.
    """
    wanted = [known(name).name for name in names]
    if mode not in ("auto", "pretrained", "random"):
        raise ValueError(f"weights: mode is {mode!r}; valid: auto, pretrained, random")
    if mode == "random":
        return Resolution("random", _random_notice(wanted, "they were asked for"), ())
    found: list[FoundWeights] = []
    try:
        for name in wanted:
            found.append(find(name, folder, download=download))
    except WeightsError as error:
        if mode == "pretrained":
            raise
        return Resolution("random", _random_notice(wanted, str(error)), ())
    return Resolution("pretrained", None, tuple(found))


def status(folder: str | os.PathLike[str] | None = None) -> list[dict[str, str | int]]:
    """One JSON-ready row per known file: is it here, and where. For ``doctor`` and ``fetch_weights --list``."""
    rows: list[dict[str, str | int]] = []
    for weight in KNOWN.values():
        found, damaged = _search(weight, folder)
        state = "found" if found else "damaged" if damaged else "missing"
        where = str(found.path) if found else "; ".join(damaged)
        row: dict[str, str | int] = {"name": weight.name, "file": weight.file, "megabytes": weight.megabytes}
        rows.append(row | {"state": state, "where": where, "what": weight.what, "url": weight.url})
    return rows


def _search(weight: WeightFile, folder: str | os.PathLike[str] | None) -> tuple[FoundWeights | None, list[str]]:
    damaged: list[str] = []
    for place in places(folder):
        for file in (weight.file, *weight.aliases):
            path = place / file
            if not path.is_file():
                continue
            entry = path.stat()
            digest = _sha256(str(path), entry.st_size, entry.st_mtime_ns)
            if digest.startswith(weight.sha256_prefix):
                return FoundWeights(weight.name, path, digest), damaged
            damaged.append(f"{path} has SHA-256 {digest[:8]}..., not {weight.sha256_prefix}...")
    return None, damaged


@functools.lru_cache(maxsize=64)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    # size and mtime_ns are there to make the cache forget a file that was replaced
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


_hosts_that_answer: dict[str, bool] = {}


def _answers(url: str) -> bool:
    # Name look-up knows no time limit, so it runs in a thread that we stop waiting for. One answer a host a process.
    host = urllib.parse.urlsplit(url).netloc
    if host not in _hosts_that_answer:
        outcome: list[bool] = []

        def ask() -> None:
            try:
                request = urllib.request.Request(url, method="HEAD")
                with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
                    outcome.append(True)
            except (OSError, ValueError):
                outcome.append(False)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(PROBE_SECONDS)
        _hosts_that_answer[host] = bool(outcome and outcome[0])
    return _hosts_that_answer[host]


def _download(weight: WeightFile, folder: Path) -> str | None:
    # Returns why there is no file, or None when there is one.
    if os.environ.get("SACCADE_OFFLINE", "") not in ("", "0"):
        return "downloads are switched off by SACCADE_OFFLINE"
    host = urllib.parse.urlsplit(weight.url).netloc
    if not _answers(weight.url):
        return f"{host} does not answer"
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)
    started = time.monotonic()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(weight.url, str(folder / weight.file), hash_prefix=weight.sha256_prefix)
    except (OSError, RuntimeError, urllib.error.URLError) as error:
        return f"download from {host} into {folder} failed after {time.monotonic() - started:.0f} s: {error}"
    finally:
        socket.setdefaulttimeout(before)
    return None


def _missing_message(
    weight: WeightFile, folder: str | os.PathLike[str] | None, damaged: Sequence[str], why_not: str
) -> str:
    looked = ", ".join(str(place) for place in places(folder))
    bad = f" Not used: {'; '.join(damaged)}." if damaged else ""
    return (
        f"weights: {weight.file} ({weight.megabytes} MB; {weight.what}) is not on this machine and was not downloaded: "
        f"{why_not}. Looked in: {looked}.{bad} Put the file into one of these folders, or set runtime.weights_dir to "
        f"the folder that has it, or run `python scripts/fetch_weights.py {weight.name}` where there is a network. "
        f"Without it only random features are possible, which are flagged as such."
    )


def _random_notice(names: Sequence[str], reason: str) -> str:
    return (
        f"RANDOM FEATURES in place of pretrained {', '.join(names)}: losses and metrics that use them are not "
        f"comparable with published numbers. Reason: {reason}"
    )


def check_mode(who: str, mode: str) -> ResolvedMode:
    """Accept a resolved mode only.

    Raises:
        ValueError: anything but ``pretrained`` or ``random``; ``auto`` must go through ``resolve_mode`` first.
    """
    if mode not in ("pretrained", "random"):
        raise ValueError(f"{who}: weights={mode!r}; valid here: pretrained, random (resolve_mode turns auto into one)")
    return cast(ResolvedMode, mode)
