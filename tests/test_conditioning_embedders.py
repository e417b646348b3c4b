"""Classes, texts and actions on their way into a network: null conditions, padding, any script, all used."""

import dataclasses
import json
import shutil
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vidpred.conditioning import ConditionConfig, Conditioner, TextConfig, condition_shape
from vidpred.conditioning import clip_text
from vidpred.conditioning.clip_text import ClipTextEncoder
from vidpred.conditioning.text import ByteTextEncoder
from vidpred.conditions import Condition, ConditionBatch, ConditionShape
from vidpred.errors import UserError
from vidpred.networks import NETWORKS, UNetConfig, build_network

CPU = torch.device("cpu")
KINDS = ("class", "text", "actions")
SMALL = dict(
    channels=(8, 16), blocks_per_level=1, head_dim=8, spatial_attention_levels=(1,), temporal_attention_levels=(1,)
)
ASKED = ConditionBatch(["dog", "cat"], ["a dog", "猫 🐈"], torch.arange(16.0).reshape(2, 4, 2))


def config(kinds=KINDS, **changes):
    options = dict(width=16, class_names=("cat", "dog"), action_scale=(2.0, 4.0), text=TextConfig(length=12, layers=1))
    return ConditionConfig(kinds=tuple(kinds), **{**options, **changes})


def conditioned(kinds=KINDS, randomize=True, **network):
    """(conditioner, network), with all layers away from zero."""
    torch.manual_seed(0)
    chosen = config(kinds)
    conditioner = Conditioner(chosen)
    bare = build_network(UNetConfig(**{**SMALL, **network}), 3, 3, condition_shape(chosen))
    for parameter in bare.parameters():
        if randomize and not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return conditioner, conditioner.around(bare)


def inputs(frames=4, rows=2):
    torch.manual_seed(1)
    given = torch.zeros(rows, frames, dtype=torch.bool)
    times = torch.arange(float(frames)).expand(rows, -1)
    return torch.randn(rows, frames, 3, 8, 8), torch.rand(rows, frames), given, times


# What a model takes of what is asked ------------------------------------------------------------------------


def test_names_become_numbers_and_what_is_not_asked_for_is_null():
    condition = Conditioner(config())(ASKED, 2, 4, CPU)
    assert condition.classes.tolist() == [1, 0] and condition.actions_known.tolist() == [True, True]
    assert condition.text_mask.sum(dim=1).tolist() == [5, len("猫 🐈".encode())]
    nothing = Conditioner(config())(None, 2, 4, CPU)
    assert nothing.classes.tolist() == [-1, -1] and not nothing.text_mask.any() and not nothing.actions_known.any()
    assert nothing.actions.shape == (2, 4, 2)
    some = Conditioner(config())(ConditionBatch(["cat", None], [None, "x"]), 2, 4, CPU)
    assert some.classes.tolist() == [0, -1] and some.text_mask.sum(dim=1).tolist() == [0, 1]
    assert vars(Conditioner(config(["class"]))(ASKED, 2, 4, CPU)).keys() >= {"classes"}
    assert Conditioner(config(["class"]))(ASKED, 2, 4, CPU).text is None


def test_what_a_model_does_not_know_is_refused():
    conditioner = Conditioner(config(["class", "actions"]))
    with pytest.raises(UserError, match="class: 'cow' is not known to the model; choose one of cat, dog"):
        conditioner(ConditionBatch(["cow"]), 1, 4, CPU)
    with pytest.raises(UserError, match=r"actions: expected \(1, 4, 2\) numbers .* got \(1, 3, 2\)"):
        conditioner(ConditionBatch(actions=torch.ones(1, 3, 2)), 1, 4, CPU)
    with pytest.raises(UserError, match="class: 1 are given for 2 clips"):
        conditioner(ConditionBatch(["cat"]), 2, 4, CPU)
    with pytest.raises(UserError, match="text: the model takes class and actions, and no text"):
        conditioner.require_kinds(ASKED)
    assert conditioner.parts_of(ASKED).parts() == ["class", "actions"]
    assert conditioner.parts_of(ConditionBatch(text=["x"])) is None


def test_dropping_is_asking_for_nothing():
    conditioner, network = conditioned()
    condition, arguments = conditioner(ASKED, 2, 4, CPU), inputs()
    null = network(*arguments, conditioner(None, 2, 4, CPU))
    full = network(*arguments, condition)
    assert torch.equal(network(*arguments, condition.null()), null)
    half = network(*arguments, condition.without(torch.tensor([True, False])))
    torch.testing.assert_close(half, torch.stack([null[0], full[1]]))
    assert (full - null).abs().amax(dim=(1, 2, 3, 4)).min() > 1e-3


