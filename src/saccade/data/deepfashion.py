"""DeepFashion in-shop (Liu et al. 2016) as pairs of poses: dataset, endless training stream, Lightning data module.

Reads the PATN layout (`saccade.data.layout`). The official files may not be redistributed, so without them the module
reads stand-in people that were written in the same layout and says so (`banner`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from saccade.data.batches import PoseBatch, PoseSample, collate_pose
from saccade.data.framing import MIDDLE, Framing, SquareFiles
from saccade.data.images import Box, Side, place
from saccade.data.layout import SPLITS, Source, Split, resolve_source
from saccade.data.lists import DeepFashionLists, read_lists
from saccade.data.pairs import Pair
from saccade.data.pose import flip_keypoints
from saccade.data.sampler import EpochSampler, StreamSampler, index_at, rng_at
from saccade.geometry import Size

Choice = Literal["random", "first"]
log = logging.getLogger(__name__)
_MANY_PICTURES = 1000  # from here on several processes draw
_SUBSET_SEED = 0  # ours: every run scores the same pairs


class DeepFashionDataset(Dataset[PoseSample]):
    """The pairs of one split, in the order of their list.

    Args:
        lists: what `read_lists` returns.
        split: "train" or "test".
        framing: how files become canvases.
        samples: keep only so many pairs, or all if there are fewer; None keeps all.
        subset: which ones: "random" a fixed random choice, the same in every run and in the list's order, or "first".
        unpaired: one item for each picture instead of each pair; its target pose is drawn from the other pictures', and
            its target picture is the source again (GPA, arXiv 2107.03742, Fig. 8).
        flip: mirror half of the draws, both pictures together, left and right keypoints swapped.
        load_in_memory: decode every picture now, at the canvas size, and keep it (3 bytes a pixel).

    Raises:
        ValueError: samples below 1; unreadable pictures (at once if load_in_memory).
    """

    def __init__(
        self,
        lists: DeepFashionLists,
        split: Split,
        framing: Framing,
        *,
        samples: int | None = None,
        subset: Choice = "random",
        unpaired: bool = False,
        flip: bool = False,
        load_in_memory: bool = False,
    ) -> None:
        own = lists.splits[split]
        self.images, self.annotations, self.framing = own.images, own.annotations, framing
        self.unpaired, self.flip = unpaired, flip
        pairs = own.pairs
        if unpaired:
            pairs = [(name, name) for name in sorted({name for pair in pairs for name in pair})]
        self.pairs = _choose(pairs, samples, subset, split)
        self.names = sorted({name for pair in self.pairs for name in pair})
        self._poses = sorted({name for pair in pairs for name in pair}) if unpaired else []
        self._pictures: dict[str, Tensor] = {}
        if load_in_memory:
            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                self._pictures = dict(zip(self.names, pool.map(self.picture, self.names), strict=True))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> PoseSample:
        return self.draw(index, rng_at(_SUBSET_SEED, index))

    def draw(self, index: int, rng: np.random.Generator) -> PoseSample:
        """One item, its random choices (flip, foreign pose) made by `rng`."""
        source, target = self.pairs[index]
        pose = target
        if self.unpaired:
            pose = self._poses[int(rng.integers(len(self._poses)))]
        sample = PoseSample(
            source_image=self.picture(source),
            source_keypoints=self.keypoints(source),
            target_image=self.picture(target),
            target_keypoints=self.keypoints(pose),
            key=pair_key((source, pose)),
            paired=not self.unpaired,
        )
        if self.flip and rng.random() < 0.5:
            return self._flipped(sample)
        return sample

    def picture(self, name: str) -> Tensor:
        """One picture on the canvas, (3, Y, X) uint8."""
        kept = self._pictures.get(name)
        return self.framing.read(self.images / name) if kept is None else kept

    def keypoints(self, name: str) -> Tensor:
        """The keypoints of one picture on the canvas, (18, 3).

        Raises:
            ValueError: the picture has no row in the keypoint file.
        """
        if name not in self.annotations:
            raise ValueError(f"{self.annotations.path}: no keypoint row for {name}")
        return self.framing.points(self.annotations[name])

    def _flipped(self, sample: PoseSample) -> PoseSample:
        canvas = self.framing.canvas
        return PoseSample(
            source_image=sample.source_image.flip(-1),
            source_keypoints=flip_keypoints(sample.source_keypoints, canvas),
            target_image=sample.target_image.flip(-1),
            target_keypoints=flip_keypoints(sample.target_keypoints, canvas),
            key=sample.key,
            paired=sample.paired,
        )


class PoseStream(Dataset[PoseSample]):
    """A data set without end: position p holds a pair that depends on (seed, p) alone, not on workers or history."""

    def __init__(self, dataset: DeepFashionDataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, position: int) -> PoseSample:
        index = index_at(self.seed, position, len(self.dataset))
        return self.dataset.draw(index, rng_at(self.seed, position))


class DeepFashionModule(LightningDataModule):
    """Loaders over DeepFashion or its stand-in.

    Training batches come from an endless stream that starts at `set_position(images_seen)`; it needs
    `Trainer(use_distributed_sampler=False)`. The test loader goes through the test list in order.

    Args:
        root: folder of the real files (PATN layout).
        cache: folder in which stand-ins are built and kept.
        image_size: the network's pictures, a side or (rows, cols).
        source: "auto", "files" or "standin" (`saccade.data.layout.resolve_source`).
        batch_size, eval_batch_size: pairs for one device.
        workers: loader processes; never changes what is drawn.
        seed: of the training stream.
        keypoint_frame: "auto", "256x256" or "256x176" (`saccade.data.keypoints.decide_frame`).
        square_files, pad_side, pad_value, upscale: see `Framing`.
        folders, list_prefix: see `find_layout`.
        pairs_per_epoch: end Lightning's epochs after so many images (PATN: 4,000); None never does.
        test_samples, test_subset: score only a part of the test list, see `DeepFashionDataset`.
        val_samples: score only so many of these during training.
        unpaired, flip, load_in_memory: see `DeepFashionDataset`; the first two for training only.
        pin_memory: page-locked batches, for CUDA.
        standin_train, standin_test: identities in the stand-in. standin_poses: pictures of each.
        standin_size: rows and columns of its files. standin_seed: its people.
    """

    def __init__(
        self,
        *,
        root: Path | str,
        cache: Path | str,
        image_size: int | Sequence[int] = 256,
        source: Source = "auto",
        batch_size: int = 3,
        eval_batch_size: int = 8,
        workers: int = 0,
        seed: int = 0,
        keypoint_frame: str = "auto",
        square_files: SquareFiles = "auto",
        pad_side: Side = "centre",
        pad_value: int = 255,
        upscale: bool = False,
        folders: str = "{split}",
        list_prefix: str = "auto",
        pairs_per_epoch: int | None = None,
        test_samples: int | None = None,
        test_subset: Choice = "random",
        val_samples: int | None = None,
        unpaired: bool = False,
        flip: bool = False,
        load_in_memory: bool = False,
        pin_memory: bool = False,
        standin_train: int = 48,
        standin_test: int = 12,
        standin_poses: int = 5,
        standin_size: Sequence[int] = (256, 176),
        standin_seed: int = 0,
    ) -> None:
        super().__init__()
        self.root, self.cache = Path(root), Path(cache)
        self.image_size = Size.of(image_size if isinstance(image_size, int) else tuple(image_size))
        self.resolved_source = resolve_source(root, source, folders, list_prefix)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.workers, self.seed, self.pin_memory = workers, seed, pin_memory
        self.keypoint_frame, self.folders, self.list_prefix = keypoint_frame, folders, list_prefix
        self.square_files, self.pad_side, self.pad_value, self.upscale = square_files, pad_side, pad_value, upscale
        self.pairs_per_epoch = pairs_per_epoch
        self.test_samples, self.test_subset, self.val_samples = test_samples, test_subset, val_samples
        self.unpaired, self.flip, self.load_in_memory = unpaired, flip, load_in_memory
        self.standin_train, self.standin_test, self.standin_poses = standin_train, standin_test, standin_poses
        self.standin_size, self.standin_seed = Size.of(tuple(standin_size)), standin_seed
        self._position = 0
        self._lists: DeepFashionLists | None = None
        self._datasets: dict[Split, DeepFashionDataset] = {}

    @classmethod
    def resolve_auto(cls, options: Mapping[str, Any], runtime: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """What `source: auto` becomes on this machine, for the identity of a run: (changed options, notices).

        Args:
            options: the constructor's arguments as configured; wrong ones fail here, before anything is built.
            runtime: the runtime group; its `data_dir` holds the folder `deepfashion`.

        Raises:
            ValueError: see `resolve_source`.
        """
        module = cls(root=Path(str(runtime["data_dir"])).expanduser() / "deepfashion", cache=".", **options)
        return {"source": module.resolved_source}, [module.banner] if module.banner else []

    @property
    def data_root(self) -> Path:
        """The folder that is read: the real one, or the stand-in's in the cache."""
        if self.resolved_source == "files":
            return self.root
        from saccade.data.standin.people import VERSION  # loads OpenCV

        people = f"{self.standin_train}+{self.standin_test}x{self.standin_poses}"
        return self.cache / f"deepfashion-standin-v{VERSION}-{people}-{self.standin_size}-s{self.standin_seed}"

    @property
    def banner(self) -> str | None:
        """What must be said aloud about the data, or None for the real thing."""
        if self.resolved_source == "files":
            return None
        return (
            f"STAND-IN DATA: drawn people instead of DeepFashion ({self.standin_train:,} identities to train, "
            f"{self.standin_test:,} to test). Scores do not compare with published ones. "
            f"For the real thing put the files in {self.root} (data/README.md), or set data.source=files to see how."
        )

    @property
    def lists(self) -> DeepFashionLists:
        """Keypoints, pairs, the frame's evidence and the audit of the splits; read at the first use."""
        if self._lists is None:
            self._lists = read_lists(
                self.data_root,
                keypoint_frame=self.keypoint_frame if self.resolved_source == "files" else "auto",
                folders=self.folders if self.resolved_source == "files" else "{split}",
                list_prefix=self.list_prefix if self.resolved_source == "files" else "auto",
            )
        return self._lists

    @property
    def content(self) -> Box:
        """Where the 256x176 picture lies on the canvas, for metrics that cut the padding off."""
        return place(MIDDLE, self.image_size, self.pad_side)

    def prepare_data(self) -> None:
        """Build the stand-in if it is wanted and not there yet: whole or not at all, whatever other processes do."""
        if self.resolved_source != "standin":
            return
        from saccade.data.standin.people import write_deepfashion  # loads OpenCV

        pictures = (self.standin_train + self.standin_test) * self.standin_poses
        many = pictures >= _MANY_PICTURES and not self.data_root.is_dir()
        if many:
            log.info("Drawing %s stand-in pictures, once, into %s ...", f"{pictures:,}", self.data_root)
        write_deepfashion(
            self.data_root,
            train_identities=self.standin_train,
            test_identities=self.standin_test,
            poses_per_identity=self.standin_poses,
            image_size=self.standin_size,
            seed=self.standin_seed,
            workers=min(4, os.cpu_count() or 1) if many else 0,
        )

    def setup(self, stage: str | None = None) -> None:
        """Read and check the lists and open both splits, building the stand-in first where it is missing."""
        self.prepare_data()
        for split in SPLITS:
            self.dataset(split)

    def dataset(self, split: Split) -> DeepFashionDataset:
        """The pairs of a split; options that change pictures or poses (flip, unpaired) apply to training only."""
        if split not in self._datasets:
            training = split == "train"
            framing = Framing(
                self.image_size, self.lists.frame, self.square_files, self.pad_side, self.pad_value, self.upscale
            )
            self._datasets[split] = DeepFashionDataset(
                self.lists,
                split,
                framing,
                samples=None if training else self.test_samples,
                subset=self.test_subset,
                unpaired=training and self.unpaired,
                flip=training and self.flip,
                load_in_memory=self.load_in_memory,
            )
        return self._datasets[split]

    def set_position(self, images_seen: int) -> None:
        """Let the next training loader start after this many images, counted over all devices."""
        self._position = images_seen

    def train_dataloader(self) -> DataLoader[PoseSample]:
        """Endless batches from the stream's position, or epochs of `pairs_per_epoch`."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler_type = StreamSampler if self.pairs_per_epoch is None else EpochSampler
        sampler = sampler_type(
            self.batch_size,
            rank=rank,
            world_size=world,
            position=self._position,
            epoch_images=self.pairs_per_epoch,
        )
        stream = PoseStream(self.dataset("train"), self.seed)
        return DataLoader(
            stream,
            batch_sampler=sampler,
            num_workers=self.workers,
            collate_fn=collate_pose,
            pin_memory=self.pin_memory,
            persistent_workers=self.workers > 0,
        )

    def test_dataloader(self) -> DataLoader[PoseSample]:
        """The test pairs in order, the last batch as short as it comes."""
        return self._ordered(self.dataset("test"))

    def val_dataloader(self) -> DataLoader[PoseSample]:
        """The test pairs, or `val_samples` of them spread over the list: training looks but chooses nothing."""
        test = self.dataset("test")
        if self.val_samples is None or self.val_samples >= len(test):
            return self._ordered(test)
        return self._ordered(Subset(test, [i * len(test) // self.val_samples for i in range(self.val_samples)]))

    def _ordered(self, dataset: Dataset[PoseSample]) -> DataLoader[PoseSample]:
        return DataLoader(
            dataset,
            batch_size=self.eval_batch_size,
            num_workers=self.workers,
            collate_fn=collate_pose,
            pin_memory=self.pin_memory,
        )

    def preview(self, count: int, split: Split = "test") -> PoseBatch:
        """The same few pairs every time, spread over the split: for image grids.

        Raises:
            ValueError: count below 1.
        """
        dataset = self.dataset(split)
        if count < 1:
            raise ValueError(f"preview: count must be at least 1; got {count}")
        count = min(count, len(dataset))
        return collate_pose([dataset[i * len(dataset) // count] for i in range(count)])


def pair_key(pair: Pair) -> str:
    """A file stem for a pair: both names without their endings, `<from>___<to>` as PATN's result pictures have it."""
    return "___".join(Path(name).stem for name in pair)


def _choose(pairs: list[Pair], samples: int | None, subset: Choice, split: Split) -> list[Pair]:
    if subset not in ("random", "first"):
        raise ValueError(f"data.module.test_subset={subset} is unknown; valid: random, first")
    if samples is None:
        return pairs
    if samples < 1:
        raise ValueError(f"{samples} {split} samples are asked for; choose 1 or more, or null for all {len(pairs):,}")
    samples = min(samples, len(pairs))
    if subset == "first":
        return pairs[:samples]
    chosen = np.random.default_rng(_SUBSET_SEED).permutation(len(pairs))[:samples]
    return [pairs[i] for i in sorted(chosen.tolist())]
