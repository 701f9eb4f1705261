"""Statistics of a real set, computed once and cached under a key that holds everything they depend on."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saccade.files import replacing
from saccade.geometry import Size
from saccade.metrics.features import FeatureExtractor
from saccade.metrics.frechet import FeatureMoments, several_processes

_FORMAT = 1
_TORN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class ReferenceSet:
    """What a real set is.

    Attributes:
        name: ``train``, ``test``: goes into the metric's name.
        files_sha256: ``hash_files`` of its images.
        count: number of images.
        size: their size as given to the extractor, "256x176".
        padding: what was done to reach that size: ``none``, ``crop 176``, ``white``.
    """

    name: str
    files_sha256: str
    count: int
    size: str
    padding: str = "none"

    @classmethod
    def of_files(cls, name: str, files: Sequence[Path], root: Path, size: Size, padding: str = "none") -> ReferenceSet:
        """Describe image files below a root folder."""
        return cls(name, hash_files(files, root), len(files), str(size), padding)


def hash_files(files: Iterable[Path], root: Path) -> str:
    """SHA-256 over names (relative to root) and contents, whatever the order they come in."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def reference_moments(
    extractor: FeatureExtractor,
    reference: ReferenceSet,
    images: Callable[[], Iterable[Tensor]],
    cache_dir: Path | None,
) -> FeatureMoments:
    """Statistics of a real set: from the cache if its key is there, else computed and written.

    Args:
        extractor: whose features.
        reference: what the set is; the cache trusts it.
        images: called on a miss; gives batches of (B, 3, Y, X) uint8.
        cache_dir: where statistics are kept; None keeps nothing.

    Raises:
        ValueError: ``images`` gave another number of images, or another size, than ``reference`` says.
    """
    key, path = _place(extractor, reference, cache_dir)
    cached = None if path is None else _read(path, key)
    if cached is not None:
        return cached
    moments = FeatureMoments(extractor.channels)
    for _, batch in _checked(extractor, reference, images()):
        moments.update(extractor(batch))
    if path is not None:
        _write(path, key, moments)
    return moments


@dataclass(frozen=True)
class RealStatistics:
    """What scores of generated images need of a real set.

    Attributes:
        moments: of the features of all its images.
        features: (kept, channels) float32 on the CPU: those of images spread evenly over the set.
    """

    moments: FeatureMoments
    features: Tensor


def real_statistics(
    extractor: FeatureExtractor,
    reference: ReferenceSet,
    images: Callable[[], Iterable[Tensor]],
    cache_dir: Path | None,
    *,
    keep: int = 0,
    device: torch.device | str = "cpu",
) -> RealStatistics:
    """Moments and some features of a real set in one pass: from the cache if both are there, else computed and written.

    Under torch.distributed every process must call it; each computes the features of its share of the batches, and one
    of them writes.

    Args:
        extractor: whose features.
        reference: what the set is; the cache trusts it.
        images: called on a miss; gives batches of (B, 3, Y, X) uint8 on any device, the same in every process.
        cache_dir: where statistics are kept; None keeps nothing.
        keep: number of feature vectors, at most that of images.
        device: where features are computed.

    Raises:
        ValueError: `images` gave another number of images, or another size, than `reference` says.
    """
    keep = min(keep, reference.count)
    key, path = _place(extractor, reference, cache_dir)
    features_path = None if path is None else path.with_name(f"{path.stem}-features{keep}.npz")
    moments = None if path is None else _read(path, key)
    features = None if features_path is None or not keep else _read_features(features_path, key)
    features = torch.zeros(0, extractor.channels) if not keep else features
    hit = _everywhere(moments is not None and features is not None, device)
    if hit and moments is not None and features is not None:
        return RealStatistics(moments, features)
    ours, share = FeatureMoments(extractor.channels, device), torch.zeros(keep, extractor.channels, device=device)
    wanted = torch.arange(keep) * reference.count // max(keep, 1)
    for index, (first, batch) in enumerate(_checked(extractor, reference, images())):
        if index % _processes() != _rank():
            continue
        found = extractor(batch.to(device))
        ours.update(found)
        slots = ((wanted >= first) & (wanted < first + len(batch))).nonzero().flatten()
        share[slots.to(device)] = found[(wanted[slots] - first).to(device)]
    moments = ours.over_processes()
    moments = FeatureMoments.of(moments.mean, moments.covariance, moments.count)  # as read back, to the last bit
    if several_processes():
        torch.distributed.all_reduce(share)
    if path is not None and features_path is not None and _rank() == 0:
        _write(path, key, moments)
        if keep:
            _write_arrays(features_path, key=np.array(key), features=share.cpu().numpy())
    return RealStatistics(moments, share.cpu())


def _place(extractor: FeatureExtractor, reference: ReferenceSet, cache_dir: Path | None) -> tuple[str, Path | None]:
    key = _key(extractor, reference)
    if cache_dir is None:
        return key, None
    return key, cache_dir / f"{extractor.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"


def _checked(
    extractor: FeatureExtractor, reference: ReferenceSet, batches: Iterable[Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """Batches with the number of images before each, refusing a set that is not what the reference says."""
    count = 0
    for batch in batches:
        size = str(Size(*batch.shape[2:]))
        if size != reference.size:
            raise ValueError(
                f"{extractor.name}: the reference set {reference.name} is {reference.size}, an image {size}"
            )
        yield count, batch
        count += len(batch)
    if count != reference.count:
        raise ValueError(
            f"{extractor.name}: the reference set {reference.name} has {reference.count} images; {count} came"
        )


def _processes() -> int:
    return torch.distributed.get_world_size() if several_processes() else 1


def _rank() -> int:
    return torch.distributed.get_rank() if several_processes() else 0


def _everywhere(here: bool, device: torch.device | str) -> bool:
    """Whether it is so in every process, so that none waits in a pass over the set that the others skip."""
    if not several_processes():
        return here
    flag = torch.tensor([int(here)], device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
    return bool(flag.item())


def _key(extractor: FeatureExtractor, reference: ReferenceSet) -> str:
    return json.dumps(
        {
            "format": _FORMAT,
            "extractor": extractor.name,
            "weights": extractor.weights_sha256,
            "resize": extractor.resize,
            "reference": asdict(reference),
        },
        sort_keys=True,
    )


def _read(path: Path, key: str) -> FeatureMoments | None:
    # Anything that is not a complete cache file of this very key is a miss.
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) != key:
                return None
            return FeatureMoments.of(torch.from_numpy(file["mean"]), torch.from_numpy(file["cov"]), int(file["count"]))
    except _TORN:
        return None


def _read_features(path: Path, key: str) -> Tensor | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            return torch.from_numpy(file["features"]) if str(file["key"]) == key else None
    except _TORN:
        return None


def _write(path: Path, key: str, moments: FeatureMoments) -> None:
    _write_arrays(
        path,
        key=np.array(key),
        mean=moments.mean.cpu().numpy(),
        cov=moments.covariance.cpu().numpy(),
        count=np.array(moments.count),
    )


def _write_arrays(path: Path, **arrays: Any) -> None:
    with replacing(path) as file:
        np.savez(file, **arrays)
