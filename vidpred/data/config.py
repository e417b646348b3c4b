"""The `data` section: fields common to all kinds, the registry of kinds, and `build_dataset`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Optional

from vidpred import errors
from vidpred.data.clips import ClipDataset
from vidpred.errors import UserError
from vidpred.registry import Registry

DATASETS = Registry("data")
SPLITS = ("train", "val", "test")


def require(condition: bool, key: str, message: str) -> None:
    """Raises the one line that names a key of the `data` section unless `condition` holds."""
    errors.require(condition, f"data.{key}: {message}")


@dataclass
class ClipConfig:
    """Fields of every kind of data: how a clip is cut from an item."""

    has_images: ClassVar[bool] = False
    """Whether training has images beside the clips, of which nothing is given."""
    kind: str = "clips"
    """Which kind of data: video_folder, frame_folder, arrays, image_folder, mnist, picture, shapes, moving_digits,
    pushed_shapes, mixture, or one that you registered."""
    num_frames: int = 16
    """Frames in a clip, context and prediction together."""
    height: int = 256
    """Height of a clip in pixels, after cropping and resizing."""
    width: int = 256
    """Width of a clip in pixels, after cropping and resizing."""
    frame_stride: int = 1
    """Take every so-manyth frame of the source. Used where fps is not set."""
    max_frame_stride: Optional[int] = None
    """Where set, the stride of a training clip is drawn from frame_stride to this one, as far as its source is
    long enough, and the network is told by the times of the frames. Evaluation keeps frame_stride."""
    fps: Optional[float] = None
    """Take frames at this rate, by time, from sources that are not slower. Not set: frame_stride."""
    crop: Literal["center", "random", "none"] = "center"
    """Cut the largest window of the clip's aspect ratio at the centre or at a random place, then resize it;
    none resizes the whole frame, which changes its aspect ratio."""
    flip: bool = False
    """Mirror half of the training clips left to right."""
    min_motion: Optional[float] = None
    """Reject windows with a smaller mean change per frame (of thumbnails in [0, 255]). Not set: no check."""
    max_cut: Optional[float] = None
    """Reject windows with a change between two frames (of thumbnails in [0, 255]) above this: a cut between
    shots. 30 finds most of them. Not set: no check."""
    num_workers: int = 4
    """Processes per rank that decode clips (and scan files). 0 decodes in the training process, where nothing
    can interrupt a decoder that hangs; calibration, validation and evaluation read videos with at least 1."""
    decode_timeout: float = 60.0
    """Seconds without progress after which a decoder counts as hung; its file is then set aside."""
    max_bad_fraction: float = 0.05
    """Stop when more than this fraction of the files found cannot be used."""

    def __post_init__(self) -> None:
        require(self.num_frames >= 1, "num_frames", f"{self.num_frames} frames make no clip; set at least 1")
        require(min(self.height, self.width) >= 1, "height", f"{self.height}x{self.width} is no picture size")
        require(
            self.frame_stride >= 1, "frame_stride", f"{self.frame_stride} is not possible; set at least 1"
        )
        require(self.fps is None or self.fps > 0, "fps", f"{self.fps} is not possible; set a positive rate")
        require(self.fps is None or self.frame_stride == 1, "fps", "set either fps or frame_stride, not both")
        largest, strides = self.max_frame_stride, "max_frame_stride"
        require(largest is None or self.fps is None, strides, "set either fps or max_frame_stride, not both")
        require(
            largest is None or largest >= self.frame_stride,
            strides,
            f"{largest} is below frame_stride {self.frame_stride}; set at least that, or leave it unset",
        )
        crops = ("center", "random", "none")
        require(self.crop in crops, "crop", f"'{self.crop}' is not known; choose one of {', '.join(crops)}")
        require(self.num_workers >= 0, "num_workers", f"{self.num_workers} is not possible; set 0 or more")
        require(
            self.decode_timeout > 0, "decode_timeout", f"{self.decode_timeout} is not possible; set seconds"
        )
        fraction = self.max_bad_fraction
        require(0 <= fraction <= 1, "max_bad_fraction", f"{fraction} is not a fraction; set 0 to 1")

    def require_single_pictures(self) -> None:
        """Of kinds whose clips are pictures: UserError where a setting is of several frames, and would do nothing."""
        require(self.num_frames == 1, "num_frames", f"{self.num_frames}: a picture is one frame; set 1")
        require(self.frame_stride == 1, "frame_stride", "a picture is one frame; leave it 1")
        for key in ("fps", "max_frame_stride", "min_motion", "max_cut"):
            require(getattr(self, key) is None, key, "a picture is one frame; leave it unset")

    @property
    def strides(self) -> range:
        """The strides that training clips may have, frame_stride first."""
        return range(self.frame_stride, (self.max_frame_stride or self.frame_stride) + 1)


@dataclass
class FolderConfig(ClipConfig):
    """Fields of the kinds that find their items under a folder and split them."""

    root: Optional[str] = None
    """The folder that holds the data; searched with all its sub-folders."""
    split_by: Literal["auto", "hash", "folders", "lists"] = "auto"
    """How items are divided into train, val and test: by a stable hash of their path, by sub-folders of those
    names, or by list files. auto: lists where one is set, folders where root has a folder train, else
    hash."""
    val_fraction: float = 0.1
    """Share of the items (or groups) that the hash puts into val."""
    test_fraction: float = 0.1
    """Share of the items (or groups) that the hash puts into test."""
    group: Optional[str] = None
    """A regular expression searched in the path relative to root: items with the same match (its groups,
    where it has any) are one scene and stay in one split. UCF-101: '(v_[^/]*_g[0-9]+)_c[0-9]+'."""
    train_list: Optional[str] = None
    """A text file with one path relative to root per line: the training items."""
    val_list: Optional[str] = None
    """The same for the validation items."""
    test_list: Optional[str] = None
    """The same for the test items."""
    scan: Literal["full", "quick"] = "full"
    """full decodes every file once and so finds every damage; quick decodes a few places of each file, for
    collections that are too large for that. Either is done once and remembered by size and date."""
    classes: Literal["none", "folders"] = "none"
    """folders: a clip's class is the name of the folder that holds its file: the first one below root, or below
    the split's folder."""
    captions: Literal["none", "metadata", "text_files"] = "none"
    """The text of each item. metadata: root/metadata.jsonl, a line such as {"file_name": "a.mp4", "text": "a dog"}
    for each. text_files: a .txt beside it, of its name (for a folder of frames: FOLDER.txt)."""
    prompt_templates: tuple[str, ...] = ()
    """Sentences such as 'a picture of {}' that an item's text takes its place in: one is drawn for each training clip,
    evaluation has always the first. An empty text stays empty."""
    actions: bool = False
    """An action for each frame: NAME.npy, NAME.npz (one array) or NAME.csv beside NAME.mp4, (frames, A) numbers; row i
    is what is done between frames i - 1 and i. Of frames that a clip skips the actions are added up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("val_fraction", "test_fraction"):
            require(
                0 <= getattr(self, key) < 1, key, f"{getattr(self, key)} is not possible; set 0 to below 1"
            )
        total = self.val_fraction + self.test_fraction
        require(total < 1, "val_fraction", f"val and test together are {total}: nothing is left to train on")
        require(
            not self.prompt_templates or self.captions != "none",
            "prompt_templates", "there is no text to put into them; set data.captions, or leave them out",
        )  # fmt: skip
        for template in self.prompt_templates:
            require(template.count("{}") == 1, "prompt_templates", f"'{template}' must hold {{}} once, for the text")
        choices = {
            "split_by": ("auto", "hash", "folders", "lists"),
            "scan": ("full", "quick"),
            "classes": ("none", "folders"),
            "captions": ("none", "metadata", "text_files"),
        }
        for key, known in choices.items():
            value = getattr(self, key)
            require(value in known, key, f"'{value}' is not known; choose one of {', '.join(known)}")
        require(
            not (self.actions and self.flip), "flip", "a mirrored clip does not follow its actions; leave it false"
        )

    def root_folder(self) -> Path:
        """The absolute root, which must exist."""
        require(
            self.root is not None, "root", "not set; give the folder that holds your data, --data.root FOLDER"
        )
        root = Path(str(self.root)).expanduser().absolute()
        require(root.is_dir(), "root", f"{root} is not a folder; give the folder that holds your data")
        return root


def build_dataset(
    config: Any, split: Literal["train", "val", "test"], seed: int, report_path: Optional[Path] = None
) -> ClipDataset:
    """The items of one split, built by the kind's own function.

    Kinds that scan files do so once for all splits, together on all ranks (every rank must call this), and
    rank 0 writes what they found to `report_path`, also when too many files are unusable (a UserError).
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    try:
        dataset = DATASETS.build(config, split=split, seed=seed)
    except UserError as error:
        _save_report(error, report_path)
        raise
    _save_report(dataset, report_path)
    if len(dataset) == 0:
        raise UserError(f"data: split '{split}' of {dataset.name} has no usable item; see the split_by keys")
    return dataset


def _save_report(holder: Any, path: Optional[Path]) -> None:
    report = getattr(holder, "report", None)
    if report is not None and path is not None:
        report.save(path)
