"""The learning rate, clipping, the skipped update and the moving average against their closed forms."""

import copy
import math

import pytest
import torch
from torch import nn

from vidpred.errors import UserError
from vidpred.training.ema import Ema, largest_difference, parameter_norm
from vidpred.training.optimization import LearningRate, Optimization
from vidpred.training.settings import TrainingConfig
from vidpred.training.verdicts import VerdictMail


def test_constant_rate_after_a_linear_warm_up():
    rate = LearningRate(peak=2e-4, schedule="constant", warmup_steps=4, num_steps=10)
    assert [rate(s) for s in range(6)] == pytest.approx([0.5e-4, 1e-4, 1.5e-4, 2e-4, 2e-4, 2e-4])
    assert LearningRate(peak=1.0)(0) == 1.0


def test_cosine_rate_falls_from_the_peak_to_the_floor_at_the_last_step():
    rate = LearningRate(peak=1e-3, schedule="cosine", warmup_steps=10, num_steps=111, floor=0.1)
    assert rate(9) == pytest.approx(1e-3)
    assert rate(10) == pytest.approx(1e-3)
    assert rate(60) == pytest.approx(1e-3 * 0.55)  # half way: the mean of peak and floor
    assert rate(35) == pytest.approx(1e-3 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))))
    assert rate(110) == pytest.approx(1e-4)
    assert rate(500) == pytest.approx(1e-4)  # past the end it stays there


def test_cosine_rate_equals_torch_cosine_annealing():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=49, eta_min=3e-6)
    rate = LearningRate(peak=3e-3, schedule="cosine", num_steps=50, floor=1e-3)
    for step in range(50):
        assert rate(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        schedule.step()


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 2))


def backward(network: nn.Module, scale: float = 1.0) -> torch.Tensor:
    loss = network(torch.linspace(-1, 1, 3 * 2 * 4 * 4).reshape(3, 2, 4, 4)).square().mean() * scale
    loss.backward()
    return loss.detach()


def optimization_of(network: nn.Module, **changes) -> Optimization:
    return Optimization(network, LearningRate(peak=1e-2), **changes)


def test_the_first_update_of_adamw_is_the_rate_times_the_sign():
    """With fresh moments AdamW moves every parameter by lr * g / (|g| + eps), whatever the clipping."""
    network = small_network()
    optimization = optimization_of(network, weight_decay=0.0, max_grad_norm=1e-3)
    before = [p.detach().clone() for p in network.parameters()]
    backward(network)
    gradients = [p.grad.clone() for p in network.parameters()]
    norm = optimization.gradient_norm()
    optimization.update(0, norm, torch.zeros(()))
    for old, new, gradient in zip(before, network.parameters(), gradients):
        clipped = gradient * (1e-3 / norm)
        torch.testing.assert_close(
            old - new.detach(), 1e-2 * clipped / (clipped.abs() + 1e-8), rtol=1e-3, atol=1e-6
        )


def test_gradient_norm_and_clipping():
    network = small_network()
    optimization = optimization_of(network, max_grad_norm=0.5)
    backward(network, 100.0)
    expected = torch.cat([p.grad.flatten() for p in network.parameters()]).norm()
    norm = optimization.gradient_norm()
    torch.testing.assert_close(norm, expected)
    reference = torch.optim.AdamW(small_network().parameters(), lr=1e-2)
    for p, q in zip(reference.param_groups[0]["params"], network.parameters()):
        p.grad = q.grad * (0.5 / expected)
    optimization.update(0, norm, torch.zeros(()))
    reference.step()
    moments = [entry["exp_avg"] for entry in optimization.state_dict()["state"].values()]
    wanted = {
        tuple(e["exp_avg"].shape): e["exp_avg"] for e in reference.state.values() if e["exp_avg"].ndim > 1
    }
    for moment in moments:
        if moment.ndim > 1:
            torch.testing.assert_close(moment, wanted[tuple(moment.shape)], rtol=1e-4, atol=1e-8)


def test_decay_spares_biases_and_scales():
    network = small_network()
    groups = optimization_of(network, weight_decay=0.3).state_dict()["param_groups"]
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.3, 2), (0.0, 4)]


def test_a_missing_gradient_is_named():
    with pytest.raises(RuntimeError, match="6 of 6 parameters received no gradient"):
        optimization_of(small_network()).gradient_norm()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["gradient", "loss"])
