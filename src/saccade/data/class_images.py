"""Pictures of classes (ImageNet, CIFAR-10, any folder of class folders) as a Lightning data module for generators.

Pictures come from a pack (`saccade.data.pack`), so training decodes nothing. ImageNet may not be redistributed, so
without files the module draws a stand-in in ImageNet's layout, packs it in the same way, and says so (`banner`).
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from saccade.data.batches import ClassBatch, ClassSample, collate_class
from saccade.data.class_layout import ClassSplit
from saccade.data.class_source import (
    Layout,
    class_ids,
    has_changed,
    list_pictures,
    pack_command,
    pack_pictures,
    resolve_source,
)
from saccade.data.imagenet import TRAIN_TAR
from saccade.data.layout import Source
from saccade.data.pack import MANIFEST, PackOptions
from saccade.data.packed import PackedImages, pack_folder, read_manifest
from saccade.data.sampler import StreamSampler, index_at, rng_at
from saccade.data.square import Exif
from saccade.data.standin.folder import MARKER
from saccade.geometry import Size
from saccade.metrics.reference import ReferenceSet

PACK_BY_COMMAND = 60_000  # pictures: from more on, packing is left to a command that shows its progress
_MANY = 2000  # pictures: from here on several processes decode
log = logging.getLogger(__name__)


class ClassStream(Dataset[ClassSample]):
    """A data set without end: position p holds a picture that depends on (seed, p) alone, not on workers or history.

    Args:
        images: the pictures.
        seed: of the order.
        flip: mirror half of the draws.
    """

    def __init__(self, images: PackedImages, seed: int, flip: bool = False) -> None:
        self.images, self.seed, self.flip = images, seed, flip

    def __getitem__(self, position: int) -> ClassSample:
        sample = self.images[index_at(self.seed, position, len(self.images))]
        if self.flip and rng_at(self.seed, position).random() < 0.5:
            sample.image = sample.image.flip(-1)
        return sample


class ClassImagesModule(LightningDataModule):
    """Loaders over packed pictures with classes, or over the stand-in.

    Training batches come from an endless stream that starts at `set_position(images_seen)`; it needs
    `Trainer(use_distributed_sampler=False)`. Evaluation of a generator needs no pictures but numbers, of which it makes
    latents and labels: the test and val loaders give positions 0 .. n-1 as int64 tensors, shared out over ranks.

    Args:
        root: folder of the real files or of their pack.
        cache: folder in which stand-ins (and packs of folders that cannot be written to) are kept.
        name: what the data set is called; its folder below the data folder.
        layout: "imagenet", "folder" or "cifar10".
        image_size: side of the pictures.
        classes: how many there must be; "auto" or None: as many as there are.
        source: "auto", "files" or "standin" (`saccade.data.class_source.resolve_source`).
        batch_size: pictures for one device. eval_batch_size: positions in a batch of the test and val loaders.
        eval_samples: positions of the test loader, over all devices. val_samples: of the val loader; None: as many.
        workers: loader processes; never changes what is drawn.
        seed: of the training stream.
        flip: mirror half of the training pictures.
        exif: "ignore" leaves pictures as stored, "apply" turns them upright; fixed when they are packed.
        held_out: share of a one-level folder of classes that becomes val; fixed when it is packed.
        max_unreadable: so many undecodable files are left out when packing.
        pin_memory: page-locked batches, for CUDA.
        standin_train, standin_val: pictures of each of the stand-in's ten classes. standin_seed: which ones.

    Raises:
        ValueError: an option out of range; files demanded, or begun but not complete; another number of classes than
            asked for.
    """

    def __init__(
        self,
        *,
        root: Path | str,
        cache: Path | str,
        name: str = "imagenet",
        layout: Layout = "imagenet",
        image_size: int = 128,
        classes: int | Literal["auto"] | None = "auto",
        source: Source = "auto",
        batch_size: int = 32,
        eval_batch_size: int = 64,
        eval_samples: int = 50_000,
        val_samples: int | None = None,
        workers: int = 0,
        seed: int = 0,
        flip: bool = False,
        exif: Exif = "ignore",
        held_out: float = 0.1,
        max_unreadable: int = 20,
        pin_memory: bool = False,
        standin_train: int = 300,
        standin_val: int = 100,
        standin_seed: int = 0,
    ) -> None:
        super().__init__()
        if min(batch_size, eval_batch_size, eval_samples, 1 if val_samples is None else val_samples) < 1:
            raise ValueError(
                f"data.module: batch_size, eval_batch_size, eval_samples and val_samples are 1 or more; got "
                f"{batch_size}, {eval_batch_size}, {eval_samples}, {val_samples}"
            )
        self.root, self.cache, self.name = Path(root), Path(cache), name
        self.image_size = Size(image_size, image_size)
        self.options = PackOptions(image_size, exif, max_unreadable)
        self.resolved_source = resolve_source(self.root, source, layout, image_size)
        self.layout: Layout = layout if self.resolved_source == "files" else "imagenet"
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.eval_samples, self.val_samples = eval_samples, val_samples or eval_samples
        self.workers, self.seed, self.flip, self.pin_memory = workers, seed, flip, pin_memory
        self.held_out = held_out
        self.standin_train, self.standin_val, self.standin_seed = standin_train, standin_val, standin_seed
        self.classes = self._count_classes(classes)
        self._position = 0
        self._manifest: dict[str, Any] | None = None
        self._datasets: dict[ClassSplit, PackedImages] = {}

    @classmethod
    def resolve_auto(cls, options: Mapping[str, Any], runtime: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """What `source: auto` and `classes: auto` become on this machine, for the identity of a run.

        Args:
            options: the constructor's arguments as configured; wrong ones fail here, before anything is built.
            runtime: the runtime group; its `data_dir` holds the data set's folder.

        Returns:
            Changed options, and notices.

        Raises:
            ValueError: see the class; also files that have yet to be packed, and are many: names the command.
        """
        root = Path(str(runtime["data_dir"])).expanduser().resolve() / str(options.get("name", "imagenet"))
        module = cls(root=root, cache=str(runtime.get("cache_dir") or "."), **options)
        if module.resolved_source == "files" and module.packed is None:
            module.require_few()
        changes: dict[str, Any] = {"source": module.resolved_source}
        if options.get("classes") == "auto":  # None stays: a generator without classes
            changes["classes"] = module.classes
        return changes, [module.banner] if module.banner else []

    def _count_classes(self, asked: int | Literal["auto"] | None) -> int:
        if self.resolved_source == "standin":
            from saccade.data.standin.classes import CLASSES  # loads OpenCV

            found, where = CLASSES, "the stand-in"
        else:
            found, where = len(class_ids(self.root, self.layout, self.image_size.rows)), str(self.root)
        if asked not in ("auto", None, found):
            raise ValueError(
                f"{where} has {found:,} classes, and {asked} are configured; set model.classes={found} or auto, "
                f"or use the data set that has {asked}"
            )
        return found

    # ---------------------------------------------------------------- what is read

    @property
    def data_root(self) -> Path:
        """The folder that is read: the real one, or the stand-in's in the cache."""
        if self.resolved_source == "files":
            return self.root
        from saccade.data.standin.classes import VERSION  # loads OpenCV

        stem = f"{self.standin_train}+{self.standin_val}-{self.image_size.rows}-s{self.standin_seed}"
        upright = "" if self.options.exif == "ignore" else f"-exif-{self.options.exif}"  # its pack is another one
        return self.cache / f"classes-standin-v{VERSION}-{stem}{upright}"

    @property
    def banner(self) -> str | None:
        """What must be said aloud about the data, or None for the real thing."""
        what = f"STAND-IN DATA: ten classes of painted things and crops of photographs instead of {self.name}"
        if self.resolved_source == "files":
            drawn = (self.root / MARKER).is_file() or (self.packed and read_manifest(self.packed)["standin"])
            return f"{what}, in {self.root}. Scores do not compare with published ones." if drawn else None
        return (
            f"{what} ({self.standin_train:,} pictures a class to train, {self.standin_val:,} to compare with). Scores "
            f"do not compare with published ones. For the real thing put the files in {self.root} (data/README.md), or "
            f"set data.source=files to see how."
        )

    @property
    def packed(self) -> Path | None:
        """The folder of the finished pack, None while there is none."""
        return next((folder for folder in self._places() if (folder / MANIFEST).is_file()), None)

    def _places(self) -> tuple[Path, Path]:
        """Where a pack may lie: beside the files, or in the cache where those may not be written to."""
        own = hashlib.sha256(str(self.data_root.absolute()).encode()).hexdigest()[:8]
        size = self.image_size.rows
        return pack_folder(self.data_root, size), self.cache / "packs" / f"{self.name}-{own}-{size}"

    def require_few(self) -> int:
        """How many pictures a pack of the folder will hold, if they are so few that it is made without asking.

        Raises:
            ValueError: they are many; names the command that packs them.
        """
        size, many = self.image_size.rows, f"more than {PACK_BY_COMMAND:,}"
        count = 0
        if self.layout != "imagenet" or not (self.root / TRAIN_TAR).is_file():
            listing = list_pictures(self.root, self.layout, self.held_out)
            count = sum(len(entries) for entries in listing.splits.values())
            many = f"{count:,}"
        if not 0 < count <= PACK_BY_COMMAND:
            raise ValueError(
                f"{self.root}: {many} pictures that are not packed at {size}x{size} yet, which takes a while, once.\n"
                f"{pack_command(self.root, self.layout, size)}"
            )
        return count

    def prepare_data(self) -> None:
        """Draw the stand-in if it is wanted, and pack what is not packed yet, whatever other processes do.

        Raises:
            ValueError: see `require_few` and `saccade.data.pack.pack`.
        """
        if self.packed is not None:
            return
        count = 0
        if self.resolved_source == "standin":
            self._draw_standin()
        else:
            count = self.require_few()
            log.info("Packing %s pictures of %s at %s, once ...", f"{count:,}", self.root, self.image_size)
        beside, cached = self._places()
        try:
            beside.mkdir(parents=True, exist_ok=True)
            writable = os.access(beside, os.W_OK)
        except OSError:
            writable = False
        pack_pictures(
            self.data_root,
            beside if writable else cached,
            self.layout,
            self.options,
            held_out=self.held_out,
            workers=min(4, os.cpu_count() or 1) if count >= _MANY else 0,
        )

    def _draw_standin(self) -> None:
        from saccade.data.standin.classes import write_classes  # loads OpenCV

        if not self.data_root.is_dir():
            count = (self.standin_train + self.standin_val) * self.classes
            log.info("Drawing %s stand-in pictures, once, into %s ...", f"{count:,}", self.data_root)
        write_classes(
            self.data_root,
            train=self.standin_train,
            val=self.standin_val,
            size=self.image_size.rows,
            seed=self.standin_seed,
        )

    def setup(self, stage: str | None = None) -> None:
        """Open the pack, making it first where it is missing.

        Raises:
            ValueError: it was packed with other options, or has another number of classes.
        """
        self.prepare_data()
        self.dataset("train")

    @property
    def manifest(self) -> dict[str, Any]:
        """The pack's manifest, checked against the options; read at the first use."""
        if self._manifest is None:
            self.prepare_data()
            folder = self.packed
            if folder is None:
                raise RuntimeError(f"{self.data_root}: packing ended without a pack")
            manifest = read_manifest(folder)
            had = {"exif": manifest["options"]["exif"], "held_out": manifest["held_out"]}
            held_out = None if had["held_out"] is None else self.held_out  # there was a val folder
            want = {"exif": self.options.exif, "held_out": held_out}
            if had != want:
                told = ", ".join(f"{key}={had[key]} (asked: {want[key]})" for key in had if had[key] != want[key])
                raise ValueError(f"{folder}: was packed with {told}; ask for that, or delete the folder to pack anew")
            if len(manifest["classes"]) != self.classes:
                raise ValueError(f"{folder}: has {len(manifest['classes']):,} classes, {self.classes:,} are configured")
            pictures = sum(entry["count"] for entry in manifest["splits"].values())
            if pictures <= PACK_BY_COMMAND and has_changed(self.data_root, self.layout, manifest):
                log.warning("%s has other pictures than when it was packed; to see them delete %s", self.root, folder)
            self._manifest = manifest
        return self._manifest

    @property
    def class_names(self) -> list[str]:
        """What the classes are called, in the order of labels."""
        return [str(entry["name"]) for entry in self.manifest["classes"]]

    def dataset(self, split: ClassSplit) -> PackedImages:
        """The pictures of a split.

        Raises:
            ValueError: the data set has no such split; names the ones that it has.
        """
        if split not in self._datasets:
            splits = self.manifest["splits"]
            folder = self.packed
            if split not in splits or folder is None:
                raise ValueError(
                    f"{self.data_root}: no {split} split, it has {', '.join(splits)}; score against one of those "
                    f"(task.module.scores.splits=[{next(iter(splits))}]), or add {split} pictures and pack anew"
                )
            self._datasets[split] = PackedImages(folder, split)
        return self._datasets[split]

    def preview(self, count: int, split: ClassSplit = "train", *, labels: Sequence[int] | None = None) -> ClassBatch:
        """The same few pictures every time, spread over the classes or over those of `labels`.

        Raises:
            ValueError: count below 1, or no picture with such labels.
        """
        if count < 1:
            raise ValueError(f"preview: count must be at least 1; got {count}")
        images = self.dataset(split)
        places = np.arange(len(images)) if labels is None else np.flatnonzero(np.isin(images.labels, labels))
        if not len(places):
            raise ValueError(f"preview: no {split} picture has one of the labels {labels}")
        count = min(count, len(places))
        return collate_class([images[int(places[i * len(places) // count])] for i in range(count)])

    def reference(self, split: ClassSplit) -> tuple[ReferenceSet, Callable[[], Iterable[Tensor]]]:
        """A split as a real set to score against: what it is, and a call that goes through it.

        Returns:
            The set, identified by the hash of its pack, and batches of (B, 3, Y, X) uint8.
        """
        images = self.dataset(split)
        size = str(self.image_size)
        return ReferenceSet(split, images.sha256, len(images), size, "centred square"), images.batches

    # ---------------------------------------------------------------- loaders

    def set_position(self, images_seen: int) -> None:
        """Let the next training loader start after this many images, counted over all devices."""
        self._position = images_seen

    def train_dataloader(self) -> DataLoader[ClassSample]:
        """Endless batches from the stream's position."""
        rank, world = self._rank()
        sampler = StreamSampler(self.batch_size, rank=rank, world_size=world, position=self._position)
        return DataLoader(
            ClassStream(self.dataset("train"), self.seed, self.flip),
            batch_sampler=sampler,
            num_workers=self.workers,
            collate_fn=collate_class,
            pin_memory=self.pin_memory,
            persistent_workers=self.workers > 0,
        )

    def test_dataloader(self) -> DataLoader[Tensor]:
        """Positions 0 .. eval_samples - 1, (B,) int64; each rank has every `world_size`-th."""
        return self._positions(self.eval_samples)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Positions 0 .. val_samples - 1, as the test loader."""
        return self._positions(self.val_samples)

    def _positions(self, count: int) -> DataLoader[Tensor]:
        rank, world = self._rank()
        if count < world:
            raise ValueError(
                f"data.module: {count} evaluation samples cannot be shared out to {world} devices, one or more for "
                f"each; set budget.eval_samples={world} or more (and data.module.val_samples, if it is set)"
            )
        positions = torch.arange(rank, count, world)
        batches = [positions[i : i + self.eval_batch_size] for i in range(0, len(positions), self.eval_batch_size)]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]  # a list of batches is a data set

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
