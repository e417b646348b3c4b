"""Continues a real video with a model: its own frames as context, then the prediction, as a video file.

    python tools/predict.py VIDEO -n 120 --out out.mp4            the newest run under runs/
    python tools/predict.py VIDEO -n 40 --trajectories 4          four futures side by side
    python tools/predict.py VIDEO --interpolate 3                 three new frames between each two
    python tools/predict.py VIDEO -n 400 --rollout keyframes --stabilization 0.05
    python tools/predict.py VIDEO --class walking                 under a condition, for models that take it
    python tools/predict.py VIDEO --text "a red car" --condition-guidance 3
    python tools/predict.py VIDEO -n 40 --actions steps.csv       a row for each context frame, then for each new one

Above the predictions: the true continuation, as far as the file has it. Context frames have a green border, predicted
ones an orange one. Frame rate and size are those of the model's clips of this video.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Iterator

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # works where vidpred is cloned but not installed

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm import tqdm  # noqa: E402

from vidpred.assembly import open_subject  # noqa: E402
from vidpred.conditioning import require_trained_histories  # noqa: E402
from vidpred.conditions import ConditionBatch  # noqa: E402
from vidpred.data import ClipError, read_actions  # noqa: E402
from vidpred.diagnosis import Subject, video_clip  # noqa: E402
from vidpred.diffusion import SAMPLERS  # noqa: E402
from vidpred.errors import UserError, door, require  # noqa: E402
from vidpred.prediction import RolloutOptions  # noqa: E402
from vidpred.video_io import trajectory_video, write_png  # noqa: E402


@door
def main() -> int:
    options = _options()
    subject = open_subject(options.checkpoint, REPOSITORY / "configs" / "quickstart.yaml", options.device)
    predictor = subject.predictor
    _apply(options, subject)
    print(f"model: {subject.title}", flush=True)
    if options.interpolate:
        moments, fps = _interpolation(options, subject)
    else:
        moments, fps = _continuation(options, subject)
    out = options.out or Path(f"{options.video.stem}_{'interpolated' if options.interpolate else 'predicted'}.mp4")
    with trajectory_video(out, fps) as write:
        for time, (given, truth, frames) in enumerate(moments):
            write(frames, given, truth)
            if options.save_frames:
                for number, frame in enumerate(frames):
                    write_png(options.save_frames / f"trajectory_{number}" / f"{time:06d}.png", frame)
    print(f"video: {out} ({fps:.4g} frames per second)")
    return 0


def _continuation(options: argparse.Namespace, subject: Subject) -> tuple[Iterator, float]:
    """Moments (given, truth or None, frames (N, 3, H, W)) of the context and then of the prediction; their rate."""
    predictor, count = subject.predictor, options.num_frames
    clip, fps = video_clip(subject, options.video, predictor.context_frames + count, options.start)
    context, truth = clip.frames[0].tensor_split([predictor.context_frames])
    rollout = RolloutOptions(options.rollout, options.overlap, options.stabilization, options.stride)
    condition = _condition(options, len(context) + count)
    predictor.condition(condition, 1, len(context) + count)  # what the model does not take is refused now

    def moments() -> Iterator[tuple[bool, Tensor | None, Tensor]]:
        for frame in context:
            yield True, frame, frame.expand(options.trajectories, -1, -1, -1)
        pieces = predictor.rollout(
            context, count, options.seed, condition=condition, trajectories=options.trajectories, options=rollout
        )
        done = 0
        with tqdm(total=count, desc="predicting", unit="frame") as bar:
            for piece in pieces:
                for frames in piece.unbind(1):
                    yield False, truth[done] if done < len(truth) else None, frames
                    done += 1
                bar.update(done - bar.n)

    return moments(), fps


def _interpolation(options: argparse.Namespace, subject: Subject) -> tuple[Iterator, float]:
    """The same for the frames of the video and `--interpolate` new ones between each two."""
    steps = options.interpolate + 1
    clip, fps = video_clip(subject, options.video, options.num_frames, options.start)
    known = clip.frames[0]
    given = torch.zeros(steps + 1, dtype=torch.bool)
    given[[0, -1]] = True
    times = torch.arange(steps + 1) / steps  # of frame intervals, as the model knows them
    require(options.actions is None, "--actions: frames between two others have none; leave it out")
    condition = _condition(options, len(times))
    subject.predictor.condition(condition, 1, len(times))

    def moments() -> Iterator[tuple[bool, Tensor | None, Tensor]]:
        yield True, None, known[0].expand(options.trajectories, -1, -1, -1)
        for place in tqdm(range(len(known) - 1), desc="interpolating", unit="gap"):
            ends = known[place : place + 2]
            frames = ends[:1].repeat(steps + 1, 1, 1, 1)
            frames[-1] = ends[1]
            filled = subject.predictor.fill(
                frames, given, options.seed, frame_times=times, condition=condition, trajectories=options.trajectories,
                draws=torch.tensor([place]),
            )  # fmt: skip
            for time in range(1, steps + 1):
                yield time == steps, None, filled[:, time]

    return moments(), fps * steps


def _condition(options: argparse.Namespace, frames: int) -> ConditionBatch | None:
    """What is asked for, of one clip of so many frames; None where nothing is."""
    actions = None
    if options.actions is not None:
        try:
            actions = torch.from_numpy(read_actions(options.actions, frames))[None]
        except ClipError as error:
            raise UserError(f"--actions: {error}; the context frames come first, then those of -n") from error
    name, text = ([value] if value is not None else None for value in (options.class_name, options.text))
    asked = ConditionBatch(name, text, actions)
    return asked if asked.parts() else None


def _apply(options: argparse.Namespace, subject: Subject) -> None:
    """The sampling settings of the command line, checked as those of a configuration are."""
    predictor = subject.predictor
    sampling = predictor.sampling.overridden(options.sampler, options.steps)
    if options.guidance is not None:
        kind = "vanilla" if sampling.guidance.kind == "none" else sampling.guidance.kind
        guidance = dataclasses.replace(sampling.guidance, kind=kind, scale=options.guidance)
        hidden, noised = guidance.hides_history, guidance.noises_history
        require_trained_histories(subject.conditioning, f"--guidance {options.guidance:g}", hidden, noised)
        sampling = dataclasses.replace(sampling, guidance=guidance)
    predictor.sampling = sampling
    if options.condition_guidance is not None:
        require(
            options.class_name is not None or options.text is not None or options.actions is not None,
            "--condition-guidance: nothing is asked for; give --class, --text or --actions, or leave it out",
        )
        predictor.sampling = predictor.guided(options.condition_guidance)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("video", type=Path, metavar="VIDEO", help="a video file")
    parser.add_argument("-n", "--num-frames", type=int, default=40, help="frames to predict (40)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="mp4 to write (VIDEO_predicted.mp4)")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="run folder or checkpoint (the newest run)")
    parser.add_argument("--start", type=float, default=0.0, help="seconds into the video (0)")
    parser.add_argument("--trajectories", type=int, default=1, help="samples of the future (1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="sampling steps (the model's)")
    parser.add_argument("--sampler", choices=SAMPLERS, help="(the model's)")
    parser.add_argument("--guidance", type=float, metavar="SCALE", help="guidance on the history; 1 is none")
    parser.add_argument("--class", dest="class_name", metavar="NAME", help="the class to continue it as")
    parser.add_argument("--text", help="the text to continue it by")
    parser.add_argument("--actions", type=Path, metavar="FILE", help=".npy, .npz or .csv, a row per frame")
    parser.add_argument("--condition-guidance", type=float, metavar="SCALE", help="on class, text, actions; 1 is none")
    parser.add_argument("--rollout", choices=("sliding", "keyframes", "pyramid"), default="sliding")
    parser.add_argument("--overlap", type=int, help="known frames in every window (the model's context)")
    parser.add_argument("--stabilization", type=float, default=0.0, help="noise on predicted frames that are given (0)")
    parser.add_argument("--stride", type=int, default=4, help="keyframes: frames from one to the next (4)")
    parser.add_argument("--interpolate", type=int, default=0, metavar="K", help="K new frames between each two of -n")
    parser.add_argument("--save-frames", type=Path, metavar="DIR", help="also every frame as a PNG")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    options = parser.parse_args()
    for key, least in (("num_frames", 1), ("trajectories", 1), ("interpolate", 0), ("start", 0)):
        if getattr(options, key) < least:
            raise UserError(f"--{key.replace('_', '-')}: {getattr(options, key)} must be {least} or more")
    return options


if __name__ == "__main__":
    main()
