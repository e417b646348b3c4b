"""The evaluation: every rank predicts and scores its share of the clips, and all know the whole result."""

from typing import Callable, Iterator, Optional

import numpy as np
from torch import Tensor
from tqdm import tqdm

from vidpred.data import ClipBatch, ClipDataset, evaluation_batches
from vidpred.distributed import gather_objects, is_main, shard
from vidpred.errors import UserError
from vidpred.evaluation.config import EvaluationConfig
from vidpred.evaluation.protocol import protocol_of
from vidpred.evaluation.records import ClipScores
from vidpred.evaluation.results import Evaluation
from vidpred.evaluation.scoring import Judge, Trial, score_batch
from vidpred.prediction import Predictor

GivenMask = Callable[[np.random.Generator, int], np.ndarray]


def evaluate(
    predictor: Predictor,
    dataset: ClipDataset,
    config: EvaluationConfig,
    given_mask: GivenMask,
    *,
    seed: int,
    step: Optional[int] = None,
    ema: Optional[bool] = None,
    num_inference_steps: Optional[int] = None,
    num_workers: int = 1,
    timeout: float = 60.0,
) -> Evaluation:
    """Predicts clips of `dataset` and scores them; every rank must call it, and every rank gets the result.

    Args:
        given_mask: the mask of clips of T frames; it must give the first K and nothing else.
        seed: one trajectory per clip is drawn, a function of (seed, index of the clip in the split).
        step, ema: of the weights, for the protocol only.
        num_inference_steps: the predictor's configured number where None.
        num_workers, timeout: processes that decode on each rank, and seconds after which a decoder hangs.
    Raises:
        UserError: an empty split, another kind of mask, a clip that cannot be read, or a prediction that is
            not finite (the clip is named); on all ranks, whichever met it.
    """
    trial = Trial(predictor, seed, num_inference_steps, step, ema)
    indices = choose_clips(len(dataset), config.num_clips)
    mine = [indices[i] for i in shard(len(indices))]
    batches = evaluation_batches(
        dataset, mine, config.batch_size, given_mask, seed=seed, num_workers=num_workers, timeout=timeout
    )
    judge = Judge(config, predictor.device)
    records, failure = [], None
    try:
        records = _score_share(trial, batches, len(mine), judge, set(indices[: config.num_panels]))
    except UserError as error:
        failure = str(error)  # raised below, by all ranks: the others would wait for this one
    records = _gather(records, failure, judge)
    return Evaluation(protocol_of(trial, dataset, records, judge), records, judge.lpips_reason)


def choose_clips(available: int, wanted: int) -> list[int]:
    """`wanted` indices evenly spaced over 0 .. available - 1, or all of them."""
    if available == 0:
        raise UserError("evaluation: the split holds no clip; see data_report.json, or change the split")
    count = min(wanted, available)
    return [i * available // count for i in range(count)]


def _score_share(
    trial: Trial,
    batches: Iterator[tuple[ClipBatch, Tensor]],
    total: int,
    judge: Judge,
    pictured: set[int],
) -> list[ClipScores]:
    """Scores of this rank's clips, of which there are `total`; frames are kept of those in `pictured`."""
    records: list[ClipScores] = []
    with tqdm(total=total, desc="evaluation", unit="clip", disable=not is_main(), leave=False) as bar:
        for batch, valid in batches:
            records += score_batch(trial, batch, int(valid.sum()), judge, pictured)
            bar.update(len(records) - bar.n)
    return records


def _gather(records: list[ClipScores], failure: Optional[str], judge: Judge) -> list[ClipScores]:
    """All ranks' records in clip order; a failure of any rank, or a missing LPIPS, becomes that of all."""
    shares = gather_objects((records, failure, judge.lpips_reason))
    failures = [failure for _, failure, _ in shares if failure]
    if failures:
        raise UserError(failures[0])
    reasons = [reason for _, _, reason in shares if reason]
    if reasons:
        judge.withdraw_lpips(reasons[0])
    return sorted((record for share, _, _ in shares for record in share), key=lambda record: record.index)