def test_rows_can_be_joined_and_repeated():
    condition = Conditioner(config())(ASKED, 2, 4, CPU)
    both = Condition.cat([condition, condition.null()])
    assert both.classes.tolist() == [1, 0, -1, -1] and both.actions_known.tolist() == [True, True, False, False]
    assert condition.repeat_interleave(2).classes.tolist() == [1, 1, 0, 0]
    only = Conditioner(config(["class"]))(ASKED, 2, 4, CPU)
    assert Condition.cat([only, only]).text is None and only.null().classes.tolist() == [-1, -1]


def test_a_window_has_the_actions_of_its_frames_and_the_last_one_goes_on():
    condition = Conditioner(config(["actions"]))(ASKED, 2, 4, CPU)
    assert torch.equal(condition.at_frames(torch.arange(4)).actions, ASKED.actions)
    later = condition.at_frames(torch.tensor([2, 3, 4, 5])).actions
    assert torch.equal(later, ASKED.actions[:, [2, 3, 3, 3]])
    summed = condition.at_frames(torch.tensor([0, 1, 3])).actions
    assert torch.equal(summed[:, 2], ASKED.actions[:, 2] + ASKED.actions[:, 3])


def test_a_keyframe_past_the_last_action_is_reached_by_known_and_repeated_ones():
    pushed = Condition(actions=torch.ones(1, 11, 2), actions_known=torch.tensor([True]))
    keyframes = pushed.at_frames(torch.tensor([1, 5, 9, 13])).actions
    assert keyframes[0, 1:].tolist() == [[4, 4]] * 3  # a constant push, however many frames are skipped
    rising = Condition(actions=torch.arange(4.0)[None, :, None], actions_known=torch.tensor([True]))
    assert rising.at_frames(torch.tensor([0, 2, 4, 7])).actions.flatten().tolist()[1:] == [1 + 2, 3 + 3, 3 + 3 + 3]


# Each kind in the network -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_alone_reaches_the_output(kind):
    conditioner, network = conditioned([kind])
    arguments = inputs()
    out = network(*arguments, conditioner(ASKED, 2, 4, CPU))
    assert (out - network(*arguments, conditioner(None, 2, 4, CPU))).abs().max() > 1e-3


def test_an_action_belongs_to_its_frame():
    """With temporal layers that begin at zero, frames do not speak with each other."""
    conditioner, network = conditioned(["actions"], randomize=False, temporal_attention_levels=())
    for name, parameter in network.named_parameters():
        if "head" in name or "space.conv_out" in name:
            nn.init.normal_(parameter)
    asked = ConditionBatch(actions=ASKED.actions.clone())
    before = network(*inputs(), conditioner(asked, 2, 4, CPU))
    asked.actions[0, 2] += 1
    changed = (network(*inputs(), conditioner(asked, 2, 4, CPU)) - before).abs().amax(dim=(2, 3, 4))
    assert changed[0, 2] > 1e-3 and changed.sum() == changed[0, 2]


def test_actions_are_taken_in_units_of_their_scale():
    conditioner, network = conditioned(["actions"])
    other, scaled = conditioned(["actions"])
    scaled.embedders["actions"].scale *= 10
    larger = ConditionBatch(actions=10 * ASKED.actions)
    torch.testing.assert_close(
        scaled(*inputs(), other(larger, 2, 4, CPU)), network(*inputs(), conditioner(ASKED, 2, 4, CPU))
    )
    assert "embedders.actions.scale" not in network.state_dict()  # it is part of the configuration


@pytest.mark.parametrize("kinds", [["class"], ["text"], ["actions"], KINDS])
@pytest.mark.parametrize("asked", [None, ASKED])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_parameter_is_used_whatever_is_null(kinds, asked, checkpointing):
    conditioner, network = conditioned(kinds, activation_checkpointing=checkpointing)
    asked = asked and conditioner.parts_of(asked)
    network(*inputs(), conditioner(asked, 2, 4, CPU)).square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_a_text_may_reach_the_network_without_cross_attention():
    conditioner, network = conditioned(["text"], cross_attention_levels=())
    assert not any("cross_attention" in name for name in network.state_dict())
    out = network(*inputs(), conditioner(ASKED, 2, 4, CPU))
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert any("cross_attention" in name for name in conditioned(["text"])[1].state_dict())


def test_a_network_without_conditions_is_what_it_was():
    torch.manual_seed(3)
    plain = build_network(UNetConfig(**SMALL), 3, 3)
    names = plain.state_dict().keys()
    assert not any("condition" in name or "cross" in name for name in names)
    torch.manual_seed(3)
    others = build_network(UNetConfig(**SMALL, cross_attention_levels=(0, 1)), 3, 3)
    assert all(torch.equal(plain.state_dict()[name], value) for name, value in others.state_dict().items())


