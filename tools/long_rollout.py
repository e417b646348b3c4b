"""How a model behaves when it is rolled out far beyond the clips that it was trained on.

    python tools/long_rollout.py                                  the newest run under runs/, 20 windows
    python tools/long_rollout.py --rollout sliding keyframes --stabilization 0 0.05 0.1
    python tools/long_rollout.py --video FILE --windows 20        continues one video; the truth as far as it goes

A window is as many new frames as a training clip has after its context, or --window-frames. By window: PSNR beside
the copy of the last context frame and the autoencoder's ceiling, motion over that of the truth, decoded values out of
range, memory; and of moving digits how many are still recognised, beside how many are in true frames and by chance.
Written: a table, and long_rollout.json, .png and .mp4. Exit code: 0, 1 when a value is not finite, 2 when it could not
be tried.
"""

import argparse
import dataclasses
import math
import sys
from pathlib import Path
from typing import Any, Optional

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # works where vidpred is cloned but not installed

import torch  # noqa: E402
from digit_classifier import trained_classifier  # noqa: E402
from digit_detector import DigitDetector  # noqa: E402
from rollout_figures import Behaviour, Digits, References, Scene, measure_references, roll_out  # noqa: E402
from rollout_report import lines, save_plot, save_video  # noqa: E402

from vidpred.assembly import open_subject  # noqa: E402
from vidpred.data import ClipBatch, MovingDigitsConfig, ShapesConfig, digit_tracks  # noqa: E402
from vidpred.diagnosis import Subject, results_folder, validation_clips, video_clip  # noqa: E402
from vidpred.errors import UserError, door, require  # noqa: E402
from vidpred.files import write_json  # noqa: E402
from vidpred.prediction import RolloutOptions  # noqa: E402

CLIPS_FPS = 8.0  # of the moving pictures, as those that training makes


@door
def main() -> int:
    options = _options()
    subject = open_subject(options.checkpoint, REPOSITORY / "configs" / "quickstart.yaml", options.device)
    ways = _ways(options, subject)
    folder = results_folder(options.out, subject.folder / "long_rollout" / subject.name)
    print(f"model: {subject.title}", flush=True)
    for note in _notes(subject, ways, options.video is not None):
        print(f"note: {note}", flush=True)
    scene, fps, names = _scene(options, subject)
    references = measure_references(scene)
    shape = (len(ways), scene.num_frames, *scene.context.shape[2:])
    shown = torch.ones(shape, dtype=torch.uint8)  # ones: the memory is taken now, not while it is measured
    behaviours = [roll_out(scene, way, references, frames) for way, frames in zip(ways, shown)]
    for line in lines(scene, references, behaviours):
        print(line)
    _save_json(folder / "long_rollout.json", options, subject, scene, references, behaviours, names)
    extent = f"{scene.windows} windows of {scene.window_frames} frames"
    title = f"{subject.title}: {len(names)} clip(s), {extent}"
    save_plot(folder / "long_rollout.png", title, scene, references, behaviours)
    save_video(folder / "long_rollout.mp4", scene, shown, fps)
    print(f"\nfiles: {folder}/long_rollout.json, .png, .mp4 ({names[0]}; from the left: "
          f"{'; '.join(behaviour.name for behaviour in behaviours)})")  # fmt: skip
    return 1 if any(behaviour.failure for behaviour in behaviours) else 0


def _ways(options: argparse.Namespace, subject: Subject) -> list[RolloutOptions]:
    """The ways of rolling out, and the sampling steps in the predictor; checked before the work begins."""
    predictor = subject.predictor
    if options.steps is not None:
        predictor.sampling = dataclasses.replace(predictor.sampling, num_inference_steps=options.steps)
    overlap = options.overlap or predictor.context_frames
    require(
        overlap < predictor.num_frames,
        f"--overlap: {overlap} leaves no frame to predict in windows of {predictor.num_frames}; lower it",
    )
    return [
        RolloutOptions(scheme, options.overlap, stabilization, options.stride)
        for scheme in dict.fromkeys(options.rollout)
        for stabilization in dict.fromkeys(options.stabilization)
    ]


def _notes(subject: Subject, ways: list[RolloutOptions], of_video: bool) -> list[str]:
    """What the model was not trained for, or is not told."""
    conditioning, notes = subject.conditioning, []
    if of_video and subject.predictor.conditioner is not None:
        notes.append("conditions withheld: a video comes without them, so the model is asked for nothing in particular")
    if any(way.stabilization for way in ways) and not conditioning.context_noise:
        notes.append("trained with conditioning.context_noise 0: does not know noisy context (stabilization)")
    if any(way.scheme == "pyramid" for way in ways) and "diffusion_forcing" not in conditioning.mixture():
        notes.append("trained without diffusion forcing: does not know frames of different levels (pyramid)")
    return notes


# What is rolled out ----------------------------------------------------------------------------------------


