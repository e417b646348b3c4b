"""The order of draws, the loader's recovery from bad items, and evaluation's batches."""

import itertools
import logging
import os
import signal
import time

import numpy as np
import pytest
import torch
from data_fixtures import Trouble, TroubleConfig

from vidpred.data import evaluation_batches, training_loader
from vidpred.data.draws import DrawOrder, micro_batches
from vidpred.errors import UserError


def first_two(generator, frames):
    return np.arange(frames) < 2


def random_mask(generator, frames):
    return np.arange(frames) < int(generator.integers(1, frames))


def make_loader(dataset, **changes):
    options = dict(
        seed=3,
        global_batch=4,
        accumulation=1,
        first_step=0,
        given_mask=random_mask,
        num_workers=1,
        timeout=30.0,
        device_type="cpu",
    )
    return training_loader(dataset, **{**options, **changes})


def take(loader, count):
    batches = list(itertools.islice(loader, count))
    loader.close()
    return batches


def as_rank(monkeypatch, rank, world):
    monkeypatch.setattr("vidpred.distributed.rank", lambda: rank)
    monkeypatch.setattr("vidpred.distributed.world_size", lambda: world)


def test_every_epoch_shows_every_item_once_in_another_order():
    order = DrawOrder(seed=0, items=10)
    items = [next(order.candidates(draw)) for draw in range(30)]
    epochs = [items[0:10], items[10:20], items[20:30]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [next(DrawOrder(1, 10).candidates(draw)) for draw in range(10)] != epochs[0]


def test_candidates_go_on_to_the_next_of_the_order():
    order = DrawOrder(seed=0, items=5)
    first = [next(order.candidates(draw)) for draw in range(5)]
    assert list(order.candidates(3)) == first[3:] + first[:3]


def test_micro_batches_divide_the_global_batch():
    def steps(rank, world, accumulation):
        return list(itertools.islice(micro_batches(5, 8, accumulation, rank, world), 2 * accumulation))

    assert steps(0, 1, 1) == [list(range(40, 48)), list(range(48, 56))]
    assert steps(0, 2, 2) == [[40, 41], [42, 43], [48, 49], [50, 51]]
    assert steps(1, 2, 2) == [[44, 45], [46, 47], [52, 53], [54, 55]]
    with pytest.raises(UserError, match="training.batch_size: 9 clips .* multiple of 4"):
        micro_batches(0, 9, 2, 0, 2)


def test_one_process_of_eight_sees_what_two_of_four_see(monkeypatch):
    dataset = Trouble(TroubleConfig(items=13, fails=5))

    def content(loader, steps):
        return [
            (int(draw), name, given.tolist(), times.tolist())
            for batch in take(loader, steps)
            for draw, name, given, times in zip(batch.draws, batch.names, batch.given, batch.frame_times)
        ]

    whole = content(make_loader(dataset, global_batch=8, num_workers=0), 6)
    parts = []
    for rank in range(2):
        as_rank(monkeypatch, rank, 2)
        parts += content(make_loader(dataset, global_batch=8, accumulation=2, num_workers=2), 12)
    assert sorted(parts) == whole
    assert [draw for draw, *_ in whole] == list(range(48))
    assert len({tuple(given) for *_, given, _ in whole}) > 1 and all(
        name != "item 5" for _, name, *_ in whole
    )


def test_starting_later_is_the_same_as_having_gone_on():
    dataset = Trouble(TroubleConfig())
    straight = take(make_loader(dataset, accumulation=2), 10)
    resumed = take(make_loader(dataset, accumulation=2, first_step=3, num_workers=2), 4)
    for one, other in zip(straight[6:], resumed):
        assert one.names == other.names and torch.equal(one.draws, other.draws)
        assert torch.equal(one.frames, other.frames) and torch.equal(one.frame_times, other.frame_times)


def test_repeated_draws_show_the_same_clips_with_new_noise():
    batches = take(make_loader(Trouble(TroubleConfig()), repeat_draws=4), 3)
    assert all(batch.names == batches[0].names for batch in batches)
    assert all(torch.equal(batch.given, batches[0].given) for batch in batches)
    assert all(torch.equal(batch.frame_times, batches[0].frame_times) for batch in batches)
    assert [batch.draws.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def expected_names(items, bad, steps):
    """The names that the contract's order gives, without any loader."""
    order = DrawOrder(3, items)
    draws = (next(item for item in order.candidates(draw) if item != bad) for draw in range(4 * steps))
    return [f"item {item}" for item in draws]


@pytest.mark.parametrize("trouble", ["hangs", "dies", "fails"])
def test_a_bad_item_costs_itself_and_is_recorded(trouble, caplog):
    dataset = Trouble(TroubleConfig(items=12, **{trouble: 7}))
    loader = make_loader(dataset, num_workers=2, timeout=1.0)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        batches = take(loader, 9)  # Three epochs.
    assert time.monotonic() - began < 60
    assert [name for batch in batches for name in batch.names] == expected_names(12, 7, 9)
    reasons = {"hangs": "hung", "dies": "died (exit code 3)", "fails": "is damaged"}
    assert list(loader.quarantined) == ["item 7"] and reasons[trouble] in loader.quarantined["item 7"]
    assert len([record for record in caplog.records if "quarantined item 7" in record.message]) == 1


def test_items_quarantined_before_are_never_touched():
    dataset = Trouble(TroubleConfig(items=12, hangs=7))
    loader = make_loader(dataset, timeout=300.0)
    loader.quarantine({"item 7": "hung", "item of another time": "hung"})
    assert [name for batch in take(loader, 6) for name in batch.names] == expected_names(12, 7, 6)
    assert loader.quarantined == {"item 7": "hung"}


def test_a_fault_of_the_program_is_not_taken_for_bad_data():
    class Broken(Trouble):
        def clip(self, index, generator):
            raise TypeError("a bug")

    loader = make_loader(Broken(TroubleConfig()))
    with pytest.raises(TypeError, match="a bug"):
        next(loader)
    loader.close()


def test_when_most_items_fail_the_run_ends():
    class Gone(Trouble):
        def clip(self, index, generator):
            raise OSError("disk gone")

    with pytest.raises(UserError, match="no item|items of trouble failed"):
        next(make_loader(Gone(TroubleConfig()), num_workers=0))


def test_workers_outlive_the_signals_of_the_process_group():
    loader = make_loader(Trouble(TroubleConfig()), num_workers=2)
    first = next(loader)
    for process in loader._crew._processes:
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGINT)
    rest = take(loader, 8)
    names = [name for batch in [first, *rest] for name in batch.names]
    assert names == expected_names(12, -1, 9) and not loader.quarantined


def test_a_worker_killed_once_from_outside_blames_nobody():
    loader = make_loader(Trouble(TroubleConfig()), num_workers=1)
    first = next(loader)
    os.kill(loader._crew._processes[0].pid, signal.SIGKILL)
    rest = take(loader, 8)
    names = [name for batch in [first, *rest] for name in batch.names]
    assert names == expected_names(12, -1, 9) and not loader.quarantined


def test_a_dead_worker_never_interrupts_the_training_step():
    loader = make_loader(Trouble(TroubleConfig(dies=7)), num_workers=1)
    next(loader)
    time.sleep(1.0)  # The worker dies while the main thread is elsewhere.
    take(loader, 2)


def test_evaluation_batches_have_one_shape_and_mask_the_padding():
    dataset = Trouble(TroubleConfig())
    batches = list(evaluation_batches(dataset, [1, 4, 7, 10, 11], 3, first_two))
    assert [batch.frames.shape[0] for batch, _ in batches] == [3, 3]
    assert [batch.draws.tolist() for batch, _ in batches] == [[1, 4, 7], [10, 11, 10]]
    assert [valid.tolist() for _, valid in batches] == [[True] * 3, [True, True, False]]
    assert batches[0][0].frames[:, 0, 0, 0, 0].tolist() == [1, 4, 7]
    assert list(evaluation_batches(dataset, [], 3, first_two)) == []


@pytest.mark.parametrize("trouble", ["hangs", "dies", "fails"])
def test_evaluation_names_the_file_that_stops_it(trouble):
    dataset = Trouble(TroubleConfig(**{trouble: 4}))
    with pytest.raises(UserError, match="item 4"):
        list(evaluation_batches(dataset, range(6), 2, first_two, timeout=1.0))
