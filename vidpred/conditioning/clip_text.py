"""CLIP's text encoder, frozen (Radford et al. 2021, arXiv:2103.00020), through transformers, from safetensors alone."""

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Sequence

import torch
from torch import Tensor, nn

from vidpred.conditioning.text import FeatureEmbedder, TextEncoder
from vidpred.distributed import main_first
from vidpred.errors import UserError

logger = logging.getLogger(__name__)

AT_ONCE = 8  # texts in each call, always as many: then a text's features do not depend on the others
REMEMBERED = 2048  # texts whose features are kept


class ClipTextEncoder(TextEncoder):
    """The last hidden states of the tokens. `model`: a local folder, or a name on the hub. Raises UserError."""

    def __init__(self, model: str):
        try:
            import transformers
        except ImportError as error:
            raise UserError(
                "condition.text.encoder: clip needs the package transformers; pip install 'vidpred[text]', or use bytes"
            ) from error
        transformers.utils.logging.set_verbosity_error()  # weights of the image tower are not missed
        folder = Path(model).expanduser()
        where = str(folder) if folder.is_dir() else model
        with main_first():  # rank 0 downloads, the others find the files
            try:
                self._tokenizer = transformers.CLIPTokenizer.from_pretrained(where)
                self._model = transformers.CLIPTextModel.from_pretrained(where, use_safetensors=True)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"condition.text.model: '{model}' cannot be loaded ({' '.join(str(error).split())[:200]}); give a "
                    "folder with CLIP's tokenizer and model.safetensors, or a name on the hub"
                ) from error
        self._model = self._model.float().eval().requires_grad_(False)
        self._length = self._model.config.max_position_embeddings
        self._remembered: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()

    def read(self, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        known = {text: self._remembered[text] for text in texts if text in self._remembered}
        fresh = [text for text in dict.fromkeys(texts) if text not in known]
        for place in range(0, len(fresh), AT_ONCE):
            known |= self._encode(fresh[place : place + AT_ONCE], device)
        for text in dict.fromkeys(texts):
            self._remembered[text] = known[text]
            self._remembered.move_to_end(text)
        while len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        features, masks = zip(*(known[text] for text in texts))
        return torch.stack(features).to(device), torch.stack(masks).to(device)

    @torch.no_grad()
    def _encode(self, texts: list[str], device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
        self._model.to(device)
        filled = [*texts, *[""] * (AT_ONCE - len(texts))]
        tokens = self._tokenizer(
            filled, padding="max_length", max_length=self._length, truncation=True, return_tensors="pt"
        )
        ids, mask = (tokens[key].to(device) for key in ("input_ids", "attention_mask"))
        with torch.autocast(device.type, enabled=False):
            features = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        mask = mask.bool() & torch.tensor([bool(text) for text in filled], device=device)[:, None]
        return {text: (features[row], mask[row]) for row, text in enumerate(texts)}

    def build_embedder(self, width: int) -> nn.Module:
        return FeatureEmbedder(self._model.config.hidden_size, width)
