"""CLIP's text encoder, frozen (Radford et al. 2021, arXiv:2103.00020), through transformers, from safetensors alone."""

import hashlib
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any, Optional, Sequence

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vidpred.conditioning.text import FeatureEmbedder, TextEncoder, to_device
from vidpred.distributed import main_first
from vidpred.errors import UserError, require

logger = logging.getLogger(__name__)

AT_ONCE = 8  # texts in each call, always as many: then a text's features do not depend on the others
REMEMBERED_BYTES = 128 * 2**20  # of features that are kept on the device; of CLIP ViT-L/14, those of 567 texts


class ClipTextEncoder(TextEncoder):
    """The last hidden states of the tokens.

    The features of the texts that were read last stay on the device, REMEMBERED_BYTES of them.

    Args:
        model: a local folder, or a name on the hub. revision: its branch, tag or commit there; None: the main one.
        weights: the SHA-256 that the weights must have; None: any.
    Raises:
        UserError: no transformers, nothing that can be loaded, not all of the encoder's weights, or others.
    """

    def __init__(self, model: str, revision: Optional[str] = None, weights: Optional[str] = None):
        with main_first():  # rank 0 downloads, the others find the files
            self._tokenizer, encoder = _load(model, revision)
        self._model = encoder.float().eval().requires_grad_(False)
        self.weights = fingerprint(self._model)
        require(
            weights in (None, self.weights),
            f"condition.text.weights: '{model}' holds other weights (SHA-256 {self.weights[:12]}) than the model was "
            f"trained with ({str(weights)[:12]}); give its folder or its condition.text.revision as it was",
        )
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
        while len(self._remembered) * 4 * self._length * self._model.config.hidden_size > REMEMBERED_BYTES:
            self._remembered.popitem(last=False)
        features, masks = zip(*(known[text] for text in texts))
        return torch.stack(features).to(device), torch.stack(masks).to(device)

    @torch.no_grad()
    def _encode(self, texts: list[str], device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
        self._model.to(device)
        filled = [*texts, *[""] * (AT_ONCE - len(texts))]
        for text, tokens in zip(texts, self._tokenizer(texts)["input_ids"]):
            self.tell_cut("condition.text.model", text, len(tokens), self._length, "tokens")
        tokens = self._tokenizer(
            filled, padding="max_length", max_length=self._length, truncation=True, return_tensors="pt"
        )
        said = torch.tensor([bool(text) for text in filled])[:, None]
        parts = tokens["input_ids"], tokens["attention_mask"], tokens["attention_mask"].bool() & said
        ids, seen, mask = (to_device(part, device) for part in parts)
        with torch.autocast(device.type, enabled=False):
            features = self._model(input_ids=ids, attention_mask=seen).last_hidden_state.float()
        # Clones: a view would keep the features of all texts of this call.
        return {text: (features[row].clone(), mask[row].clone()) for row, text in enumerate(texts)}

    def build_embedder(self, width: int) -> nn.Module:
        return FeatureEmbedder(self._model.config.hidden_size, width)


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of the parameters' numbers, whatever their names and order are."""
    each = sorted(hashlib.sha256(values.detach().cpu().contiguous().numpy()).digest() for values in module.parameters())
    return hashlib.sha256(b"".join(each)).hexdigest()


def _load(model: str, revision: Optional[str]) -> tuple[Any, nn.Module]:
    """(tokenizer, text encoder with all of its weights). Raises UserError."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            "condition.text.encoder: clip needs the package transformers; pip install 'vidpred[text]', or use bytes"
        ) from error
    transformers.utils.logging.set_verbosity_error()  # weights of the image tower are not missed
    folder = Path(model).expanduser()
    where, cure = str(folder) if folder.is_dir() else model, "give a folder with CLIP's tokenizer and model.safetensors"
    try:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(where, revision=revision or "main")
        encoder, info = transformers.CLIPTextModel.from_pretrained(
            where, revision=revision or "main", use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"condition.text.model: '{model}' cannot be loaded ({' '.join(str(error).split())[:200]}); {cure}, or a "
            "name on the hub"
        ) from error
    wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    require(
        not wrong,
        f"condition.text.model: '{model}' is no complete text encoder of CLIP: {len(wrong)} tensors are missing or do "
        f"not fit (first: {(wrong or [''])[0]}); {cure}, or a name on the hub",
    )
    return tokenizer, encoder
