"""Draws from nothing but prompts, classes, or not even these, with a model that was trained without given frames.

    python tools/sample.py --prompts "a dog" "a cat" --count 4    four of each, one row per prompt
    python tools/sample.py --classes all --count 8                eight of each class
    python tools/sample.py --count 64                             whatever the model likes
    python tools/sample.py --prompts "a dog" --seeds 0 1 2 --guidance 7.5 --steps 50

Pictures become one PNG, clips a GIF and an MP4, with a row per prompt: in each row `count` samples of the first seed,
then of the next. A model that learnt to draw only the images of a mixture from nothing draws pictures. A sample depends
on its seed, its number and its prompt alone: columns share their noise, and more prompts or a larger batch change
nothing.
"""

import argparse
import sys
from pathlib import Path
from typing import Iterator, Optional

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # works where vidpred is cloned but not installed

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm import tqdm  # noqa: E402

from vidpred.assembly import open_subject  # noqa: E402
from vidpred.conditioning import generated_frames  # noqa: E402
from vidpred.conditions import ConditionBatch  # noqa: E402
from vidpred.diagnosis import Subject, results_folder  # noqa: E402
from vidpred.diffusion import SAMPLERS  # noqa: E402
from vidpred.errors import UserError, door, require  # noqa: E402
from vidpred.files import write_json  # noqa: E402
from vidpred.prediction import Predictor  # noqa: E402
from vidpred.video_io import save_clip_grid  # noqa: E402

FPS = 8.0  # of the moving pictures, as those that training makes


@door
def main() -> int:
    options = _options()
    subject = open_subject(options.checkpoint, REPOSITORY / "configs" / "quickstart.yaml", options.device)
    predictor = subject.predictor
    frames = _generated_frames(subject)
    _apply(options, predictor)
    words = _words(options, predictor)  # refused before the work begins
    folder = results_folder(options.out, subject.folder / "generated" / subject.name)
    print(f"model: {subject.title}", flush=True)
    columns = options.count * len(options.seeds)
    clips = torch.stack(list(_samples(options, subject, words, frames)))  # (rows * columns, T, 3, H, W)
    paths = save_clip_grid(folder, "samples", clips, FPS, columns=None if len(words) == 1 else columns)
    for row, clip in enumerate(clips if options.save_each else ()):
        paths += save_clip_grid(folder, f"row_{row // columns:03d}_column_{row % columns:03d}", clip[None], FPS)
    write_json(folder / "samples.json", _record(options, subject, words))
    print(f"{len(clips)} samples: {', '.join(str(path) for path in paths[:2])}, samples.json")
    return 0


def _samples(
    options: argparse.Namespace, subject: Subject, words: list[Optional[str]], frames: int
) -> Iterator[Tensor]:
    """Every sample (T, 3, H, W) uint8, T = `frames`, row by row."""
    wanted = [(word, seed, draw) for word in words for seed in options.seeds for draw in range(options.count)]
    made: dict[int, Tensor] = {}
    with tqdm(total=len(wanted), desc="sampling", unit="sample") as bar:
        for seed in options.seeds:  # of one seed as many at once as the batch holds, whatever their prompts
            places = [place for place, (_, own, _) in enumerate(wanted) if own == seed]
            for start in range(0, len(places), options.batch_size):
                some = places[start : start + options.batch_size]
                clips = subject.predictor.generate(
                    subject.data.height, subject.data.width, torch.tensor([wanted[place][2] for place in some]), seed,
                    condition=_condition(options, [wanted[place][0] for place in some]), num_frames=frames,
                )  # fmt: skip
                made |= dict(zip(some, clips))
                bar.update(len(some))
    return (made[place] for place in range(len(wanted)))


def _condition(options: argparse.Namespace, words: list[Optional[str]]) -> Optional[ConditionBatch]:
    if words[0] is None:
        return None
    return ConditionBatch(text=words) if options.prompts is not None else ConditionBatch(class_names=words)


def _words(options: argparse.Namespace, predictor: Predictor) -> list[Optional[str]]:
    """Prompts or class names, one per row; [None] asks for nothing."""
    if options.prompts is None and options.classes is None:
        return [None]
    flag, kind = ("--prompts", "text") if options.prompts is not None else ("--classes", "class")
    config = predictor.conditioner.config if predictor.conditioner else None
    require(
        config is not None and kind in config.kinds,
        f"{flag}: the model takes no {kind} (condition.kinds {list(config.kinds) if config else []}); leave {flag} out",
    )
    words = options.prompts or (config.class_names if options.classes == ["all"] else options.classes)
    predictor.condition(_condition(options, list(words)), len(words), predictor.num_frames)  # an unknown class
    return list(words)


def _generated_frames(subject: Subject) -> int:
    """Of the clips that the model learnt to draw from nothing, 1 for pictures."""
    data = subject.data
    frames = generated_frames(subject.conditioning, data.num_frames, getattr(data, "has_images", False))
    if not frames:
        raise UserError(
            f"conditioning.scheme {subject.conditioning.scheme}: this model was never trained without given frames, so "
            "it cannot draw from nothing; continue a video with tools/predict.py, or train with scheme unconditional"
        )
    return frames


def _apply(options: argparse.Namespace, predictor: Predictor) -> None:
    """The sampling settings of the command line, checked as those of a configuration are."""
    predictor.sampling = predictor.sampling.overridden(options.sampler, options.steps)
    if options.guidance is not None:
        require(
            options.prompts is not None or options.classes is not None,
            "--guidance: nothing is asked for; give --prompts or --classes, or leave it out",
        )
        predictor.sampling = predictor.guided(options.guidance)


def _record(options: argparse.Namespace, subject: Subject, words: list[Optional[str]]) -> dict:
    sampling = subject.predictor.sampling
    return {
        "model": subject.title,
        "rows": words,
        "columns": [{"seed": seed, "draw": draw} for seed in options.seeds for draw in range(options.count)],
        "sampler": sampling.sampler,
        "num_inference_steps": sampling.num_inference_steps,
        "condition_scale": sampling.guidance.condition_scale,
        "device": str(subject.predictor.device),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="run folder or checkpoint (the newest run)")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--prompts", nargs="+", metavar="TEXT", help="texts; '' asks for nothing")
    asked.add_argument("--classes", nargs="+", metavar="NAME", help="class names, or all")
    parser.add_argument("--count", type=int, default=1, metavar="N", help="samples of each prompt and seed (1)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="one or several (0)")
    parser.add_argument("--guidance", type=float, metavar="SCALE", help="on the condition; 1 is none (the model's)")
    parser.add_argument("--steps", type=int, help="sampling steps (the model's)")
    parser.add_argument("--sampler", choices=SAMPLERS, help="(the model's)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="samples at once (16)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the files (the run's generated/)")
    parser.add_argument("--save-each", action="store_true", help="also every sample in a file of its own")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    options = parser.parse_args()
    for key in ("count", "batch_size"):
        require(getattr(options, key) >= 1, f"--{key.replace('_', '-')}: {getattr(options, key)} must be 1 or more")
    return options


if __name__ == "__main__":
    main()
