"""Videos and images in one training: a step has a batch of clips, or a batch of single pictures.

With the share w of image steps, n(s) = floor(s w) of the steps 0 .. s - 1 are of images, and step s is one where
n(s + 1) > n(s): a function of the step alone, evenly spread. Each source goes through its own items in its own order,
of which step s is number n(s), or s - n(s). An image is a clip of one frame of which nothing is given.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Callable, ClassVar, Dict, Iterable, Iterator, Optional, Union

import jsonargparse
import numpy as np

from vidpred import distributed
from vidpred.data import loading
from vidpred.data.clips import Clip, ClipBatch, ClipDataset
from vidpred.data.config import DATASETS, ClipConfig, require
from vidpred.data.loading import ClipLoader
from vidpred.errors import UserError
from vidpred.frame_roles import FrameRoles, all_unknown

IMAGE_STEPS = 2**40  # the draws of images begin here: no noise, level or window is that of a video
SOURCES = ("videos", "images")
OF_VIDEOS = {  # what of the common settings means nothing for one frame
    "num_frames": 1, "frame_stride": 1, "max_frame_stride": None, "fps": None, "min_motion": None, "max_cut": None,
}  # fmt: skip


@dataclass
class MixtureConfig(ClipConfig):
    """Videos, and images beside them: both are trained on, the videos are validated and evaluated."""

    has_images: ClassVar[bool] = True
    kind: str = "mixture"
    videos: Dict[str, Any] = field(default_factory=dict)
    """The first source, any kind of data with its keys, such as {kind: video_folder, root: /my/videos}. Common keys
    (num_frames, height, crop, ...) are those of this section unless they are given here."""
    images: Dict[str, Any] = field(default_factory=dict)
    """The second source, such as {kind: image_folder, root: /my/images}: clips of one frame."""
    image_share: float = 0.25
    """The part of all training steps that are of images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        share = self.image_share
        require(0 < share < 1, "image_share", f"{share} is no share; set it between 0 and 1, or use one source alone")
        for name in SOURCES:
            if getattr(self, name):
                self._source(name)

    def sources(self) -> dict[str, ClipConfig]:
        """The configurations of "videos" and "images". Raises UserError."""
        return {name: self._source(name) for name in SOURCES}

    def _source(self, name: str) -> ClipConfig:
        own = getattr(self, name)
        require(isinstance(own.get("kind"), str), name, f"has no kind; give one of {', '.join(DATASETS.kinds())}")
        require(own["kind"] != self.kind, name, "a mixture in a mixture; give another kind")
        common = {each.name: getattr(self, each.name) for each in dataclasses.fields(ClipConfig)}
        frames = {} if name == "videos" else OF_VIDEOS
        with _naming(name):
            config = _typed(DATASETS.config_class(own["kind"]), {**common, **frames, **own})
        wanted = {"num_frames": 1 if name == "images" else self.num_frames, "height": self.height, "width": self.width}
        for key, value in wanted.items():
            found = getattr(config, key)
            require(found == value, f"{name}.{key}", f"is {found}, and the mixture's is {value}; leave it out")
        return config


def _typed(config_class: type, values: dict[str, Any]) -> ClipConfig:
    """The dataclass of plain values; what does not fit a type or a name is a UserError."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(config_class, "data")
    try:
        return parser.instantiate(parser.parse_object({"data": values})).data
    except jsonargparse.ArgumentError as error:
        raise UserError(" ".join(str(error).split())) from error


class _naming:
    """Inside, a UserError says in which source it was met, and keeps its report."""

    def __init__(self, name: str):
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, UserError):
            named = UserError(f"data.{self._name}: {error}")
            named.report = getattr(error, "report", None)
            raise named from error


@dataclass(frozen=True)
class ImageSteps:
    """Which steps are of images; the module's n(s)."""

    share: float

    def before(self, step: int) -> int:
        """n(step)."""
        return step * self.exact.numerator // self.exact.denominator

    @property
    def exact(self) -> Fraction:
        """The decimal that was written, not its nearest binary fraction."""
        return Fraction(str(self.share))

    def __contains__(self, step: int) -> bool:
        return self.before(step + 1) > self.before(step)


