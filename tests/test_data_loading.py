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

from vidpred.data import (
    clip_numbers,
    evaluation_batches,
    evenly_spaced_clips,
    require_half,
    sample_clips,
    training_loader,
)
from vidpred.data.draws import DrawOrder, micro_batches
from vidpred.errors import UserError
from vidpred.frame_roles import GIVEN, UNKNOWN


def roles_of(given):
    return np.where(given, GIVEN, UNKNOWN)


def first_two(generator, frames):
    return roles_of(np.arange(frames) < 2)


def random_roles(generator, frames):
    return roles_of(np.arange(frames) < int(generator.integers(1, frames)))


def make_loader(dataset, **changes):
    options = dict(
        seed=3,
        global_batch=4,
        accumulation=1,
        first_step=0,
        frame_roles=random_roles,
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


@pytest.mark.parametrize("num_workers", [0, 1])
def test_pixels_keep_the_memory_order_of_decoders(num_workers):
    """Rearranged for each batch they would cost more than everything else in the loader."""
    (batch,) = take(make_loader(Trouble(TroubleConfig()), num_workers=num_workers), 1)
    for frames in (batch.frames, batch.to("cpu").frames):
        assert frames.shape[2] == 3 and frames.movedim(2, -1).is_contiguous()


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
    assert len(take(loader, 2)) == 2


def test_evaluation_batches_have_one_shape_and_mask_the_padding():
    dataset = Trouble(TroubleConfig())
    batches = list(evaluation_batches(dataset, [1, 4, 7, 10, 11], 3, first_two))
    assert [batch.frames.shape[0] for batch, _ in batches] == [3, 3]
    assert [batch.draws.tolist() for batch, _ in batches] == [[1, 4, 7], [10, 11, 10]]
    assert [valid.tolist() for _, valid in batches] == [[True] * 3, [True, True, False]]
    assert batches[0][0].frames[:, 0, 0, 0, 0].tolist() == [1, 4, 7]
    assert list(evaluation_batches(dataset, [], 3, first_two)) == []


@pytest.mark.parametrize("trouble", ["hangs", "dies", "fails"])
@pytest.mark.parametrize("batch_size, workers", [(2, 1), (3, 2)])
def test_evaluation_leaves_out_a_clip_that_cannot_be_read(trouble, batch_size, workers, caplog):
    dataset = Trouble(TroubleConfig(**{trouble: 4}))
    batches = evaluation_batches(
        dataset, range(6), batch_size, first_two, timeout=1.0, num_workers=workers
    )
    with caplog.at_level(logging.WARNING):
        read = [name for batch, valid in batches for name in batch.names[: int(valid.sum())]]
    assert read == ["item 0", "item 1", "item 2", "item 3", "item 5"]
    assert list(batches.dropped) == [4] and batches.dropped[4].startswith("item 4: ")
    assert len([record for record in caplog.records if "cannot read item 4" in record.message]) == 1


def test_a_batch_of_unreadable_clips_is_skipped():
    class Gone(Trouble):
        def clip(self, index, generator):
            if index < 2:
                raise OSError("gone")
            return super().clip(index, generator)

    batches = evaluation_batches(Gone(TroubleConfig()), range(4), 2, first_two, num_workers=0)
    assert [batch.draws.tolist() for batch, _ in batches] == [[2, 3]]
    require_half(2, batches.dropped, Gone(TroubleConfig()))
    with pytest.raises(UserError, match="2 of 3 fixed clips of trouble cannot be read .item 0: gone"):
        require_half(1, batches.dropped, Gone(TroubleConfig()))


class Windows(Trouble):
    """Item i has windows[i] fixed clips."""

    def __init__(self, *windows):
        super().__init__(TroubleConfig(items=len(windows)))
        self.windows = windows

    def num_windows(self, index):
        return self.windows[index]

    def fixed_clip(self, index, window):
        clip = self.clip(index, None)
        clip.frames[:] = 10 * window + index
        return clip


def test_fixed_clips_are_spread_over_items_and_over_their_windows():
    assert evenly_spaced_clips(Trouble(TroubleConfig(items=10)), 5) == [0, 2, 4, 6, 8]
    assert evenly_spaced_clips(Trouble(TroubleConfig(items=3)), 64) == [0, 1, 2]
    assert len(set(evenly_spaced_clips(Trouble(TroubleConfig(items=100)), 64))) == 64
    assert evenly_spaced_clips(Windows(9, 9, 9), 2) == [12, 13], "the middle window"
    numbers = evenly_spaced_clips(Windows(1, 100, 9), 9)
    assert [divmod(number, 3)[::-1] for number in numbers] == [
        (0, 0), (1, 12), (2, 1), (1, 37), (2, 3), (1, 62), (2, 5), (1, 87), (2, 7),
    ]
    dataset = Windows(1, 3)
    numbers = evenly_spaced_clips(dataset, 8)
    assert numbers == [0, 1, 3, 5]
    (batch, valid), = evaluation_batches(dataset, numbers, 4, first_two, num_workers=0)
    assert batch.frames[:, 0, 0, 0, 0].tolist() == [0, 1, 11, 21] and valid.all()
    assert batch.draws.tolist() == numbers and batch.names[:3] == [
        "item 0", "item 1 (window 1 of 3)", "item 1 (window 2 of 3)",
    ]
    assert clip_numbers(dataset, batch.names) == numbers
    assert clip_numbers(Windows(1, 3, 1), batch.names) == [0, 1, 4, 7], "one file more"
    assert clip_numbers(Windows(1, 2), [*batch.names, "item 9"]) == [0], "its windows begin elsewhere"


def test_sampled_clips_are_seeded_and_bad_items_are_replaced(monkeypatch):
    def names(batch_size, rank=0, world=1):
        as_rank(monkeypatch, rank, world)
        loader = sample_clips(
            Trouble(TroubleConfig(fails=7)), 15, seed=0, purpose="calibration", batch_size=batch_size,
            num_workers=0, timeout=30.0,
        )
        return [name for batch in loader for name in batch.names]

    one = names(4)
    assert len(one) == 15 and "item 7" not in one and len(set(one)) == 11
    assert [names(2, rank, 2) for rank in range(2)] == [one[0::2], one[1::2]]


def test_a_user_error_in_a_worker_stays_one_line():
    class Refusing(Trouble):
        def clip(self, index, generator):
            raise UserError("data: install the decoder")

    loader = make_loader(Refusing(TroubleConfig()))
    with pytest.raises(UserError) as caught:
        next(loader)
    loader.close()
    assert str(caught.value) == "data: install the decoder"


def test_workers_that_always_die_are_one_line():
    def dying_roles(generator, frames):  # not while an item is read: no item is to blame
        os._exit(7)

    loader = make_loader(Trouble(TroubleConfig()), frame_roles=dying_roles)
    with pytest.raises(UserError, match="die again and again .*exit code 7.*; lower data.num_workers.*/dev/shm"):
        next(loader)
