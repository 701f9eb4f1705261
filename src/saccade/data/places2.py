"""Places2 (Zhou et al., TPAMI 2018), or any pictures in its layouts, for inpainting: random crops to train on.

As DeepFill v1 (Yu et al., CVPR 2018) and its PyTorch port take them: a random crop of the full picture, which is
resized only where it is smaller than the crop, not mirrored. Evaluation takes the crop in the middle.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from saccade.data.editing_batches import ImageBatch, ImageSample, collate_images
from saccade.data.images import decode_image, to_tensor
from saccade.data.kept import Kept
from saccade.data.layout import Source
from saccade.data.places2_layout import (
    Layout,
    PictureList,
    PlacesFiles,
    PlacesSplit,
    find_places,
    resolve_source,
)
from saccade.data.sampler import index_at, rng_at
from saccade.data.standin.folder import MARKER
from saccade.data.stream_module import StreamModule, require_samples, spread
from saccade.geometry import Size

log = logging.getLogger(__name__)


class CroppedPictures(Dataset[ImageSample]):
    """Pictures of a list, each the crop in its middle.

    Args:
        pictures: the files.
        size: of the crop.
        read: what reads a picture at least as large as the crop (`read_covering`).
    """

    def __init__(self, pictures: PictureList, size: Size, read: Kept) -> None:
        self.pictures, self.size, self.read = pictures, size, read

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> ImageSample:
        picture = self.read(self.pictures[index])
        rows, cols = picture.shape[1:]
        return self._crop(index, picture, (rows - self.size.rows) // 2, (cols - self.size.cols) // 2)

    def draw(self, index: int, rng: np.random.Generator, flip: bool = False) -> ImageSample:
        """One picture cropped at a place drawn by `rng`, and mirrored half of the times if `flip`."""
        picture = self.read(self.pictures[index])
        rows, cols = picture.shape[1:]
        top = int(rng.integers(rows - self.size.rows + 1))
        left = int(rng.integers(cols - self.size.cols + 1))
        sample = self._crop(index, picture, top, left)
        if flip and rng.random() < 0.5:
            sample.image = sample.image.flip(-1)
        return sample

    def _crop(self, index: int, picture: Tensor, top: int, left: int) -> ImageSample:
        part = picture[:, top : top + self.size.rows, left : left + self.size.cols]
        return ImageSample(part, self.pictures.name(index))


class CropStream(Dataset[ImageSample]):
    """A data set without end: position p holds a crop that depends on (seed, p) alone, not on workers or history."""

    def __init__(self, pictures: CroppedPictures, seed: int, crop: str = "random", flip: bool = False) -> None:
        self.pictures, self.seed, self.crop, self.flip = pictures, seed, crop, flip

    def __getitem__(self, position: int) -> ImageSample:
        index = index_at(self.seed, position, len(self.pictures))
        rng = rng_at(self.seed, position)
        if self.crop == "random":
            return self.pictures.draw(index, rng, self.flip)
        sample = self.pictures[index]
        if self.flip and rng.random() < 0.5:
            sample.image = sample.image.flip(-1)
        return sample


class Places2Module(StreamModule):
    """Loaders over Places2, any pictures in its layouts, or the stand-in.

    Training batches come from an endless stream that starts at `set_position(images_seen)`; it needs
    `Trainer(use_distributed_sampler=False)`. The test loader goes through validation pictures in order; each of several
    devices has every `world_size`-th.

    Args:
        root: folder of the files or lists (`saccade.data.places2_layout`).
        cache: folder in which stand-ins are built and kept.
        name: what the data set is called; its folder below the data folder.
        image_size: the network's pictures, a side or (rows, cols).
        source: "auto", "files" or "standin".
        layout: "auto", "folders" or "lists". train_list, val_list: list files by name; None: the known ones.
        batch_size, eval_batch_size: pictures for one device.
        workers: loader processes; never changes what is drawn.
        seed: of the training stream.
        crop: of training pictures, "random" or "centre". flip: mirror half of them.
        shorter_side: resize pictures to this shorter side before they are cropped; None: only those that are smaller
            than the crop.
        eval_samples: so many validation pictures spread over the list, or all if there are fewer; None: all.
        val_samples: the same during training; None: as eval_samples.
        keep_mib: decoded pictures kept in memory by each process.
        pin_memory: page-locked batches, for CUDA.
        standin_train, standin_test: pictures in the stand-in. standin_size: their shorter side. standin_seed: what they
            show.

    Raises:
        ValueError: an option out of range; files demanded, or begun but not complete.
    """

    def __init__(
        self,
        *,
        root: Path | str,
        cache: Path | str,
        name: str = "places2",
        image_size: int | Sequence[int] = 256,
        source: Source = "auto",
        layout: Layout = "auto",
        train_list: str | None = None,
        val_list: str | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 8,
        workers: int = 0,
        seed: int = 0,
        crop: Literal["random", "centre"] = "random",
        flip: bool = False,
        shorter_side: int | None = None,
        eval_samples: int | None = None,
        val_samples: int | None = None,
        keep_mib: float = 512.0,
        pin_memory: bool = False,
        standin_train: int = 400,
        standin_test: int = 60,
        standin_size: int = 320,
        standin_seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, workers=workers, pin_memory=pin_memory)
        require_samples(eval_samples=eval_samples, val_samples=val_samples)
        if crop not in ("random", "centre"):
            raise ValueError(f"data.module.crop={crop} is unknown; valid: random, centre")
        self.root, self.cache, self.name, self.seed = Path(root), Path(cache), name, seed
        self.image_size = Size.of(image_size if isinstance(image_size, int) else tuple(image_size))
        if shorter_side is not None and shorter_side < min(self.image_size):
            raise ValueError(
                f"data.module.shorter_side={shorter_side} is below the crop's shorter side, {min(self.image_size)}; "
                f"choose that or more, or null"
            )
        self.crop, self.flip = crop, flip
        self.eval_samples, self.val_samples = eval_samples, val_samples or eval_samples
        self.standin_train, self.standin_test = standin_train, standin_test
        self.standin_size, self.standin_seed = standin_size, standin_seed
        self.resolved_source = resolve_source(self.root, source, layout, train_list, val_list)
        files = self.resolved_source == "files"
        self.layout: Layout = layout
        self.train_list, self.val_list = (train_list, val_list) if files else (None, None)
        self._read = Kept(functools.partial(read_covering, size=self.image_size, shorter_side=shorter_side), keep_mib)
        self._datasets: dict[PlacesSplit, CroppedPictures] = {}

    @classmethod
    def resolve_auto(cls, options: Mapping[str, Any], runtime: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """What `source: auto` becomes on this machine, for the identity of a run: (changed options, notices).

        Args:
            options: the constructor's arguments as configured; wrong ones fail here, before anything is built.
            runtime: the runtime group; its `data_dir` holds the data set's folder.

        Raises:
            ValueError: see the class.
        """
        root = Path(str(runtime["data_dir"])).expanduser() / str(options.get("name", "places2"))
        module = cls(root=root, cache=".", **options)
        return {"source": module.resolved_source}, [module.banner] if module.banner else []

    # ---------------------------------------------------------------- what is read

    @property
    def data_root(self) -> Path:
        """The folder that is read: the real one, or the stand-in's in the cache."""
        if self.resolved_source == "files":
            return self.root
        from saccade.data.standin.places import VERSION  # loads OpenCV

        what = f"{self.standin_train}+{self.standin_test}-{self.standin_size}-s{self.standin_seed}"
        return self.cache / f"places-standin-v{VERSION}-{what}"

    @property
    def banner(self) -> str | None:
        """What must be said aloud about the data, or None for the real thing."""
        what = f"STAND-IN DATA: photographs laid out as places instead of {self.name}"
        if self.resolved_source == "files":
            if not (self.root / MARKER).is_file():
                return None
            return f"{what}, in {self.root}. Scores do not compare with published ones."
        return (
            f"{what} ({self.standin_train:,} pictures to train, {self.standin_test:,} to test). Scores do not compare "
            f"with published ones. For the real thing put the files in {self.root} (data/README.md), or set "
            f"data.source=files to see how."
        )

    @property
    def files(self) -> PlacesFiles:
        """Where each split is read from, as it lies on disk now."""
        return find_places(self.data_root, self.layout, self.train_list, self.val_list)

    def prepare_data(self) -> None:
        """Build the stand-in if it is wanted and not there yet: whole or not at all, whatever other processes do."""
        if self.resolved_source != "standin":
            return
        from saccade.data.standin.places import write_places  # loads OpenCV

        if not self.data_root.is_dir():
            count = self.standin_train + self.standin_test
            log.info("Making %s stand-in pictures, once, into %s ...", f"{count:,}", self.data_root)
        write_places(
            self.data_root,
            train=self.standin_train,
            val=self.standin_test,
            size=self.standin_size,
            seed=self.standin_seed,
        )

    def setup(self, stage: str | None = None) -> None:
        """List the pictures of both splits, building the stand-in first where it is missing."""
        self.prepare_data()
        for split in ("train", "val"):
            self.dataset(split)

    def dataset(self, split: Literal["train", "val", "test"]) -> CroppedPictures:
        """The pictures of a split; "test" is another word for "val", whose pictures are the ones that are scored."""
        own: PlacesSplit = "train" if split == "train" else "val"
        if own not in self._datasets:
            self.prepare_data()
            self._datasets[own] = CroppedPictures(self.files.pictures(own), self.image_size, self._read)
        return self._datasets[own]

    def preview(self, count: int, split: Literal["train", "val", "test"] = "val") -> ImageBatch:
        """The same few pictures every time, spread over the split.

        Raises:
            ValueError: count below 1.
        """
        if count < 1:
            raise ValueError(f"preview: count must be at least 1; got {count}")
        pictures = self.dataset(split)
        return collate_images([pictures[i] for i in spread(count, len(pictures))])

    # ---------------------------------------------------------------- loaders

    def train_dataloader(self) -> DataLoader[ImageSample]:
        """Endless batches from the stream's position."""
        stream = CropStream(self.dataset("train"), self.seed, self.crop, self.flip)
        return self.stream_loader(stream, collate_images)

    def test_dataloader(self) -> DataLoader[ImageSample]:
        """Validation pictures in order, `eval_samples` of them."""
        return self._ordered(self.eval_samples)

    def val_dataloader(self) -> DataLoader[ImageSample]:
        """Validation pictures in order, `val_samples` of them: training looks but chooses nothing."""
        return self._ordered(self.val_samples)

    def _ordered(self, samples: int | None) -> DataLoader[ImageSample]:
        pictures = self.dataset("val")
        count = len(pictures) if samples is None else samples
        return self.ordered_loader(Subset(pictures, spread(count, len(pictures))), collate_images)


def read_covering(path: Path, size: Size, shorter_side: int | None = None) -> Tensor:
    """A picture that a crop fits into, (3, Y, X) uint8: resized (bicubic, antialiased) where it is too small.

    Args:
        path: the file.
        size: of the crop.
        shorter_side: resize every picture to this shorter side first; None leaves those that are large enough alone.

    Raises:
        ValueError: not a readable picture; names the file.
    """
    pixels = decode_image(path)
    rows, cols = pixels.shape[:2]
    least = max(size.rows / rows, size.cols / cols)
    scale = max(least, 1.0) if shorter_side is None else max(least, shorter_side / min(rows, cols))
    if scale != 1.0:
        shape = Size(max(size.rows, math.ceil(rows * scale - 1e-6)), max(size.cols, math.ceil(cols * scale - 1e-6)))
        resized = Image.fromarray(pixels).resize((shape.cols, shape.rows), Image.Resampling.BICUBIC)
        pixels = np.array(resized, dtype=np.uint8)
    return to_tensor(pixels)