def test_a_non_finite_step_leaves_parameters_moments_and_counts_untouched(bad, where):
    network = small_network()
    optimization = optimization_of(network)
    mail = VerdictMail(torch.device("cpu"))

    def step(number: int, poisoned: bool):
        loss = backward(network)
        if poisoned and where == "gradient":
            network[0].weight.grad[0, 0, 0, 0] = bad
        if poisoned and where == "loss":
            loss = loss * bad
        norm = optimization.gradient_norm()
        found_inf, previous = mail.post(number, loss, norm, False)
        optimization.update(number, norm, found_inf)
        return previous

    assert step(0, False) is None
    weights = [p.detach().clone() for p in network.parameters()]
    moments = {k: {n: t.clone() for n, t in e.items()} for k, e in optimization.state_dict()["state"].items()}

    assert step(1, True).skipped is False  # the verdict of step 0 arrives with step 1
    for old, new in zip(weights, network.parameters()):
        assert torch.equal(old, new)
    for key, entries in optimization.state_dict()["state"].items():
        for name, value in entries.items():
            assert torch.equal(value, moments[key][name]), name

    verdict = step(2, False)
    assert verdict.skipped and verdict.step == 1
    assert not torch.equal(weights[0], network[0].weight)
    assert mail.collect().skipped is False and mail.collect() is None


def test_optimizer_state_moves_to_channels_last_kernels():
    """The fused kernel walks raw memory, so a restored moment must be laid out like its parameter."""
    networks = [small_network(), small_network()]
    networks[1].to(memory_format=torch.channels_last)
    assert networks[1][0].weight.stride() != networks[0][0].weight.stride()
    first = optimization_of(networks[0])
    backward(networks[0])
    first.update(0, first.gradient_norm(), torch.zeros(()))
    networks[1].load_state_dict(networks[0].state_dict())
    second = optimization_of(networks[1])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for network, optimization in zip(networks, (first, second)):
        backward(network)
        optimization.update(1, optimization.gradient_norm(), torch.zeros(()))
    for left, right in zip(networks[0].parameters(), networks[1].parameters()):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7)


def test_ema_warm_up_in_closed_form():
    """m after n updates with weights 1, 2, 3, ...: the recursion by hand."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 0.0)
    ema = Ema(network, decay=0.9)
    expected = 0.0
    for n in range(200):
        nn.init.constant_(network.weight, float(n + 1))
        decay = min(0.9, (1 + n) / (10 + n))
        assert ema.decay() == decay
        expected = decay * expected + (1 - decay) * (n + 1)
        ema.update(network)
    assert ema.network.weight.item() == pytest.approx(expected, rel=1e-5)
    assert ema.decay() == 0.9 and ema.updates == 200


def test_ema_of_constant_weights_stays_and_decay_zero_follows():
    network = small_network()
    ema, follower = Ema(network, 0.99), Ema(network, 0.0, warmup=False)
    for _ in range(5):
        ema.update(network)
    assert largest_difference(ema.network, network) == 0
    with torch.no_grad():
        network[0].weight.add_(1.0)
    follower.update(network)
    torch.testing.assert_close(follower.network[0].weight, network[0].weight)
    assert not any(p.requires_grad for p in ema.network.parameters()) and not ema.network.training


def test_ema_start_is_verified(caplog):
    network = small_network()
    ema = Ema(network)
    with caplog.at_level("INFO", "vidpred"):
        ema.verify_start(network)
    assert "EMA initialised and verified equal to the weights" in caplog.text
    assert f"parameter norm {parameter_norm(network).item():.6g}" in caplog.text
    with torch.no_grad():
        network[0].weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(RuntimeError, match="not equal to the weights"):
        ema.verify_start(network)


def test_settings_name_the_key_and_the_cure():
    with pytest.raises(UserError, match="training.lr_floor"):
        TrainingConfig(lr_floor=2.0)
    with pytest.raises(UserError, match="training.num_steps"):
        TrainingConfig(num_steps=0)
    assert TrainingConfig(batch_size=16, accumulation=2).micro_batch_size(4) == 2
    with pytest.raises(UserError, match="multiple of 6"):
        TrainingConfig(batch_size=16, accumulation=2).micro_batch_size(3)
