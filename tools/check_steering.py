"""Whether predictions go where the actions push them: pushed shapes, rolled out with their pushes and without.

    python tools/check_steering.py --checkpoint runs/pushed_shapes
    python tools/check_steering.py --clips 128 --guidance 1 2 3 --frames 8

Of each predicted frame the centroid of the drawn shape is compared with the place to which the pushes have brought it;
it follows where it is within 2 pixels. Written: a table and steering.json. Exit code: 0 where at least 95 % follow with
the actions, at the model's own guidance, and without them no more than of a shape that stays where it was, within the
95 % interval of that share over the clips; 1 else; 2 when it could not be tried.
"""

import argparse
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Optional

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # works where vidpred is cloned but not installed

import numpy as np  # noqa: E402
import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from vidpred.assembly import open_subject  # noqa: E402
from vidpred.conditions import ConditionBatch  # noqa: E402
from vidpred.data import PushedScene, PushedShapesConfig, pushed_scene  # noqa: E402
from vidpred.diagnosis import Subject, results_folder  # noqa: E402
from vidpred.errors import UserError, door, require  # noqa: E402
from vidpred.evaluation.statistics import half_width  # noqa: E402
from vidpred.files import write_json  # noqa: E402

TOLERANCE = 2.0  # pixels
TARGET = 0.95
LEAST_COVER = 0.3  # of a pixel: less is not counted as drawn
LEAST_AREA = 0.2  # of the true shape: less is no shape


@dataclass(frozen=True)
class Row:
    """Of one way to predict. errors: (clips, frames), pixels, infinite where no shape is drawn."""

    name: str
    errors: np.ndarray

    @property
    def follows(self) -> float:
        return float((self.errors <= TOLERANCE).mean())

    @property
    def most_by_chance(self) -> float:
        """`follows` and half of its 95 % interval over clips, which are the independent draws."""
        return min(self.follows + (half_width((self.errors <= TOLERANCE).mean(axis=1)) or 0.0), 1.0)

    def to_json(self) -> dict[str, Any]:
        drawn = self.errors[np.isfinite(self.errors)]
        return {
            "name": self.name,
            "follows": self.follows,
            "follows_by_horizon": (self.errors <= TOLERANCE).mean(axis=0).tolist(),
            "median_error_pixels": float(np.median(drawn)) if len(drawn) else None,
            "no_shape": 1 - len(drawn) / self.errors.size,
        }


@door
def main() -> int:
    options = _options()
    subject = open_subject(options.checkpoint, REPOSITORY / "configs" / "quickstart.yaml", options.device)
    data = _data(options, subject)
    folder = results_folder(options.out, subject.folder / "steering" / subject.name)
    print(f"model: {subject.title}", flush=True)
    scenes = [pushed_scene(data, options.split, index) for index in range(options.clips)]
    own = subject.predictor.sampling.guidance.condition_scale
    rows = [_measure(options, subject, data, scenes, scale) for scale in dict.fromkeys([own, *options.guidance])]
    withheld = _measure(options, subject, data, scenes, None)
    stays = Row("the shape stays", errors_of_still(scenes, data.num_frames, subject.predictor.context_frames))
    table = [*rows, withheld, stays]
    for line in _lines(table):
        print(line)
    steered = is_steered(rows[0], withheld, stays)
    write_json(folder / "steering.json", _report(options, subject, table, steered))
    print(f"file: {folder / 'steering.json'}")
    said = "steered" if steered else "not steered"
    print(f"verdict: {said}: {rows[0].follows:.1%} follow, at least {TARGET:.0%} must; {withheld.follows:.1%} without "
          f"actions, at most {stays.most_by_chance:.1%} may, as of a shape that stays")  # fmt: skip
    return 0 if steered else 1


def errors_of_still(scenes: list[PushedScene], frames: int, known: int) -> np.ndarray:
    """(clips, frames - known) pixels: of a shape that stays where the last of `known` given frames shows it."""
    still = np.stack([np.repeat(scene.centres[known - 1 : known], frames, 0) for scene in scenes])
    return _errors_of(still, scenes)[:, known:]


def is_steered(told: Row, withheld: Row, stays: Row) -> bool:
    """Predictions follow the actions, and without them are no better than to leave the shape where it is."""
    return told.follows >= TARGET and withheld.follows <= stays.most_by_chance


def _data(options: argparse.Namespace, subject: Subject) -> PushedShapesConfig:
    """The model's clips, as long as the rollout."""
    data, conditioner = subject.data, subject.predictor.conditioner
    require(
        isinstance(data, PushedShapesConfig) and data.frame_stride == 1,
        f"data.kind {data.kind}: only a model of pushed_shapes at stride 1 can be checked; give another checkpoint",
    )
    require(
        conditioner is not None and "actions" in conditioner.config.kinds,
        "condition.kinds: the model takes no actions; train it with configs/pushed_shapes.yaml",
    )
    available = data.num_test_clips if options.split == "test" else data.num_val_clips
    require(options.clips <= available, f"--clips: {options.clips} of {available}; give fewer")
    return dataclasses.replace(data, num_frames=subject.predictor.context_frames + options.frames)


