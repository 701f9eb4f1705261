"""DAVIS 2017 (Pont-Tuset et al., arXiv 1704.00675) as pairs of frames, for PSAL's colorization and reconstruction.

Training (PSAL, arXiv 2202.03163, and the released script): two different frames of a sequence, uniformly. Test: the
middle frame of each sequence, and references a few frames before and after. Frames are stretched to the network's size,
their aspect ignored, by Pillow's bicubic filter, as the script does. Two differences: the sequences are gone through in
a fresh shuffle each lap instead of drawn independently, and test references that do not exist are left out.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import DataLoader

from saccade.data.davis_layout import (
    AUTO,
    DavisFiles,
    find_davis,
    frames_of,
    middle_frame,
    resolve_source,
    resolve_splits,
)
from saccade.data.editing_batches import FramePairBatch, FramePairSample, collate_frame_pairs
from saccade.data.frame_pairs import FramePair, FramePairs, FramePairStream, read_frame, read_pair
from saccade.data.kept import Kept
from saccade.data.layout import Source
from saccade.data.standin.folder import MARKER
from saccade.data.stream_module import StreamModule, require_samples, spread
from saccade.geometry import Size

log = logging.getLogger(__name__)


class ReconstructionPair(NamedTuple):
    """A frame to rebuild from the pixels of another; distance = number of the reference minus that of the target."""

    sequence: str
    target: Path
    reference: Path
    distance: int


class DavisModule(StreamModule):
    """Loaders over DAVIS 2017 or its stand-in.

    Training batches come from an endless stream that starts at `set_position(images_seen)`, one image a pair; it needs
    `Trainer(use_distributed_sampler=False)`. The test loader goes through the test pairs sequence by sequence; each of
    several devices has every `world_size`-th.

    Args:
        root: folder of the real files (`saccade.data.davis_layout`).
        cache: folder in which stand-ins are built and kept.
        image_size: the network's pictures, a side or (rows, cols).
        source: "auto", "files" or "standin".
        batch_size, eval_batch_size: pairs for one device.
        workers: loader processes; never changes what is drawn.
        seed: of the training stream.
        train_split, test_split: names of lists, several joined by +; "auto": train+test-dev and test-challenge as the
            paper, or train and val where those have no frames (said aloud).
        distances: references lie so many frames after and before the middle frame.
        eval_samples: at most so many test pairs, as whole sequences (one or more) spread over the list; None: all.
        val_samples: the same during training; None: as eval_samples.
        resolution: the folder below JPEGImages.
        keep_mib: decoded frames kept in memory by each process.
        pin_memory: page-locked batches, for CUDA.
        standin_train, standin_test: sequences in the stand-in. standin_frames: frames of each. standin_size: rows and
            columns of its files. standin_seed: what they show.

    Raises:
        ValueError: an option out of range; files demanded, or begun but not complete; lists that are not there, or
            share a sequence.
    """

    def __init__(
        self,
        *,
        root: Path | str,
        cache: Path | str,
        image_size: int | Sequence[int] = 256,
        source: Source = "auto",
        batch_size: int = 1,
        eval_batch_size: int = 8,
        workers: int = 0,
        seed: int = 0,
        train_split: str = AUTO,
        test_split: str = AUTO,
        distances: Sequence[int] = (1, 3, 5, 10),
        eval_samples: int | None = None,
        val_samples: int | None = None,
        resolution: str = "480p",
        keep_mib: float = 512.0,
        pin_memory: bool = False,
        standin_train: int = 24,
        standin_test: int = 30,
        standin_frames: int = 21,
        standin_size: Sequence[int] = (480, 854),
        standin_seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, workers=workers, pin_memory=pin_memory)
        require_samples(eval_samples=eval_samples, val_samples=val_samples)
        self.distances = tuple(distances)
        if not self.distances or min(self.distances) < 1 or len(set(self.distances)) < len(self.distances):
            raise ValueError(f"data.module.distances: different numbers of frames, 1 or more; got {list(distances)}")
        self.root, self.cache, self.seed = Path(root), Path(cache), seed
        self.image_size = Size.of(image_size if isinstance(image_size, int) else tuple(image_size))
        self.eval_samples, self.val_samples = eval_samples, val_samples or eval_samples
        self.standin_train, self.standin_test, self.standin_frames = standin_train, standin_test, standin_frames
        self.standin_size, self.standin_seed = Size.of(tuple(standin_size)), standin_seed
        self.resolved_source = resolve_source(self.root, source, resolution)
        self.resolution = resolution if self.resolved_source == "files" else "480p"
        self.train_split, self.test_split, self._notices = train_split, test_split, list[str]()
        self._files: DavisFiles | None = None
        if self.resolved_source == "files":
            self.train_split, self.test_split, self._notices = resolve_splits(self.files, train_split, test_split)
        elif AUTO in (train_split, test_split):
            self.train_split = "train+test-dev" if train_split == AUTO else train_split
            self.test_split = "test-challenge" if test_split == AUTO else test_split
        self._read = Kept(functools.partial(read_frame, size=self.image_size), keep_mib)
        self._videos: dict[str, dict[int, Path]] = {}

    @classmethod
    def resolve_auto(cls, options: Mapping[str, Any], runtime: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """What every `auto` becomes on this machine, for the identity of a run: (changed options, notices).

        Args:
            options: the constructor's arguments as configured; wrong ones fail here, before anything is built.
            runtime: the runtime group; its `data_dir` holds the folder `davis`.

        Raises:
            ValueError: see the class.
        """
        module = cls(root=Path(str(runtime["data_dir"])).expanduser() / "davis", cache=".", **options)
        changes = {
            "source": module.resolved_source,
            "train_split": module.train_split,
            "test_split": module.test_split,
        }
        return changes, module.notices

    # ---------------------------------------------------------------- what is read

    @property
    def data_root(self) -> Path:
        """The folder that is read: the real one, or the stand-in's in the cache."""
        if self.resolved_source == "files":
            return self.root
        from saccade.data.standin.videos import VERSION  # loads OpenCV

        what = f"{self.standin_train}+{self.standin_test}x{self.standin_frames}"
        return self.cache / f"davis-standin-v{VERSION}-{what}-{self.standin_size}-s{self.standin_seed}"

    @property
    def banner(self) -> str | None:
        """What must be said aloud about the data, or None for the real thing."""
        what = "STAND-IN DATA: photographs under camera motion with a moving foreground instead of DAVIS 2017"
        if self.resolved_source == "files":
            if not (self.root / MARKER).is_file():
                return None
            return f"{what}, in {self.root}. Scores do not compare with published ones."
        return (
            f"{what} ({self.standin_train:,} sequences to train, {self.standin_test:,} to test). Scores do not compare "
            f"with published ones. For the real thing put the files in {self.root} (data/README.md), or set "
            f"data.source=files to see how."
        )

    @property
    def notices(self) -> list[str]:
        """The banner, and what `auto` had to do without."""
        return [*([self.banner] if self.banner else []), *self._notices]

    @property
    def files(self) -> DavisFiles:
        """Lists and folders, as they lay on disk at the first look.

        Raises:
            ValueError: see `find_davis`.
        """
        if self._files is None:
            self._files = find_davis(self.data_root, self.resolution)
        return self._files

    def sequences(self, split: str) -> list[str]:
        """The sequences of "train" or "test" as configured, or of lists by name ("val", "train+test-dev").

        Raises:
            ValueError: no such list, or sequences without frames.
        """
        return self.files.sequences({"train": self.train_split, "test": self.test_split}.get(split, split))

    def frames(self, sequence: str) -> dict[int, Path]:
        """The frames of a sequence by their numbers, in their order.

        Raises:
            ValueError: no such sequence, or frames that are not called by numbers.
        """
        if sequence not in self._videos:
            folders = self.files.folders
            if sequence not in folders:
                near = ", ".join(sorted(folders)[:8])
                raise ValueError(f"{self.data_root}: no sequence {sequence}; there are {len(folders)}: {near} ...")
            self._videos[sequence] = frames_of(folders[sequence])
        return self._videos[sequence]

    def videos(self, split: str) -> dict[str, dict[int, Path]]:
        """The frames of all sequences of a split."""
        return {name: self.frames(name) for name in self.sequences(split)}

    def prepare_data(self) -> None:
        """Build the stand-in if it is wanted and not there yet: whole or not at all, whatever other processes do."""
        if self.resolved_source != "standin":
            return
        from saccade.data.standin.videos import write_davis  # loads OpenCV

        if not self.data_root.is_dir():
            count = self.standin_train + self.standin_test
            log.info("Making %s stand-in videos, once, into %s ...", f"{count:,}", self.data_root)
        write_davis(
            self.data_root,
            train=self.standin_train,
            test=self.standin_test,
            frames=self.standin_frames,
            size=self.standin_size,
            seed=self.standin_seed,
        )

    def setup(self, stage: str | None = None) -> None:
        """List the frames of both splits, building the stand-in first where it is missing.

        Raises:
            ValueError: a training sequence of one frame, no test pair at the distances, or see `resolve_splits`.
        """
        self.prepare_data()
        resolve_splits(self.files, self.train_split, self.test_split)
        short = [name for name, frames in self.videos("train").items() if len(frames) < 2]
        if short:
            raise ValueError(f"{self.data_root}: {short[0]} has one frame only; a pair needs two")
        pairs = self.test_pairs()
        absent = 2 * len(self.distances) * len(self.sequences("test")) - len(pairs)
        if absent:
            log.warning("DAVIS: %s test references lie outside their sequences and are left out", f"{absent:,}")

    # ---------------------------------------------------------------- pairs

    def test_pairs(self, samples: int | None = None) -> list[FramePair]:
        """Each test sequence's middle frame with its references, +1, -1, +3 ...; at most `samples`, whole sequences.

        Raises:
            ValueError: none of the references exists.
        """
        videos = self.videos("test")
        names = list(videos)
        if samples is not None:
            names = [names[i] for i in spread(max(samples // (2 * len(self.distances)), 1), len(names))]
        pairs: list[FramePair] = []
        for name in names:
            middle = middle_frame(list(videos[name]))
            references = [middle + sign * distance for distance in self.distances for sign in (1, -1)]
            pairs += [FramePair(name, middle, number) for number in references if number in videos[name]]
        if not pairs:
            raise ValueError(
                f"{self.data_root}: no sequence of {self.test_split} has a frame at a distance of {self.distances} "
                f"from its middle one; set data.module.distances to smaller ones"
            )
        return pairs

    def reconstruction_pairs(self, split: str = "test", distance: int = 10) -> list[ReconstructionPair]:
        """For each sequence its middle frame and the one `distance` frames later, or else so many earlier.

        Args:
            split: "train", "test", or a list's name.
            distance: frames apart, 1 or more.

        Raises:
            ValueError: distance below 1; a sequence too short for it.
        """
        if distance < 1:
            raise ValueError(f"reconstruction pairs: the distance is 1 frame or more; got {distance}")
        self.prepare_data()
        pairs: list[ReconstructionPair] = []
        for name, frames in self.videos(split).items():
            middle = middle_frame(list(frames))
            there = [step for step in (distance, -distance) if middle + step in frames]
            if not there:
                raise ValueError(
                    f"{self.data_root}: {name} has frames {min(frames)} to {max(frames)} and none {distance} before or "
                    f"after its middle one, {middle}; choose a smaller distance"
                )
            pairs.append(ReconstructionPair(name, frames[middle], frames[middle + there[0]], there[0]))
        return pairs

    def preview(self, count: int) -> FramePairBatch:
        """The same few test pairs every time, each of another sequence as far as they go, at changing distances.

        Raises:
            ValueError: count below 1.
        """
        if count < 1:
            raise ValueError(f"preview: count must be at least 1; got {count}")
        self.prepare_data()
        pairs = self.test_pairs()
        by_name: dict[str, list[FramePair]] = {}
        for pair in pairs:
            by_name.setdefault(pair.sequence, []).append(pair)
        if count <= len(by_name):
            groups = [list(by_name.values())[i] for i in spread(count, len(by_name))]
            chosen = [group[-(1 + i) % len(group)] for i, group in enumerate(groups)]
        else:
            chosen = [pairs[i] for i in spread(count, len(pairs))]
        videos = self.videos("test")
        return collate_frame_pairs([read_pair(videos, pair, self._read) for pair in chosen])

    # ---------------------------------------------------------------- loaders

    def train_dataloader(self) -> DataLoader[FramePairSample]:
        """Endless batches from the stream's position."""
        return self.stream_loader(FramePairStream(self.videos("train"), self._read, self.seed), collate_frame_pairs)

    def test_dataloader(self) -> DataLoader[FramePairSample]:
        """The test pairs in order."""
        return self._ordered(self.eval_samples)

    def val_dataloader(self) -> DataLoader[FramePairSample]:
        """Test pairs, `val_samples` of them: training looks but chooses nothing."""
        return self._ordered(self.val_samples)

    def _ordered(self, samples: int | None) -> DataLoader[FramePairSample]:
        pairs = FramePairs(self.videos("test"), self.test_pairs(samples), self._read)
        return self.ordered_loader(pairs, collate_frame_pairs)
