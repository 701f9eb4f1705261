"""Statistics of a real set, computed once and cached under a key that holds everything they depend on."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saccade.geometry import Size
from saccade.metrics.features import FeatureExtractor
from saccade.metrics.frechet import FeatureMoments

_FORMAT = 1


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
    key = _key(extractor, reference)
    path = (
        None
        if cache_dir is None
        else cache_dir / f"{extractor.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    )
    cached = None if path is None else _read(path, key)
    if cached is not None:
        return cached
    moments = FeatureMoments(extractor.channels)
    for batch in images():
        size = str(Size(*batch.shape[2:]))
        if size != reference.size:
            raise ValueError(
                f"{extractor.name}: the reference set {reference.name} is {reference.size}, an image {size}"
            )
        moments.update(extractor(batch))
    if moments.count != reference.count:
        raise ValueError(
            f"{extractor.name}: the reference set {reference.name} has {reference.count} images; {moments.count} came"
        )
    if path is not None:
        _write(path, key, moments)
    return moments


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
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: Path, key: str, moments: FeatureMoments) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(
                file,
                key=np.array(key),
                mean=moments.mean.cpu().numpy(),
                cov=moments.covariance.cpu().numpy(),
                count=np.array(moments.count),
            )
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