def _measure(
    options: argparse.Namespace,
    subject: Subject,
    data: PushedShapesConfig,
    scenes: list[PushedScene],
    scale: Optional[float],
) -> Row:
    """Predictions with the pushes under guidance, or without any (None)."""
    predictor, known = subject.predictor, subject.predictor.context_frames
    sampling = predictor.sampling
    predictor.sampling = predictor.guided(1.0 if scale is None else scale)
    name = "actions withheld" if scale is None else f"with actions, guidance {scale:g}"
    found = []
    for start in tqdm(range(0, len(scenes), options.batch_size), desc=name, unit="batch", leave=False):
        some = scenes[start : start + options.batch_size]
        context = np.stack([scene.pixels(data.height, data.width, np.arange(known)) for scene in some])
        pushes = torch.from_numpy(np.stack([scene.pushes for scene in some]))
        prediction = predictor.predict(
            torch.from_numpy(context).permute(0, 1, 4, 2, 3), options.frames, options.seed,
            condition=None if scale is None else ConditionBatch(actions=pushes),
            draws=torch.arange(start, start + len(some)),
        )  # fmt: skip
        pixels = prediction.permute(0, 1, 3, 4, 2).numpy()
        found += [centroids(clip, scene) for clip, scene in zip(pixels, some)]
    predictor.sampling = sampling
    return Row(name, _errors_of(np.stack(found), scenes, known))


def centroids(frames: np.ndarray, scene: PushedScene) -> np.ndarray:
    """(T, 2), (y, x) in pixels, of what has the shape's colour in frames (T, H, W, 3) uint8; nan where little has."""
    ground, colour = scene.background, scene.shape.colour
    towards = colour - ground
    cover = np.clip((frames / 255 - ground) @ towards / (towards @ towards), 0, 1)  # (T, H, W)
    cover = np.where(cover < LEAST_COVER, 0, cover)
    area = cover.sum(axis=(1, 2))
    rows, columns = (np.arange(size) + 0.5 for size in cover.shape[1:])
    moments = np.stack([cover.sum(axis=2) @ rows, cover.sum(axis=1) @ columns], axis=1)
    true = scene.pixels(*frames.shape[1:3], np.arange(1))[0] / 255
    true_area = np.clip((true - ground) @ towards / (towards @ towards), 0, 1).sum()
    drawn = area >= LEAST_AREA * true_area
    return np.where(drawn[:, None], moments / np.maximum(area, 1e-9)[:, None], np.nan)


def _errors_of(found: np.ndarray, scenes: list[PushedScene], first: int = 0) -> np.ndarray:
    """Distances (clips, frames) in pixels of centroids (clips, frames, 2) of the frames from number `first` on."""
    true = np.stack([scene.centres[first:] for scene in scenes])
    errors = np.linalg.norm(found - true, axis=2)
    return np.where(np.isfinite(errors), errors, np.inf)


def _lines(table: list[Row]) -> Iterator[str]:
    width = max(len(row.name) for row in table)
    frames = table[0].errors.shape[1]
    yield f"within {TOLERANCE:g} pixels of where the pushes lead"
    yield f"{'':{width}}  {'all':>7}  " + "  ".join(f"{f'+{frame + 1}':>5}" for frame in range(frames))
    for row in table:
        by_horizon = "  ".join(f"{value:5.0%}" for value in row.to_json()["follows_by_horizon"])
        yield f"{row.name:{width}}  {row.follows:7.1%}  {by_horizon}"


def _report(options: argparse.Namespace, subject: Subject, table: list[Row], steered: bool) -> dict[str, Any]:
    sampling = subject.predictor.sampling
    return {
        "model": subject.title, "split": options.split, "clips": options.clips, "frames": options.frames,
        "seed": options.seed, "sampler": sampling.sampler, "num_inference_steps": sampling.num_inference_steps,
        "tolerance_pixels": TOLERANCE, "target": TARGET, "most_without": table[-1].most_by_chance, "steered": steered,
        "rows": [row.to_json() for row in table],
    }  # fmt: skip


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="run folder or checkpoint (the newest run)")
    parser.add_argument("--clips", type=int, default=64, metavar="N", help="clips to predict (64)")
    parser.add_argument("--frames", type=int, default=8, metavar="N", help="predicted frames of each (8)")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="(test)")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0], metavar="SCALE",
                        help="beside the model's own, one or several (1 2)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="clips at once (32)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the result (the run's steering/)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    options = parser.parse_args()
    for key in ("clips", "frames", "batch_size"):
        if getattr(options, key) < 1:
            raise UserError(f"--{key.replace('_', '-')}: {getattr(options, key)} must be 1 or more")
    return options


if __name__ == "__main__":
    main()