class MixedClips(ClipDataset):
    """The training items of both sources, videos first. Their clips differ in length: batches are of one source."""

    def __init__(self, videos: ClipDataset, images: ClipDataset, steps: ImageSteps):
        self.videos, self.images, self.steps = videos, images, steps
        self.name = f"{videos.name} and {images.name}"
        self.may_hang = videos.may_hang or images.may_hang
        self.class_names = tuple(sorted({*videos.class_names, *images.class_names}))
        self.has_text, self.action_scale = videos.has_text or images.has_text, videos.action_scale
        self.lacking = {
            kind: source.name
            for source in (videos, images)
            for kind, there in (("class", source.class_names), ("text", source.has_text))
            if not there
        }

    def __len__(self) -> int:
        return len(self.videos) + len(self.images)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Until both sources were seen once: the larger number of the two."""
        share = self.steps.exact
        videos, images = (source.steps_per_epoch(batch_size) for source in (self.videos, self.images))
        # The first s with s - n(s) = ceil(s (1 - w)) = videos, and the first with n(s) = floor(s w) = images.
        return max(math.floor((videos - 1) / (1 - share)) + 1, math.ceil(images / share))

    def item_name(self, index: int) -> str:
        return self._of(index, lambda dataset, place: dataset.item_name(place))

    def clip(self, index: int, generator: Optional[np.random.Generator]) -> Clip:
        return self._of(index, lambda dataset, place: dataset.clip(place, generator))

    def _of(self, index: int, ask: Callable[[ClipDataset, int], Any]) -> Any:
        count = len(self.videos)
        return ask(self.videos, index) if index < count else ask(self.images, index - count)


@dataclass
class MixedReport:
    """What the scans of both sources found, for `data_report.json`."""

    reports: dict[str, Any]

    def save(self, path: Path) -> None:
        if distributed.is_main():
            path.parent.mkdir(parents=True, exist_ok=True)
            plain = {name: report.to_json() for name, report in self.reports.items()}
            path.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")


@DATASETS.register("mixture", MixtureConfig)
def build_mixture(config: MixtureConfig, split: str, seed: int) -> ClipDataset:
    """Of both sources in training; else of the videos, which are what a model is judged by."""
    built = {}
    for name, source in config.sources().items():
        with _naming(name):
            built[name] = DATASETS.build(source, split=split, seed=seed)
            if split == "train":
                require(len(built[name]) > 0, "root", f"{built[name].name} has no usable item; see the split_by keys")
    reports = {name: dataset.report for name, dataset in built.items() if getattr(dataset, "report", None)}
    whole = MixedClips(built["videos"], built["images"], ImageSteps(config.image_share))
    dataset = whole if split == "train" else built["videos"]
    if reports:
        dataset.report = MixedReport(reports)
    return dataset


# Loading ---------------------------------------------------------------------------------------------------


class MixedLoader:
    """Batches of two loaders, as `ClipLoader` to the training; `is_image(n)` says whose micro batch n is."""

    def __init__(self, videos: ClipLoader, images: ClipLoader, is_image: Callable[[int], bool]):
        self._videos, self._images, self._is_image = videos, images, is_image
        self._delivered = 0

    def __iter__(self) -> Iterator[ClipBatch]:
        return self

    def __next__(self) -> ClipBatch:
        loader = self._images if self._is_image(self._delivered) else self._videos
        self._delivered += 1
        return next(loader)

    @property
    def quarantined(self) -> dict[str, str]:
        return {**self._videos.quarantined, **self._images.quarantined}

    def quarantine(self, names: Iterable[str] | dict[str, str]) -> None:
        self._videos.quarantine(names)
        self._images.quarantine(names)

    def close(self) -> None:
        self._videos.close()
        self._images.close()


def training_loader(
    dataset: ClipDataset, *, first_step: int, accumulation: int, frame_roles: FrameRoles, **options: Any
) -> Union[ClipLoader, MixedLoader]:
    """As `loading.training_loader`, for mixtures too; `frame_roles` are of videos."""
    common = {"accumulation": accumulation, **options}
    if not isinstance(dataset, MixedClips):
        return loading.training_loader(dataset, first_step=first_step, frame_roles=frame_roles, **common)
    done = dataset.steps.before(first_step)
    return MixedLoader(
        loading.training_loader(dataset.videos, first_step=first_step - done, frame_roles=frame_roles, **common),
        loading.training_loader(dataset.images, first_step=IMAGE_STEPS + done, frame_roles=all_unknown, **common),
        lambda number: first_step + number // accumulation in dataset.steps,
    )


def sample_clips(dataset: ClipDataset, count: int, **options: Any) -> Union[ClipLoader, "ClipChain"]:
    """As `loading.sample_clips`; of a mixture, clips of videos first, then of images by their share."""
    if not isinstance(dataset, MixedClips):
        return loading.sample_clips(dataset, count, **options)
    images = min(max(round(count * dataset.steps.share), 1), len(dataset.images))
    return ClipChain(
        [
            loading.sample_clips(dataset.videos, max(count - images, 1), **options),
            loading.sample_clips(dataset.images, images, **options),
        ]
    )


class ClipChain:
    """The batches of several loaders, one after the other."""

    def __init__(self, loaders: list[ClipLoader]):
        self._loaders = loaders

    def __iter__(self) -> Iterator[ClipBatch]:
        for loader in self._loaders:
            yield from loader

    def close(self) -> None:
        for loader in self._loaders:
            loader.close()
