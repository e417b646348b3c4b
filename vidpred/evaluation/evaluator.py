"""The evaluation: every rank predicts and scores its share of the clips, and all know the whole result."""

import contextlib
import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional, Sequence

import torch
from tqdm import tqdm

from vidpred.data import ClipBatch, ClipDataset, evaluation_batches, evenly_spaced_clips
from vidpred.data.evaluation_batches import EvaluationBatches, clip_name
from vidpred.distributed import all_reduce_sum, broadcast_object, gather_objects, is_main, shard, world_size
from vidpred.errors import UserError
from vidpred.evaluation.config import EvaluationConfig
from vidpred.evaluation.judge import Judge
from vidpred.evaluation.protocol import clips_of, content_sha256, protocol_of
from vidpred.evaluation.provenance import run_of
from vidpred.evaluation.records import ClipScores
from vidpred.evaluation.results import Evaluation
from vidpred.evaluation.scoring import Trial, score_batch
from vidpred.evaluation.unfinished import UnfinishedEvaluation
from vidpred.evaluation.video_distance import VideoDistance
from vidpred.frame_roles import FrameRoles
from vidpred.prediction import Predictor

logger = logging.getLogger(__name__)


class BadClipsError(UserError):
    """Clips that cannot be read, or whose prediction is none; the line names them."""


class EvaluationStopped(Exception):
    """Stopped by request between two batches; what is scored lies beside the result."""