def _scene(options: argparse.Namespace, subject: Subject) -> tuple[Scene, float, list[str]]:
    """The scene, frames per second of its video, and the names of its clips."""
    predictor = subject.predictor
    context = predictor.context_frames
    window = options.window_frames or predictor.num_frames - context
    frames = context + options.windows * window
    if options.video:
        clips, fps = video_clip(subject, options.video, frames)
        digits = None
    else:
        subject = _with_long_clips(options, subject, frames)
        clips, fps = _clips(options, subject), CLIPS_FPS
        digits = _digits(subject, clips)
    given, truth = clips.frames.tensor_split([context], dim=1)
    told = predictor.conditions_of(clips)
    scene = Scene(predictor, given, truth, clips.draws, options.windows, window, options.seed, digits, told)
    return scene, fps, clips.names


def _with_long_clips(options: argparse.Namespace, subject: Subject, frames: int) -> Subject:
    """The subject with data of `frames` frames a clip. What is rendered is rendered as long as that, and no more clips
    than are wanted; of files, those that are too short are passed over."""
    data = subject.data
    changes: dict[str, Any] = {"num_frames": frames}
    if options.data_root is not None:
        require(hasattr(data, "root"), f"--data-root: data of kind {data.kind} have no root; leave it out")
        changes["root"] = str(options.data_root)
    if hasattr(data, "max_bad_fraction"):
        changes["max_bad_fraction"] = 1.0
    if isinstance(data, (ShapesConfig, MovingDigitsConfig)):
        few = min(options.clips, data.num_val_clips)
        changes |= {"num_clips": 1, "num_val_clips": few, "num_test_clips": 1}
    if isinstance(data, ShapesConfig):
        rate = data.frame_stride if data.fps is None else data.clip_fps / data.fps
        changes["clip_frames"] = max(data.clip_frames, math.ceil(frames * rate))
    return dataclasses.replace(subject, data=dataclasses.replace(data, **changes))


def _clips(options: argparse.Namespace, subject: Subject) -> ClipBatch:
    frames = subject.data.num_frames
    try:
        return validation_clips(subject, options.clips)
    except UserError as error:
        raise UserError(
            f"--windows {options.windows}: needs validation clips of {frames} frames ({error}); "
            "lower --windows, or give one long file with --video"
        ) from error


def _digits(subject: Subject, clips: ClipBatch) -> Optional[Digits]:
    """What moving digits the clips show and who recognises them; None where they show none."""
    data = subject.data
    if not isinstance(data, MovingDigitsConfig):
        return None
    try:
        tracks = [digit_tracks(data, "val", index) for index in clips.draws.tolist()]
    except UserError as reason:  # shapes took their place
        print(f"note: no digits are recognised ({reason})", flush=True)
        return None
    detector = DigitDetector(trained_classifier(data, subject.predictor.device), data.num_digits)
    return Digits.of_tracks(detector, tracks, subject.predictor.context_frames, data.side)


# Results ---------------------------------------------------------------------------------------------------


def _save_json(
    path: Path, options: argparse.Namespace, subject: Subject, scene: Scene, references: References,
    behaviours: list[Behaviour], names: list[str],
) -> None:  # fmt: skip
    sampling = subject.predictor.sampling
    report = {
        "protocol": {
            "model": subject.title, "video": options.video and str(options.video), "clips": names,
            "context_frames": subject.predictor.context_frames, "windows": scene.windows,
            "window_frames": scene.window_frames, "truth_frames": scene.truth.shape[1], "seed": scene.seed,
            "sampler": sampling.sampler, "num_inference_steps": sampling.num_inference_steps,
            "device": str(subject.predictor.device),
            "classifier_accuracy": scene.digits and scene.digits.detector.classifier.accuracy,
        },
        "references": references.to_json(),
        "rollouts": [behaviour.to_json() for behaviour in behaviours],
    }  # fmt: skip
    write_json(path, report)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="run or checkpoint (the newest run)")
    parser.add_argument("--windows", type=int, default=20, help="windows to predict (20)")
    parser.add_argument("--window-frames", type=int, metavar="N", help="of a line of the table (the model's windows)")
    parser.add_argument("--clips", type=int, default=16, metavar="N", help="validation clips (16)")
    parser.add_argument("--video", type=Path, metavar="FILE", help="continue this video instead")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="where the data are now (data.root)")
    schemes = ("sliding", "keyframes", "pyramid")
    parser.add_argument("--rollout", nargs="+", choices=schemes, default=["sliding"],
                        help="one or several (sliding)")
    parser.add_argument("--stabilization", nargs="+", type=float, default=[0.0, 0.05], metavar="NOISE",
                        help="noise on predicted frames that are given, one or several (0 0.05)")
    parser.add_argument("--overlap", type=int, help="known frames in every window (the model's context)")
    parser.add_argument("--stride", type=int, default=4, help="keyframes: frames from one to the next (4)")
    parser.add_argument("--steps", type=int, help="sampling steps (the model's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the results (the run's long_rollout/)")
    options = parser.parse_args()
    for key in ("windows", "window_frames", "clips"):
        value = getattr(options, key)
        require(value is None or value >= 1, f"--{key.replace('_', '-')}: {value} must be 1 or more")
    return options


if __name__ == "__main__":
    main()
