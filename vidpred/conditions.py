"""What a clip is, or does, besides its frames: a class, a text, an action per frame.

    ClipConditions      of one clip, as a data set knows them: names and texts, no numbers of any model
    ConditionBatch      of the clips of a batch, or of what a user asks for
    Condition           the same as tensors, as one model takes them; rows without a condition are null
    ConditionEmbedding  what the model's embedders make of it, for its network

B clips of T frames. An action (A numbers) is what is done on the way to its frame from the frame before it, so the
action of a clip's frame is the sum over the source's frames that were skipped, and 0 where a frame is shown again.
"""

import dataclasses
from dataclasses import dataclass
from typing import Callable, Optional, Sequence

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClipConditions:
    """Of one clip; None is what it has not. actions: (T, A) float32, finite."""

    class_name: Optional[str] = None
    text: Optional[str] = None
    actions: Optional[Tensor] = None


@dataclass
class ConditionBatch:
    """Of B clips; a part is None where no clip has it, and a row of a list None where its clip has not.

    class_names, text: B long. actions: (B, T, A) float32, where one row has them all have.
    """

    class_names: Optional[list[Optional[str]]] = None
    text: Optional[list[Optional[str]]] = None
    actions: Optional[Tensor] = None

    @classmethod
    def stack(cls, clips: Sequence[Optional[ClipConditions]]) -> Optional["ConditionBatch"]:
        """None where no clip has any condition. ValueError where only some have actions, or of other sizes."""
        rows = [clip or ClipConditions() for clip in clips]
        names, texts, actions = ([getattr(row, part) for row in rows] for part in ("class_name", "text", "actions"))
        shapes = {None if values is None else tuple(values.shape) for values in actions}
        if len(shapes) > 1:
            raise ValueError(f"the actions of the clips of one batch differ in shape: {shapes}")
        batch = cls(
            names if any(name is not None for name in names) else None,
            texts if any(text is not None for text in texts) else None,
            torch.stack(actions) if shapes != {None} else None,
        )
        return batch if batch.parts() else None

    def parts(self) -> list[str]:
        """The kinds of condition that some clip has, of class, text and actions."""
        values = {"class": self.class_names, "text": self.text, "actions": self.actions}
        return [kind for kind, value in values.items() if value is not None]

    def rows(self, numbers: Sequence[int]) -> "ConditionBatch":
        """Of these clips, in this order; a number may occur several times."""
        return ConditionBatch(
            None if self.class_names is None else [self.class_names[i] for i in numbers],
            None if self.text is None else [self.text[i] for i in numbers],
            None if self.actions is None else self.actions[list(numbers)],
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "ConditionBatch":
        return self._with_actions(lambda actions: actions.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "ConditionBatch":
        return self._with_actions(Tensor.pin_memory)

    def _with_actions(self, change: Callable[[Tensor], Tensor]) -> "ConditionBatch":
        return ConditionBatch(self.class_names, self.text, None if self.actions is None else change(self.actions))

    def __getstate__(self) -> tuple:
        # As in ClipBatch: a small tensor is not worth a file descriptor of its own on its way from a worker.
        return self.class_names, self.text, None if self.actions is None else self.actions.numpy()

    def __setstate__(self, state: tuple) -> None:
        self.class_names, self.text, actions = state
        self.actions = None if actions is None else torch.from_numpy(actions)


@dataclass(frozen=True)
class Condition:
    """Of B rows, on the device; all parts that the model takes are there, and null where a row has none.

    classes: (B,) int64, -1 is null.
    text: (B, L) int64 tokens, or (B, L, F) float32 features of a frozen encoder; text_mask: (B, L) bool, which of them
        there are; a row without any is null.
    actions: (B, T, A) float32; actions_known: (B,) bool.
    """

    classes: Optional[Tensor] = None
    text: Optional[Tensor] = None
    text_mask: Optional[Tensor] = None
    actions: Optional[Tensor] = None
    actions_known: Optional[Tensor] = None

    def without(self, dropped: Tensor, kinds: Sequence[str] = ("class", "text", "actions")) -> "Condition":
        """Null in the rows `dropped` (B,) bool, as far as these kinds are taken."""
        changes: dict[str, Tensor] = {}
        if "class" in kinds and self.classes is not None:
            changes["classes"] = self.classes.masked_fill(dropped, -1)
        if "text" in kinds and self.text_mask is not None:
            changes["text_mask"] = self.text_mask & ~dropped[:, None]
        if "actions" in kinds and self.actions_known is not None:
            changes["actions_known"] = self.actions_known & ~dropped
        return dataclasses.replace(self, **changes)

    def null(self) -> "Condition":
        """Null in all rows."""
        value = next(value for value in vars(self).values() if value is not None)
        return self.without(torch.ones(len(value), dtype=torch.bool, device=value.device))

    @staticmethod
    def cat(parts: Sequence["Condition"]) -> "Condition":
        """The rows of all parts, one after the other."""
        columns = zip(*(vars(part).values() for part in parts))
        return Condition(*(None if values[0] is None else torch.cat(values) for values in columns))

    def repeat_interleave(self, copies: int) -> "Condition":
        """Every row `copies` times, next to each other."""
        values = vars(self).values()
        return Condition(*(None if value is None else value.repeat_interleave(copies, 0) for value in values))

    def at_frames(self, frames: Tensor) -> "Condition":
        """Actions at the frames (T,) int64, ascending, see `actions_at`; past the last action it is repeated."""
        if self.actions is None:
            return self
        missing = max(int(frames.max()) + 1 - self.actions.shape[1], 0)
        # Before they are added up: a frame past the end is also reached by the actions that are known.
        goes_on = torch.cat([self.actions, self.actions[:, -1:].expand(-1, missing, -1)], dim=1)
        return dataclasses.replace(self, actions=actions_at(goes_on, frames))


@dataclass(frozen=True)
class ConditionShape:
    """What a network is built for: embeddings of this width, and whether tokens are among them."""

    width: int
    has_tokens: bool


@dataclass(frozen=True)
class ConditionEmbedding:
    """What a network receives. per_frame: (B, T, W). tokens: (B, L, W), token_mask (B, L) bool with at least one true
    in each row; None where the model takes no text."""

    per_frame: Tensor
    tokens: Optional[Tensor] = None
    token_mask: Optional[Tensor] = None


def actions_at(actions: Tensor, frames: Tensor) -> Tensor:
    """The actions on the way to the chosen frames, each from the one before it: the sum over the frames between.

    The first one's are those of as many frames as lie between it and the second, as far as there are.

    actions (..., N, A), one row per frame of the source; frames (T,) int64, ascending, in 0 .. N - 1, may repeat.
    Returns (..., T, A).
    """
    exact = actions.double()  # the difference of two sums must be the action itself
    total = torch.cat([torch.zeros_like(exact[..., :1, :]), exact.cumsum(dim=-2)], dim=-2)  # of the first n rows
    step = frames[1] - frames[0] if len(frames) > 1 else frames.new_ones(())
    before = torch.cat([(frames[:1] - step).clamp(min=-1), frames[:-1]])
    return (total[..., frames + 1, :] - total[..., before + 1, :]).to(actions.dtype)
