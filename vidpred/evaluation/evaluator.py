"""The evaluation: every rank predicts and scores its share of the clips, and all know the whole result."""

from typing import Optional

from tqdm import tqdm

from vidpred.data import ClipDataset, evaluation_batches, evenly_spaced_clips, require_half
from vidpred.data.evaluation_batches import EvaluationBatches, clip_name
from vidpred.distributed import gather_or_fail, is_main, shard
from vidpred.errors import UserError
from vidpred.evaluation.config import EvaluationConfig
from vidpred.evaluation.judge import Judge
from vidpred.evaluation.protocol import protocol_of
from vidpred.evaluation.records import ClipScores
from vidpred.evaluation.results import Evaluation
from vidpred.evaluation.scoring import Trial, score_batch
from vidpred.evaluation.video_distance import VideoDistance
from vidpred.frame_roles import FrameRoles
from vidpred.prediction import Predictor


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
    num_inference_steps: Optional[int] = None,
    num_workers: int = 1,
    timeout: float = 60.0,
) -> Evaluation:
    """Predicts clips of `dataset` and scores them; every rank must call it, and every rank gets the result.

    Args:
        frame_roles: of clips of T frames, such as `config.task` means; see `conditioning.evaluation_roles`.
        seed: what is drawn for a clip is a function of (seed, number of the clip in the split, trajectory).
        trajectories: predictions of each clip. The figures are the first one's, which is the same however
            many there are; the best of all of them is one more row, and CRPS, diversity and spread over skill
            are of all of them. Unconditional generation has no truth to compare them with: it draws one.
        step, ema, split: of the weights and the clips, for the protocol only.
        num_inference_steps: the predictor's configured number where None.
        num_workers, timeout: processes that decode on each rank, and seconds after which a decoder hangs.
    Raises:
        UserError: an empty split, other roles, more than half of the clips unreadable (fewer are
            left out and named in the protocol), or a prediction that is not finite (the clip is named); on
            all ranks, whichever met it.
    """
    if trajectories < 1:
        raise UserError(f"trajectories: {trajectories} must be 1 or more")
    count = 1 if config.task == "unconditional" else trajectories
    trial = Trial(predictor, config.task, seed, count, num_inference_steps, split, step, ema)
    numbers = evenly_spaced_clips(dataset, config.num_clips)
    if not numbers:
        raise UserError("evaluation: the split holds no clip; see data_report.json, or change the split")
    mine = [numbers[i] for i in shard(len(numbers))]
    batches = evaluation_batches(
        dataset, mine, config.batch_size, frame_roles, seed=seed, num_workers=num_workers, timeout=timeout
    )
    judge, pictured = Judge(config, predictor.device), set(numbers[: config.num_panels])
    distance = VideoDistance(numbers)
    shares = gather_or_fail(
        # In this order: what was dropped, and why there is no LPIPS, is known after the scoring.
        lambda: (
            _score_share(trial, batches, len(mine), judge, pictured, distance),
            batches.dropped,
            judge.lpips_reason,
        )
    )
    reasons = [reason for _, _, reason in shares if reason]
    if reasons:
        judge.withdraw_lpips(reasons[0])
    dropped = {number: line for _, share, _ in shares for number, line in share.items()}
    records = sorted((record for share, _, _ in shares for record in share), key=lambda record: record.index)
    require_half(len(records), dropped, dataset)
    if len({(record.context_frames, record.predicted_frames) for record in records}) > 1:
        raise UserError(f"evaluation: {config.task} needs as many given and unknown frames in every clip")
    left_out = [clip_name(dataset, number) for number in sorted(dropped)]
    protocol = protocol_of(trial, dataset, records, judge, left_out)
    return Evaluation(protocol, records, judge.lpips_reason, distance.result())


def _score_share(
    trial: Trial,
    batches: EvaluationBatches,
    total: int,
    judge: Judge,
    pictured: set[int],
    distance: VideoDistance,
) -> list[ClipScores]:
    """Scores of this rank's clips, of which there are `total`; frames are kept of those in `pictured`."""
    records: list[ClipScores] = []
    with tqdm(total=total, desc="evaluation", unit="clip", disable=not is_main(), leave=False) as bar:
        for batch, valid in batches:
            scored = score_batch(trial, batch, int(valid.sum()), judge, pictured)
            distance.absorb(scored)
            records += scored
            bar.update(len(records) - bar.n)
    return records

