"""What a model returns."""

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast


@dataclass
class LanguageModelOutput(CausalLMOutputWithPast):
    """What a forward pass returns: transformers' output with `loss`, `logits` and cache, and more.

    Attributes:
        lm_loss: scalar in nats a token; None without labels.
        aux_losses: name -> scalar, unweighted, averaged over the blocks that have the term; the memory's terms are
            there in training mode or with labels.
        readings: for each block what it read (a Reading), None for a block without memory; then the pointer's, if any.
    """

    lm_loss: Tensor | None = None
    aux_losses: dict[str, Tensor] | None = None
    readings: list | None = None
