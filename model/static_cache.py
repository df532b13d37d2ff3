"""Decoding in a cache of fixed size, whose steps of one token are captured once as a CUDA graph and then replayed.

A step is hundreds of short kernels, and launching them one by one from Python takes ten times as long as running them.

Axes: B batch · P positions of the cache · T new positions · G heads · E width
"""

import gc

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from .layers import in_autocast

# transformers 5.24 renamed past_key_values to cache, in the forward pass as in its output.
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
ALIGNMENT = 16  # positions; fused attention wants the rows of its mask aligned
EAGER_CALLS = 1  # compile the kernels, and fill `DerivedWeights`, before the capture


def check_room(length: int, capacity: int) -> None:
    if length > capacity:
        raise ValueError(f"a cache of {capacity} positions is full; StaticCache takes the length of the whole text")


class StaticLayer(DynamicLayer):
    """Keys and values of `capacity` positions, of which the first `seen` are filled."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity, self.seen = capacity, 0

    def update(self, key_BGTE: Tensor, value_BGTE: Tensor, position_T: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Write the new positions and return keys and values.

        Args:
            position_T: where to write; all P positions are returned. None: behind those seen, which are returned.
        """
        if not self.is_initialized:
            self.keys, self.values = (
                x.new_zeros(*x.shape[:2], self.capacity, x.shape[3]) for x in (key_BGTE, value_BGTE)
            )
            self.is_initialized = True
        end = self.seen + key_BGTE.shape[2]
        check_room(end, self.capacity)
        for stored_BGPE, new_BGTE in ((self.keys, key_BGTE), (self.values, value_BGTE)):
            if position_T is None:
                stored_BGPE[:, :, self.seen : end] = new_BGTE.detach()
            else:
                stored_BGPE.index_copy_(2, position_T, new_BGTE)
        if position_T is not None:
            return self.keys, self.values
        self.seen = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.seen

    def crop(self, length: int) -> None:
        """Keep the first `length` positions or, where it is negative, forget the last so many."""
        self.seen = min(self.seen, length) if length > 0 else max(self.seen + length, 0)

    def reset(self) -> None:
        """The next text may have another batch size or precision."""
        self.keys, self.values, self.is_initialized, self.seen = None, None, False, 0


