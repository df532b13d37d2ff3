"""`generate`, with the options of transformers that these models support; the others are refused."""

import copy

import torch
from transformers import GenerationConfig

from .static_cache import CACHE, StaticCache

CACHES = (None, "dynamic", "static")


class Generation:
    """What a Transformer adds to transformers' `GenerationMixin`; it stands before it among the bases."""

    def generate(
        self, inputs: torch.Tensor | None = None, generation_config: GenerationConfig | None = None, *args, **options
    ):
        """As in transformers; `cache_implementation="static"` takes this project's StaticCache.

        Raises:
            ValueError: an option is not supported.
        """
        given = generation_config or self.generation_config

        def option(name: str):
            return options[name] if options.get(name) is not None else getattr(given, name, None)

        if option("output_attentions"):
            raise ValueError("generate cannot return attentions: the fused attention never writes them out")
        kind = option("cache_implementation")
        if kind not in CACHES:
            raise ValueError(f'cache_implementation={kind!r} is not supported: leave it out, or take "static"')
        if kind == "static":
            prompt = inputs if inputs is not None else options.get("input_ids")
            length = prompt.shape[-1] if prompt is not None else 1
            more = option("max_new_tokens") or (option("max_length") or self.settings.max_seq_len) - length
            options |= {"cache_implementation": None, CACHE: StaticCache(length + max(more, 1))}
            if given.cache_implementation is not None:
                generation_config = copy.deepcopy(given)
                generation_config.cache_implementation = None
        return super().generate(inputs, generation_config, *args, **options)

    def prepare_inputs_for_generation(self, *args, **kwargs):
        """The arguments of `forward`. The tokenizer serves `stop_strings` alone."""
        for name in ("tokenizer", "assistant_tokenizer"):
            kwargs.pop(name, None)
        return super().prepare_inputs_for_generation(*args, **kwargs)
