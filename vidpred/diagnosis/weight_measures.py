"""Weights, their average, and the course of the loss: what needs neither data nor a call of the network."""

import math
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from vidpred.diagnosis.curve import LossPoint
from vidpred.diagnosis.measurement import weight_figures
from vidpred.diagnosis.record import TrainingHistory, weight_sample
from vidpred.diagnosis.subject import Subject

SMALL = 1e-12


def weight_measures(subject: Subject) -> dict[str, float]:
    """`weights/*` and `ema/*`."""
    figures = weight_figures(subject.weights, subject.averaged, subject.ema_updates)
    found = {
        "weights/count": float(figures.count),
        "weights/not_finite": float(len(figures.not_finite)),
        "weights/norm": figures.raw_norm,
    }
    if figures.distance is not None:
        found |= {"ema/norm": figures.ema_norm, "ema/distance": figures.distance}
        found["ema/stuck"] = float(len(figures.stuck))
    if subject.ema_updates is not None:
        found["ema/updates"] = float(subject.ema_updates)
    if subject.history is not None:
        found |= _against_record(subject.weights, subject.averaged, subject.history)
    return found


def _against_record(
    weights: dict[str, Tensor], averaged: Optional[dict[str, Tensor]], history: TrainingHistory
) -> dict[str, float]:
    raw = weight_sample(weights)
    moved = _distance(raw, history.start)
    found = {
        "training/steps": float(history.step),
        "training/planned_steps": float(history.num_steps),
        "training/one_batch": float(history.one_batch),
        "ema/decay": history.ema_decay,
        "weights/moved": moved / max(_norm(history.start), SMALL),  # since the start, relative
        # Against what was trained when the checkpoint was written: 0 where nobody touched it.
        "weights/changed": _distance(raw, history.raw) / max(_norm(history.raw), SMALL),
        "weights/norm_over_recorded": _norm(raw) / max(_norm(history.raw), SMALL),
    }
    if averaged is not None:
        ema = weight_sample(averaged)
        found["ema/changed"] = _distance(ema, history.averaged) / max(_norm(history.averaged), SMALL)
        found["ema/norm_over_recorded"] = _norm(ema) / max(_norm(history.averaged), SMALL)
        # How far the average has come from the start, of the way that the weights have come.
        found["ema/moved_share"] = _distance(ema, history.start) / max(moved, SMALL)
    return found


def curve_measures(points: list[LossPoint]) -> dict[str, float]:
    """`curve/*`: the course of the loss over the last part of training."""
    if len(points) < 8:
        return {"curve/points": float(len(points))}
    steps, losses, rates = (np.array(values) for values in zip(*((p.step, p.loss, p.learning_rate) for p in points)))
    end = steps[-1]

    def mean(low: float, high: float) -> float:
        chosen = losses[(steps > low * end) & (steps <= high * end)]
        return float(np.exp(np.log(np.maximum(chosen, SMALL)).mean())) if len(chosen) else math.nan

    late, before, early = mean(0.8, 1.0), mean(0.5, 0.7), mean(0.25, 0.4)
    first = float(losses[: max(len(losses) // 50, 2)].mean())
    width = max(len(losses) // 50, 4)
    end_loss = float(np.log(np.maximum(losses[-width:], SMALL)).mean())
    return {
        "curve/points": float(len(points)),
        "curve/first": first,
        "curve/last": late,
        "curve/last_over_first": late / max(first, SMALL),
        # The last fiftieth against the least of as many points: what diverges at the very end shows here.
        "curve/last_over_least": math.exp(end_loss - _least(np.log(np.maximum(losses, SMALL)), width)),
        "curve/end": math.exp(end_loss),
        "curve/fall_late": 1 - late / max(before, SMALL),  # from 60 % to 90 % of the way
        "curve/fall_middle": 1 - late / max(early, SMALL),  # from a third to 90 % of the way
        "curve/rate_end_over_peak": float(rates[-1] / max(rates.max(), SMALL)),
    }


def _least(values: np.ndarray, width: int) -> float:
    """The least mean of `width` values in a row."""
    return float(np.convolve(values, np.ones(width) / width, mode="valid").min())


def _distance(a: Tensor, b: Tensor) -> float:
    return _norm(a - b) if a.shape == b.shape else math.nan


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values.double()))
