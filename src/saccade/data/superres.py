"""Super-resolution as a Lightning data module: DIV2K to train on, Urban100, Set5, Set14 and B100 to score on.

Low resolutions are those of the archives where they are there, and MATLAB-equal bicubic ones otherwise
(`saccade.data.bicubic`), which is what the archives hold. Without files the module draws facades, and says so
(`banner`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import DataLoader, Subset

from saccade.data.editing_batches import ResolutionBatch, ResolutionSample, collate_resolutions
from saccade.data.images import Box, crop
from saccade.data.layout import Source
from saccade.data.standin.folder import MARKER
from saccade.data.stream_module import StreamModule, require_samples, spread
from saccade.data.superres_layout import OFFICIAL, SETS, SetFiles, find_set, resolve_source, set_folder
from saccade.data.superres_pairs import PatchStream, ResolutionPairs
from saccade.geometry import Size

Low = Literal["files", "made"]
Role = Literal["train", "val", "test"]
log = logging.getLogger(__name__)
PREVIEW = 48  # low-resolution pixels: side of the pictures of the sample grids


class SuperResolutionModule(StreamModule):
    """Loaders of pictures at two resolutions.

    Training batches come from an endless stream that starts at `set_position(images_seen)`; it needs
    `Trainer(use_distributed_sampler=False)`. The test and val loaders give whole pictures in order, shared out over
    ranks.

    Args:
        root: folder of this data set; the sets are looked for beside it, in the folder that holds it.
        cache: folder in which stand-ins are built and kept.
        scale: the factor, 2, 3 or 4.
        source: "auto", "files" or "standin" (`saccade.data.superres_layout.resolve_source`).
        train, test: sets to train on and to score: div2k, urban100, set5, set14, b100.
        val: set to score during training; None: as `test`.
        train_range, eval_range: first and last number of DIV2K's pictures to train on and to score.
        low: "files" takes low resolutions from the archives where they are there, "made" always makes them.
        patch: side of the training patches, in low-resolution pixels.
        augment: mirror and transpose training patches.
        batch_size: patches for one device. eval_batch_size: whole pictures; more than 1 needs pictures of one size.
        test_samples, val_samples: score only so many, spread over the set.
        workers: loader processes; never changes what is drawn.
        seed: of the training stream.
        pin_memory: page-locked batches, for CUDA.
        load_in_memory: keep the training pictures decoded; a stand-in's always are.
        standin_train, standin_test: pictures of the stand-ins. standin_size: their rows and columns.
        standin_seed: decides them.

    Raises:
        ValueError: an option out of range; files demanded and none there.
    """

    def __init__(
        self,
        *,
        root: Path | str,
        cache: Path | str,
        scale: int,
        source: Source = "auto",
        train: str = "div2k",
        test: str = "urban100",
        val: str | None = None,
        train_range: Sequence[int] = (1, 800),
        eval_range: Sequence[int] = (801, 810),
        low: Low = "files",
        patch: int = 48,
        augment: bool = True,
        batch_size: int = 16,
        eval_batch_size: int = 1,
        test_samples: int | None = None,
        val_samples: int | None = None,
        workers: int = 0,
        seed: int = 0,
        pin_memory: bool = False,
        load_in_memory: bool = False,
        standin_train: int = 120,
        standin_test: int = 12,
        standin_size: Sequence[int] = (192, 256),
        standin_seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, workers=workers, pin_memory=pin_memory)
        require_samples(patch=patch, test_samples=test_samples, val_samples=val_samples)
        self.data, self.cache = Path(root).parent, Path(cache)
        self.sets: dict[Role, str] = {"train": train, "test": test, "val": test if val is None else val}
        _check(self.sets, scale, low)
        self.scale, self.low, self.patch, self.augment = scale, low, patch, augment
        self.ranges = {"train": _range("train", train_range), "eval": _range("eval", eval_range)}
        self.resolved_source = resolve_source(self.data, source, list(self.sets.values()))
        self.samples = {"val": val_samples, "test": test_samples}
        self.seed = seed
        self.load_in_memory = load_in_memory or self.resolved_source == "standin"
        self.standin_train, self.standin_test = standin_train, standin_test
        self.standin_size, self.standin_seed = Size.of(tuple(standin_size)), standin_seed
        self._files: dict[Role, SetFiles] = {}
        self._pairs: dict[Role, ResolutionPairs] = {}

    @classmethod
    def resolve_auto(cls, options: Mapping[str, Any], runtime: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """What `source: auto` becomes on this machine, for the identity of a run: (changed options, notices).

        Args:
            options: the constructor's arguments as configured; wrong ones fail here, before anything is built.
            runtime: the runtime group; its `data_dir` holds the sets' folders.

        Raises:
            ValueError: see the class.
        """
        root = Path(str(runtime["data_dir"])).expanduser().resolve() / str(options.get("test", "urban100"))
        module = cls(root=root, cache=".", **options)
        return {"source": module.resolved_source}, [module.banner] if module.banner else []

    # ---------------------------------------------------------------- what is read

    def folder(self, name: str) -> Path:
        """The folder of a set that is read: the real one, or the stand-in's in the cache."""
        if self.resolved_source == "files":
            return set_folder(self.data, name) or self.data / name
        from saccade.data.standin.superres import VERSION  # loads OpenCV

        count = f"{self.standin_train}+{self.standin_test}" if name == "div2k" else str(self.standin_test)
        stem = f"superres-standin-v{VERSION}-{count}x{self.standin_size}-s{self.standin_seed}"
        return self.cache / stem / name

    @property
    def data_root(self) -> Path:
        """The folder of the test set."""
        return self.folder(self.sets["test"])

    @property
    def banner(self) -> str | None:
        """What must be said aloud about the data, or None for the real thing."""
        names = list(dict.fromkeys(self.sets.values()))
        official = " and ".join(OFFICIAL[name] for name in names)
        what = f"STAND-IN DATA: made-up facades instead of {official}"
        if self.resolved_source == "files":
            drawn = [name for name in names if (self.folder(name) / MARKER).is_file()]
            if not drawn:
                return None
            return f"{what}, in {self.folder(drawn[0])}. Scores do not compare with published ones."
        return (
            f"{what} ({self.standin_train:,} pictures to train, {self.standin_test:,} to test). Scores do not compare "
            f"with published ones. For the real thing put the files in {self.data / names[0]} (data/README.md), or set "
            f"data.source=files to see how."
        )

    def prepare_data(self) -> None:
        """Draw the stand-ins that are wanted and not there yet: whole or not at all, whatever other processes do."""
        if self.resolved_source != "standin":
            return
        from saccade.data.standin.superres import write_benchmark, write_div2k  # loads OpenCV

        for name in dict.fromkeys(self.sets.values()):
            folder = self.folder(name)
            if not folder.is_dir():
                log.info("Drawing a stand-in for %s, once, into %s ...", OFFICIAL[name], folder)
            drawn: dict[str, Any] = {"size": self.standin_size, "seed": self.standin_seed}
            if name == "div2k":
                write_div2k(folder, train=self.standin_train, valid=self.standin_test, **drawn)
            else:
                write_benchmark(folder, name, count=self.standin_test, **drawn)

    def setup(self, stage: str | None = None) -> None:
        """Find the pictures that a stage needs, drawing the stand-ins first where they are missing.

        Raises:
            ValueError: pictures are missing; shows the layout and how to get it.
        """
        self.prepare_data()
        roles: tuple[Role, ...] = ("test",) if stage in ("test", "predict") else ("train", "val", "test")
        for role in roles:
            notes = self.files(role).notes
            for note in notes if self.resolved_source == "files" else ():
                log.warning("%s", note)

    def files(self, role: Role) -> SetFiles:
        """The files of the set in one role.

        Raises:
            ValueError: they are missing.
        """
        if role not in self._files:
            name = self.sets[role]
            found = find_set(self.folder(name), name, self.scale, self._numbers(role))
            if self.low == "made":
                found = replace(found, pairs=tuple(replace(pair, low=None) for pair in found.pairs))
            self._files[role] = found
        return self._files[role]

    def _numbers(self, role: Role) -> tuple[int, int]:
        """First and last of DIV2K's pictures; a stand-in has as many as were asked for."""
        numbers = self.ranges["train" if role == "train" else "eval"]
        if self.resolved_source == "files":
            return numbers
        return (1, self.standin_train) if role == "train" else (801, 800 + self.standin_test)

    def pairs(self, role: Role) -> ResolutionPairs:
        """The pictures of the set in one role."""
        if role not in self._pairs:
            found = self.files(role)
            keep = self.load_in_memory and role == "train"
            self._pairs[role] = ResolutionPairs(found.pairs, self.scale, root=found.folder, load_in_memory=keep)
        return self._pairs[role]

    # ---------------------------------------------------------------- loaders

    def train_dataloader(self) -> DataLoader[ResolutionSample]:
        """Endless batches of patches from the stream's position."""
        return self.stream_loader(
            PatchStream(self.pairs("train"), self.seed, self.patch, self.augment), collate_resolutions
        )

    def val_dataloader(self) -> DataLoader[ResolutionSample]:
        """Whole pictures in order, or `val_samples` of them spread over the set."""
        return self._ordered("val")

    def test_dataloader(self) -> DataLoader[ResolutionSample]:
        """Whole pictures in order, or `test_samples` of them spread over the set."""
        return self._ordered("test")

    def _ordered(self, role: Literal["val", "test"]) -> DataLoader[ResolutionSample]:
        pairs = self.pairs(role)
        count = self.samples[role]
        chosen = Subset(pairs, spread(len(pairs) if count is None else count, len(pairs)))
        return self.ordered_loader(chosen, collate_resolutions)

    def preview(self, count: int) -> ResolutionBatch:
        """The middles of the same few test pictures every time, all of one size: for image grids.

        Raises:
            ValueError: count below 1.
        """
        if count < 1:
            raise ValueError(f"preview: count must be at least 1; got {count}")
        pairs = self.pairs("test")
        samples = [pairs[index] for index in spread(count, len(pairs))]
        rows = min(PREVIEW, *(sample.low.shape[-2] for sample in samples))
        cols = min(PREVIEW, *(sample.low.shape[-1] for sample in samples))
        return collate_resolutions([_middle(sample, Size(rows, cols), self.scale) for sample in samples])


def _middle(sample: ResolutionSample, size: Size, scale: int) -> ResolutionSample:
    top, left = (sample.low.shape[-2] - size.rows) // 2, (sample.low.shape[-1] - size.cols) // 2
    box = Box(top, left, size.rows, size.cols)
    return ResolutionSample(crop(sample.low, box), crop(sample.high, Box(*(scale * side for side in box))), sample.key)


def _range(which: str, given: Sequence[int]) -> tuple[int, int]:
    if len(given) != 2 or not 1 <= given[0] <= given[1]:
        raise ValueError(
            f"data.module.{which}_range: first and last number of DIV2K's pictures, as [1, 800]; got {list(given)}"
        )
    return given[0], given[1]


def _check(sets: Mapping[Role, str], scale: int, low: Low) -> None:
    for role, name in sets.items():
        if name not in SETS:
            raise ValueError(f"data.module.{role}={name} is unknown; valid: {', '.join(SETS)}")
    if scale not in (2, 3, 4):
        raise ValueError(f"data.module.scale={scale} is unknown; valid: 2, 3, 4")
    if low not in ("files", "made"):
        raise ValueError(f"data.module.low={low} is unknown; valid: files, made")