def test_networks_that_cannot_take_conditions_say_so():
    with pytest.raises(ValueError, match="takes a condition"):
        conditioned()[1].network(*inputs())
    with pytest.raises(ValueError, match="needs a condition"):
        conditioned()[1](*inputs(), None)
    with pytest.raises(UserError, match="network.cross_attention_levels: level 2 does not exist"):
        UNetConfig(**SMALL, cross_attention_levels=(2,))


def test_a_network_whose_builder_knows_no_condition_is_refused(monkeypatch):
    monkeypatch.setattr(NETWORKS, "_kinds", dict(NETWORKS._kinds))

    @dataclass
    class PlainConfig:
        kind: str = "plain one"

    NETWORKS.register("plain one", PlainConfig)(lambda config, in_channels, out_channels: nn.Identity())
    assert isinstance(build_network(PlainConfig(), 3, 3), nn.Identity)
    with pytest.raises(UserError, match="network.kind: plain one takes no conditions"):
        build_network(PlainConfig(), 3, 3, ConditionShape(16, False))


# Texts ------------------------------------------------------------------------------------------------------


def test_bytes_of_any_script_and_none():
    tokens, mask = ByteTextEncoder(6, 1).read(["ab", "猫", ""], CPU)
    assert tokens.tolist() == [[98, 99, 0, 0, 0, 0], [232, 141, 172, 0, 0, 0], [0] * 6]
    assert mask.sum(dim=1).tolist() == [2, 3, 0]


def test_a_long_text_is_cut_and_told_once(caplog):
    encoder = ByteTextEncoder(3, 1)
    tokens, _ = encoder.read(["abcdef", "ghijkl"], CPU)
    assert tokens.tolist() == [[98, 99, 100], [104, 105, 106]]
    assert [record.message for record in caplog.records] == [
        "condition.text.length: only the first 3 of 6 bytes are read of 'abcdef', and of other long texts"
    ]


@pytest.mark.parametrize("layers", [0, 2])
def test_what_follows_a_text_is_not_seen(layers):
    torch.manual_seed(0)
    short, long = ByteTextEncoder(4, layers), ByteTextEncoder(9, layers)
    embed, wider = short.build_embedder(8), long.build_embedder(8)
    state = embed.state_dict()
    wider.load_state_dict({**state, "positions": torch.cat([state["positions"], torch.randn(5, 8)])})
    out, padded = (module(*encoder.read(["abc"], CPU)) for module, encoder in ((embed, short), (wider, long)))
    torch.testing.assert_close(padded[:, :4], out[:, :4])


def test_padding_does_not_reach_the_network():
    """Beyond the end of a text, tokens may be anything."""
    conditioner, network = conditioned(["text"])
    condition = conditioner(ConditionBatch(text=["abc", "x"]), 2, 4, CPU)
    out = network(*inputs(), condition)
    condition.text[:, 3:] = 77
    torch.testing.assert_close(network(*inputs(), condition), out)


# CLIP -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP text encoder of random weights with an alphabet of letters."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(33, 127)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    clip = transformers.CLIPTextConfig(
        vocab_size=len(words), max_position_embeddings=7, bos_token_id=0, eos_token_id=1, pad_token_id=1, **sizes
    )
    transformers.CLIPTextModel(clip).save_pretrained(folder, safe_serialization=True)
    return folder


def clip_config(folder):
    return config(["text"], text=TextConfig(encoder="clip", model=str(folder)))


def test_clip_features_are_frozen_and_not_saved(clip_folder):
    conditioner = Conditioner(clip_config(clip_folder))
    torch.manual_seed(0)
    bare = build_network(UNetConfig(**SMALL), 3, 3, ConditionShape(16, True))
    network = conditioner.around(bare)
    condition = conditioner(ConditionBatch(text=["cat", ""]), 2, 4, CPU)
    assert condition.text.shape == (2, 7, 8) and not condition.text.requires_grad
    assert condition.text_mask.sum(dim=1).tolist()[1] == 0 and condition.text_mask[0].any()
    network(*inputs(), condition).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    saved = {name for name in network.state_dict() if name.startswith("embedders")}
    assert saved == {f"embedders.text.{name}" for name in (
        "norm.bias", "norm.weight", "tokens.first", "tokens.norm.bias", "tokens.norm.weight", "tokens.project.bias",
        "tokens.project.weight",
    )}  # fmt: skip


def test_a_text_has_the_same_features_whatever_is_beside_it(clip_folder):
    texts = [f"text {letter}" for letter in "abcdefghijkl"]
    read = lambda each: Conditioner(clip_config(clip_folder))(ConditionBatch(text=each), len(each), 1, CPU).text
    together = read(texts)
    for row, text in enumerate(texts):
        assert torch.equal(read([text])[0], together[row])
    assert torch.equal(read(texts[::-1]).flip(0), together)


def test_clip_that_cannot_be_loaded_is_one_line(tmp_path, clip_folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="condition.text.model: '.*empty' cannot be loaded") as raised:
        Conditioner(clip_config(tmp_path / "empty"))
    assert "\n" not in str(raised.value)