class StaticCache(Cache):
    """A cache for `generate`, or for a loop of one's own, over a prompt and the tokens that follow it.

    The prompt runs as with any cache. Each later token is a step over all P positions. On a CUDA device it is captured
    and replayed from the second on, and then writes over the tensors that it returned before. From the first step on,
    weights, bank and autocast must stay as they are. No gradient goes through a cache. Beam search reorders it before
    each token, and experts (`--use_moe`) are chosen on the host: neither's steps are replayed.

    Args:
        capacity: tokens of the longest text, prompt included.
    Raises:
        ValueError: a text grows longer.
    """

    def __init__(self, capacity: int):
        super().__init__(layers=[])
        self.capacity = -(-capacity // ALIGNMENT) * ALIGNMENT
        self.step_position_T = None  # of a step's token, int64 on the device; None outside of steps
        self.branch = None  # a stream beside that of a step's capture; None outside of captures
        self.step = None

    def update(self, key_BGTE: Tensor, value_BGTE: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        while len(self.layers) <= layer_idx:
            self.layers.append(StaticLayer(self.capacity))
        return self.layers[layer_idx].update(key_BGTE, value_BGTE, self.step_position_T)

    def crop(self, *length: int) -> None:
        super().crop(*length)
        self.step = None  # what follows may be padded otherwise

    def reset(self) -> None:
        super().reset()
        self.step = None

    @torch.no_grad()
    def waits_for_step(self, input_ids: Tensor) -> bool:
        """Whether one more token would be a step of its own: not the prompt, and not from within a step."""
        return self.step_position_T is None and input_ids.shape[1] == 1 and bool(self.get_seq_length())

    def make_step(self, model: nn.Module, input_B1: Tensor, attention_mask: Tensor | None):
        """What the model makes of one more token.

        Raises:
            ValueError: the cache is full, or holds another number of texts.
        """
        check_room(self.get_seq_length() + 1, self.capacity)  # a replay would write behind its end
        if len(input_B1) != len(self.layers[0].keys):
            raise ValueError(f"a cache of {len(self.layers[0].keys)} texts takes as many tokens, got {len(input_B1)}")
        # Layers that were reordered, as beam search does, have other tensors.
        layers_and_keys = zip(self.layers, self.step.keys, strict=True) if self.step else ()
        if self.step is None or any(layer.keys is not keys for layer, keys in layers_and_keys):
            self.step = Step(model, self, input_B1, attention_mask)
        out = self.step(model, self, input_B1)
        for layer in self.layers:
            layer.seen += layer.is_initialized  # one of a block that keeps nothing stays empty
        return out


class Step:
    """One token through a model over the positions of a cache, captured at the second call.

    Holds no reference to the cache: a reference cycle could free this CUDA graph during another capture.
    The casts of autocast are made here, once: its own cache of them may be emptied while a graph still reads it.
    """

    def __init__(self, model: nn.Module, cache: StaticCache, input_B1: Tensor, mask_BX: Tensor | None):
        self.keys = [layer.keys for layer in cache.layers]
        self.input_B1, self.step_position_T = (
            input_B1.clone(),
            torch.zeros(1, dtype=torch.int64, device=input_B1.device),
        )
        self.document_BP = None
        if mask_BX is not None and not mask_BX.all():  # padding on the left is a document of its own
            self.document_BP = F.pad(mask_BX, (0, cache.capacity - mask_BX.shape[1]), value=1)
        stores = [module.derived for module in model.modules() if hasattr(module, "derived")]
        derived = {parameter.data_ptr() for store in stores for parameter in store.stored[1] or ()}  # cast there, once
        tables = {module.weight.data_ptr() for module in model.modules() if isinstance(module, nn.Embedding)}
        self.weights = {
            name: in_autocast(parameter)
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if (parameter.ndim > 1 and parameter.data_ptr() not in derived | tables) or name == "lm_head.weight"
        }
        # Experts are chosen on the host, which a graph cannot wait for.
        self.captures = input_B1.device.type == "cuda" and not model.settings.use_moe
        self.calls, self.graph, self.made, self.held = 0, None, None, None

    def __call__(self, model: nn.Module, cache: StaticCache, input_B1: Tensor):
        self.calls += 1
        self.input_B1.copy_(input_B1)
        self.step_position_T.fill_(cache.get_seq_length())
        if not self.captures or self.calls <= EAGER_CALLS:
            return self.run(model, cache)
        if self.graph is None:
            self.capture(model, cache)
        self.graph.replay()
        kind, values = self.made
        return kind(**values, **{CACHE: cache})

    def run(self, model: nn.Module, cache: StaticCache):
        device = self.input_B1.device.type
        settings = {"dtype": torch.get_autocast_dtype(device), "enabled": torch.is_autocast_enabled(device)}
        inputs = {"cache": cache, "document_ids": self.document_BP}
        cache.step_position_T = self.step_position_T
        try:
            with torch.autocast(device, cache_enabled=False, **settings):
                return functional_call(model, self.weights, (self.input_B1,), inputs, tie_weights=False)
        finally:
            cache.step_position_T = None

    def capture(self, model: nn.Module, cache: StaticCache) -> None:
        torch.cuda.synchronize()
        graph, collects, cache.branch = torch.cuda.CUDAGraph(), gc.isenabled(), torch.cuda.Stream()
        gc.disable()  # others' graphs that wait to be freed would end the capture
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                out = self.run(model, cache)
        finally:
            cache.branch = None
            if collects:
                gc.enable()
        self.graph = graph
        self.made = type(out), {name: value for name, value in out.items() if name != CACHE}
        # The tensors that the graph reads stay in memory, also when the model has replaced them.
        self.held = [module.derived.stored for module in model.modules() if hasattr(module, "derived")]
