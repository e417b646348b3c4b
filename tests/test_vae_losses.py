"""The terms of a VAE's loss in closed form, the discriminator, the PCA of patches, and what is refused."""

import math

import pytest
import torch

from vidpred.errors import UserError
from vidpred.vae_training import VAES
from vidpred.vae_training.config import AdversarialConfig, NewVaeConfig, VaeTrainingConfig
from vidpred.vae_training.discriminator import PatchDiscriminator
from vidpred.vae_training.floor import measure_patch_pca
from vidpred.vae_training.losses import hinge_discriminator, hinge_generator, kl_divergence, l1
from vidpred.vae_training.network import VaeNetwork


def test_kl_is_that_of_torch_and_of_the_closed_form():
    mean, log_variance = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    reference = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl_divergence(mean, log_variance), reference.flatten(1).mean(1))
    nothing = torch.zeros(1, 1, 1, 1)
    assert kl_divergence(nothing, nothing).item() == 0
    assert kl_divergence(nothing + 2, nothing + math.log(4)).item() == pytest.approx((4 + 4 - 1 - math.log(4)) / 2)


def test_hinge_losses():
    real, fake = torch.tensor([[2.0, 0.5], [-1.0, 1.0]]), torch.tensor([[-2.0, 0.0], [1.0, -0.5]])
    real, fake = real[:, None, None], fake[:, None, None]
    assert hinge_generator(fake).tolist() == [1.0, -0.25]
    # ((0 + 0.5) / 2 + (0 + 1) / 2) / 2, and ((2 + 0) / 2 + (2 + 0.5) / 2) / 2
    assert hinge_discriminator(real, fake).tolist() == [0.375, 1.125]


def test_l1_is_per_image():
    truth = torch.zeros(2, 3, 4, 4)
    assert l1(torch.stack([truth[0] + 0.5, truth[1] - 1]), truth).tolist() == [0.5, 1.0]


@pytest.mark.parametrize("layers, patch", [(1, 16), (2, 34), (3, 70)])
def test_a_patch_is_as_large_as_the_documentation_says(layers, patch):
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(8, layers)
    for module in discriminator.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x  # its mean and deviation see the whole picture
    images = torch.randn(1, 3, 96, 96, requires_grad=True)
    scores = discriminator(images)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    seen = images.grad[0].abs().sum(0) > 0
    assert (seen.any(0).sum().item(), seen.any(1).sum().item()) == (patch, patch)


def test_images_of_a_batch_do_not_see_each_other():
    torch.manual_seed(0)
    discriminator, images = PatchDiscriminator(8, 2), torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(discriminator(images)[1:2], discriminator(images[1:2]))


# The floor -------------------------------------------------------------------------------------------------


def test_patch_pca_is_the_truncated_svd():
    torch.manual_seed(0)
    frames = torch.randint(0, 256, (2, 3, 3, 8, 12), dtype=torch.uint8)
    floor = measure_patch_pca([frames[:1], frames[1:]], size=4, components=5)
    # Patch by patch, by hand.
    patches = torch.stack(
        [frame[:, y : y + 4, x : x + 4].flatten() for frame in frames.flatten(0, 1) for y in (0, 4) for x in (0, 4, 8)]
    ).double()
    mean = patches.mean(0)
    u, s, v = torch.linalg.svd(patches - mean, full_matrices=False)
    best = (u[:, :5] * s[:5]) @ v[:5] + mean
    expected = torch.empty_like(frames.flatten(0, 1))
    values = iter(best.clamp(0, 255).round().to(torch.uint8))
    for frame in expected:
        for y in (0, 4):
            for x in (0, 4, 8):
                frame[:, y : y + 4, x : x + 4] = next(values).view(3, 4, 4)
    assert torch.equal(floor.reconstruct(frames), expected.view_as(frames))


def test_patch_pca_is_exact_on_data_of_its_rank():
    torch.manual_seed(0)
    basis = torch.randint(0, 40, (2, 3, 4, 4))
    weights = torch.randint(0, 3, (5, 6, 6, 2))
    patches = 20 + torch.einsum("nhwk,kcpq->nchpwq", weights, basis)
    frames = patches.reshape(1, 5, 3, 24, 24).to(torch.uint8)
    assert torch.equal(measure_patch_pca([frames], 4, components=2).reconstruct(frames), frames)
    assert not torch.equal(measure_patch_pca([frames], 4, components=1).reconstruct(frames), frames)


# The network and its configuration -------------------------------------------------------------------------


def tiny(**changes) -> NewVaeConfig:
    return NewVaeConfig(**{"block_out_channels": (8, 8), "norm_num_groups": 4, "mid_attention": False} | changes)


def test_noise_and_mean_are_decoded_as_they_are():
    torch.manual_seed(0)
    network = VaeNetwork(VAES.build(tiny(latent_channels=3)))
    assert (network.down_factor, network.latent_channels) == (2, 3)
    images, noise = torch.rand(2, 3, 8, 8) * 2 - 1, torch.randn(2, 3, 4, 4)
    made = network(images, noise)
    posterior = network.vae.encode(images).latent_dist
    torch.testing.assert_close(made.images, network.vae.decode(posterior.mean + posterior.std * noise).sample)
    torch.testing.assert_close(network(images).images, network.vae.decode(posterior.mode()).sample)
    assert (network(images, noise).images - network(images).images).abs().max() > 1e-4


def test_a_new_vae_begins_with_a_narrow_posterior():
    made = VaeNetwork(VAES.build(tiny()))(torch.rand(2, 3, 8, 8) * 2 - 1)
    assert made.log_variance.unique().tolist() == [-6.0] and made.mean.std() > 0.05


def test_any_size_gets_a_gradient_everywhere():
    for config in (tiny(), tiny(block_out_channels=[4, 8, 8], layers_per_block=2, mid_attention=True)):
        network = VaeNetwork(VAES.build(config))
        made = network(torch.rand(1, 3, 16, 16), torch.randn(1, 4, *[16 // network.down_factor] * 2))
        l1(made.images, torch.zeros_like(made.images)).mean().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: tiny(norm_num_groups=3), "vae.norm_num_groups: 3 groups do not divide 8 channels"),
        (lambda: tiny(block_out_channels=()), "vae.block_out_channels"),
        (lambda: tiny(latent_channels=0), "vae.latent_channels: 0 is less than 1"),
        (lambda: tiny(crop=16), "vae.crop: 16 is less than the 32 pixels of LPIPS"),
        (lambda: tiny(crop=0, lpips_weight=0), "vae.crop: 0 is no size"),
        (lambda: VaeTrainingConfig(kl_weight=-1), "vae.kl_weight: -1 is less than 0"),
        (lambda: AdversarialConfig(layers=0), "vae.adversarial.layers: 0 is less than 1"),
    ],
)
def test_impossible_values_are_refused_with_their_key(make, message):
    with pytest.raises(UserError, match=message):
        make()