def damaged(folder, tmp_path, change):
    """A copy of a CLIP folder whose weights went through `change`."""
    copy = shutil.copytree(folder, tmp_path / "damaged")
    tensors = change(load_file(copy / "model.safetensors"))
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    return copy


def test_clip_without_all_of_its_weights_is_refused(tmp_path, clip_folder):
    copy = damaged(clip_folder, tmp_path, lambda tensors: {k: v for k, v in tensors.items() if "fc1.bias" not in k})
    with pytest.raises(UserError, match="condition.text.model: .* is no complete text encoder .* 1 tensors .*fc1.bias"):
        Conditioner(clip_config(copy))
    (copy / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="condition.text.model: .* cannot be loaded"):
        Conditioner(clip_config(copy))
    shutil.copyfile(clip_folder / "model.safetensors", copy / "model.safetensors")
    sizes = (copy / "config.json").read_text()
    (copy / "config.json").write_text(sizes.replace('"intermediate_size": 16', '"intermediate_size": 8'))
    with pytest.raises(UserError, match="condition.text.model") as raised:
        Conditioner(clip_config(copy))
    assert "\n" not in str(raised.value)


def test_the_image_tower_of_clip_may_be_there(tmp_path, clip_folder):
    more = {"vision_model.post_layernorm.bias": torch.ones(8)}
    copy = damaged(clip_folder, tmp_path, lambda tensors: {**tensors, **more})
    assert Conditioner(clip_config(copy)).config == dataclasses.replace(
        Conditioner(clip_config(clip_folder)).config, text=Conditioner(clip_config(copy)).config.text
    )


def test_other_weights_of_clip_are_refused(tmp_path, clip_folder):
    settled = Conditioner(clip_config(clip_folder)).config
    assert len(settled.text.weights) == 64 and Conditioner(settled).config == settled
    change = lambda tensors: {k: v + 1e-3 if "final_layer_norm.bias" in k else v for k, v in tensors.items()}
    copy = damaged(clip_folder, tmp_path, change)
    moved = dataclasses.replace(settled, text=dataclasses.replace(settled.text, model=str(copy)))
    with pytest.raises(UserError, match="condition.text.weights: .* holds other weights .*condition.text.revision"):
        Conditioner(moved)
    save_file(load_file(clip_folder / "model.safetensors"), copy / "model.safetensors", {"format": "pt"})
    Conditioner(moved)
    assert Conditioner(config(["text"])).config.text.weights is None  # bytes: nothing is frozen


def test_a_text_that_is_too_long_for_clip_is_told_once(clip_folder, caplog):
    conditioner = Conditioner(clip_config(clip_folder))
    conditioner(ConditionBatch(text=["abcde", "abcdef", "x" * 70]), 3, 1, CPU)  # 7 tokens with those of both ends
    conditioner(ConditionBatch(text=["y" * 70]), 1, 1, CPU)
    assert [record.message for record in caplog.records if "condition.text" in record.message] == [
        "condition.text.model: only the first 7 of 8 tokens are read of 'abcdef', and of other long texts"
    ]


def test_the_features_that_are_kept_have_a_bound(clip_folder, monkeypatch):
    encoder = ClipTextEncoder(str(clip_folder))
    each = 7 * 8 * 4
    monkeypatch.setattr(clip_text, "REMEMBERED_BYTES", 3 * each)
    texts = [f"text {letter}" for letter in "abcde"]
    features, _ = encoder.read(texts, CPU)
    assert list(encoder._remembered) == texts[2:]
    assert [values.untyped_storage().nbytes() for values, _ in encoder._remembered.values()] == [each] * 3
    assert torch.equal(encoder.read(texts, CPU)[0], features) and list(encoder._remembered) == texts[2:]


# Configuration ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values, error", [
    (dict(kinds=("colour",)), "condition.kinds: 'colour' is not known; choose class, text, actions"),
    (dict(kinds=("text", "text")), "names one twice"),
    (dict(dropout=1.0), "condition.dropout: 1.0 must be 0 or more and below 1"),
    (dict(width=2), "condition.width: 2 must be 4 or more"),
    (dict(class_names=("a", "a")), "condition.class_names: .* names one twice"),
    (dict(action_scale=(1.0, 0.0)), "condition.action_scale: .* must be positive"),
])  # fmt: skip
def test_what_a_configuration_cannot_be(values, error):
    with pytest.raises(UserError, match=error):
        ConditionConfig(**values)


@pytest.mark.parametrize("values", [dict(encoder="t5"), dict(length=0), dict(layers=-1)])
def test_what_a_text_configuration_cannot_be(values):
    with pytest.raises(UserError, match=f"condition.text.{next(iter(values))}"):
        TextConfig(**values)