def evaluate(
    predictor: Predictor,
    dataset: ClipDataset,
    config: EvaluationConfig,
    frame_roles: FrameRoles,
    *,
    seed: int,
    trajectories: int = 1,
    step: Optional[int] = None,
    ema: Optional[bool] = None,
    split: Optional[str] = None,
    checkpoint: Optional[str] = None,
    chosen: Optional[str] = None,
    num_inference_steps: Optional[int] = None,
    num_workers: int = 1,
    timeout: float = 60.0,
    result: Optional[Path] = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Predicts clips of `dataset` and scores them; every rank must call it, and every rank gets the result.

    Args:
        frame_roles: of clips of T frames, such as `config.task` means; see `conditioning.evaluation_roles`.
        seed: what is drawn for a clip is a function of (seed, number of the clip in the split, trajectory).
        trajectories: predictions of each clip. The figures are the first one's, which is the same however
            many there are; the best of all of them is one more row, and CRPS, diversity and spread over skill
            are of all of them. Unconditional generation has no truth to compare them with: it draws one.
        step, ema, split, checkpoint, chosen: of the weights and the clips, for the record only; the path of
            the weights, and how they were chosen.
        num_inference_steps: the predictor's configured number where None.
        num_workers, timeout: processes that decode on each rank, and seconds after which a decoder hangs.
        result: the file that the result will be saved to. Beside it what is scored is kept meanwhile, and an
            evaluation with the same settings and weights goes on with it, also on other processes. None: no.
        stop_requested: asked after each batch; where it is true on any rank, all of them stop.
    Raises:
        BadClipsError: clips that cannot be read, or whose prediction or reconstruction is not finite or far
            out of range, unless `config.skip_bad`; all that are known at that moment are named.
        UserError: an empty split, other roles, or no clip that is left. All errors are raised on all ranks,
            whichever met them.
        EvaluationStopped: on request.
    """
    if trajectories < 1:
        raise UserError(f"trajectories: {trajectories} must be 1 or more")
    count = 1 if config.task == "unconditional" else trajectories
    trial = Trial(predictor, config.task, seed, count, num_inference_steps, split, step, ema, dataset.one_clip)
    numbers = evenly_spaced_clips(dataset, config.num_clips)
    if not numbers:
        raise UserError("evaluation: the split holds no clip; see data_report.json, or change the split")
    judge = Judge(config, predictor.device, config.fvd_weights)
    run = broadcast_object(run_of(trial, checkpoint, chosen) if is_main() else None)

    def batches_of(left: Sequence[int]) -> EvaluationBatches:
        mine = [left[i] for i in shard(len(left))]
        return evaluation_batches(
            dataset, mine, config.batch_size, frame_roles, seed=seed, num_workers=num_workers, timeout=timeout
        )

    pictured, distance = set(numbers[: config.num_panels]), VideoDistance(numbers)
    work = _Work(trial, judge, distance, config.batch_size, pictured, stop_requested)
    key = _key(protocol_of(trial, dataset, judge), run, config, predictor, numbers)
    whole = _score_all(work, batches_of, numbers, config.skip_bad, result, key)
    left_out = _conclude(whole, dataset, len(numbers), config)
    judge.fit(*whole.records[0].frame_size)  # where all were scored by an earlier start
    protocol = {**protocol_of(trial, dataset, judge), **clips_of(whole.records)}
    return Evaluation(protocol, whole.records, judge.lpips_reason, run, left_out, distance.result())


def _key(
    protocol: dict[str, Any],
    run: dict[str, Any],
    config: EvaluationConfig,
    predictor: Predictor,
    numbers: Sequence[int],
) -> dict[str, Any]:
    """All that a record depends on. Where the weights lie is none of it, their checksum is."""
    settings = dataclasses.asdict(config)
    del settings["skip_bad"]
    return {
        "protocol": protocol,
        "run": {name: value for name, value in run.items() if name not in ("checkpoint", "chosen")},
        "evaluation": settings,
        "context_frames": predictor.context_frames,
        "clips": list(numbers),
    }


# The work --------------------------------------------------------------------------------------------------


@dataclass
class _Share:
    """What a rank, or all of them, came to: scores, bad clips (number -> reason), an error that was met."""

    records: list[ClipScores] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)
    failure: Optional[str] = None
    stopped: bool = False


@dataclass(frozen=True)
class _Work:
    """How batches are scored; frames are kept of clips in `pictured`, features in `distance` alone."""

    trial: Trial
    judge: Judge
    distance: VideoDistance
    batch_size: int
    pictured: set[int]
    stop_requested: Callable[[], bool]

    def score(self, batch: ClipBatch, valid: torch.Tensor) -> list[ClipScores]:
        """Of the valid clips that can be scored; the others are in `trial.faults`."""
        count = int(valid.sum())
        scored = score_batch(self.trial, batch, count, self.judge, self.pictured)
        told = self.trial.predictor.conditions_of(batch)
        contents = {
            number: content_sha256(batch.frames[row].numpy(), told and told.rows([row]))
            for row, number in enumerate(batch.draws[:count].tolist())
        }
        records = [record for record in scored if record.index not in self.trial.faults]
        for record in records:
            record.content = contents[record.index]
        return records


def _score_all(
    work: _Work,
    batches_of: Callable[[Sequence[int]], EvaluationBatches],
    numbers: Sequence[int],
    skip_bad: bool,
    result: Optional[Path],
    key: dict[str, Any],
) -> _Share:
    """The shares of all ranks as one, on each of them, with what earlier starts left beside `result`."""
    with contextlib.ExitStack() as stack:
        known: list[ClipScores] = []
        keep: Callable[[Sequence[ClipScores]], None] = lambda records: None
        if result is not None:
            unfinished = stack.enter_context(contextlib.closing(UnfinishedEvaluation(result, key)))
            known, keep = unfinished.read(), unfinished.append
        work.distance.absorb(known if is_main() else [])  # all ranks hold them
        for record in known:
            record.features = None
        done = {record.index for record in known}
        left = [number for number in numbers if number not in done]
        if known:
            logger.info("evaluation: going on, %d of %d clips are scored", len(known), len(numbers))
        # Of the clips of all ranks; what is left is estimated from those that are scored now.
        bar = stack.enter_context(
            tqdm(
                total=len(numbers), initial=len(known), desc="evaluation", unit="clip",
                disable=not is_main(), leave=False,
            )
        )  # fmt: skip
        rounds = -(-len(left) // (world_size() * work.batch_size))
        shares = gather_objects(_score_share(work, batches_of(left), rounds, skip_bad, keep, bar))
    records = [*known, *(record for share in shares for record in share.records)]
    return _Share(
        sorted(records, key=lambda record: record.index),
        {number: reason for share in shares for number, reason in share.bad.items()},
        next((share.failure for share in shares if share.failure), None),
        shares[0].stopped,
    )


def _score_share(
    work: _Work,
    batches: EvaluationBatches,
    rounds: int,
    skip_bad: bool,
    keep: Callable[[Sequence[ClipScores]], None],
    bar: tqdm,
) -> _Share:
    """Scores batch after batch, as many rounds on each rank; after each, all agree on whether to go on."""
    share = _Share()
    with contextlib.closing(iter(batches)) as source:
        for _ in range(rounds):
            fresh: list[ClipScores] = []
            before = len(share.bad)
            try:
                following = next(source, None)  # None: none of those that were left could be read
                fresh = work.score(*following) if following else []
                keep(fresh)  # with their features, which are taken out of them now
                work.distance.absorb(fresh)
            except UserError as error:
                share.failure = str(error)
            share.records += fresh
            share.bad = {**batches.dropped, **work.trial.faults}
            fails = share.failure is not None or (bool(share.bad) and not skip_bad)
            passed = len(fresh) + len(share.bad) - before
            told = torch.tensor([fails, work.stop_requested(), passed], dtype=torch.int64)
            failed, stopped, passed = all_reduce_sum(told).tolist()
            bar.update(passed)
            share.stopped = bool(stopped)
            if failed or stopped:
                break
    return share


def _conclude(
    whole: _Share, dataset: ClipDataset, total: int, config: EvaluationConfig
) -> list[dict[str, Any]]:
    """The clips that are left out of a result. Raises where there is none."""
    if whole.failure:
        raise UserError(whole.failure)
    left_out = []
    for number in sorted(whole.bad):
        name = clip_name(dataset, number)
        reason = whole.bad[number].removeprefix(f"{name}: ")
        left_out.append({"index": number, "name": name, "reason": reason})
    lines = "; ".join(f"'{bad['name']}' (index {bad['index']}): {bad['reason']}" for bad in left_out)
    if left_out and not config.skip_bad:
        known = len(left_out) + len(whole.records)
        raise BadClipsError(
            f"evaluation: {len(left_out)} of the first {known} clips are bad: {lines}; repair the files (for "
            "wrong values: an earlier checkpoint, full precision), or leave bad clips out, counted: "
            "evaluation.skip_bad true, --skip-bad"
        )
    if whole.stopped and len(whole.records) + len(left_out) < total:
        raise EvaluationStopped(f"{len(whole.records)} of {total} clips are scored")
    if not whole.records:
        raise UserError(f"evaluation: no clip is left to be scored: {lines}; repair the files or the model")
    shapes = {(record.context_frames, record.predicted_frames) for record in whole.records}
    if len(shapes) > 1:
        raise UserError(f"evaluation: {config.task} needs as many given and unknown frames in every clip")
    return left_out
