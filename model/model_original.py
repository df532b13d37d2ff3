"""The dense baseline: pre-norm blocks of rotary attention and SwiGLU (or experts), tied embeddings.

Axes: B batch · T position · D width · V vocabulary
"""

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import DynamicCache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.utils import can_return_tuple

from .compat import earlier_state
from .config import ModelConfig, OriginalHFConfig
from .flash import DocumentStarts, document_starts, takes_documents
from .generation import Generation
from .layers import (
    INIT_STD,
    Attention,
    Context,
    StreamLinear,
    autocast_dtype,
    make_feed_forward,
    make_norm,
    normed,
    rotary_table,
)
from .losses import language_model_loss, softcapped
from .memory.ngram_index import Matches
from .memory.ngram_table import NgramGate, NgramTable
from .output import LanguageModelOutput
from .static_cache import CACHE, StaticCache
from .stretches import begin_stream, compiled_begin, compiled_end, compiled_stretch, end_stream, make_stretches
from .visibility import Visibility


class Block(nn.Module):
    """Attention, then the feed-forward, each after a norm and beside the residual stream."""

    def __init__(self, config: ModelConfig, layer: int, has_ffn: bool = True):
        super().__init__()
        self.joins_stretches = not config.use_moe
        # What the block enters with is this times the stream, and times the token embeddings.
        self.enter_scale = nn.Parameter(torch.empty(2)) if config.residual_scalars else None
        self.ngram_gate = NgramGate(config) if config.ngram_table_rows and layer in config.ngram_table_layers else None
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer)
        if has_ffn:
            self.ffn_norm = make_norm(config)
            self.feed_forward = make_feed_forward(config)

    def init_parameters(self) -> None:
        if self.enter_scale is not None:
            init.copy_(self.enter_scale, torch.tensor([1.0, 0.0]))

    def forward(self, x_BTD: Tensor, context: Context, fold: bool = False) -> tuple[Tensor, dict[str, Tensor], None]:
        """The stream after this block, its named loss terms, and what it read; `fold` as of `normed`."""
        x_BTD = self.enter(x_BTD, context)
        n_BTD, gain_D = normed(self.attention_norm, x_BTD, fold)
        h_BTD = x_BTD + self.attention(n_BTD, context, gain_D)
        n_BTD, gain_D = normed(self.ffn_norm, h_BTD, fold)
        y_BTD, aux = self.feed_forward(n_BTD, gain_D)
        return h_BTD + y_BTD, aux, None

    def enter(self, x_BTD: Tensor, context: Context) -> Tensor:
        """The stream that the block reads and adds to. Source: modded-nanogpt, for the scalars."""
        if self.enter_scale is not None:
            x_BTD = self.enter_scale[0] * x_BTD + self.enter_scale[1] * context.embedded_BTD
        return x_BTD if self.ngram_gate is None else self.ngram_gate(x_BTD, context.ngram_BTU)


class Transformer(Generation, PreTrainedModel, GenerationMixin):
    """`model_original`. A subclass changes `make_block` and `make_context`, nothing else."""

    config_class = OriginalHFConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _tied_weights_keys = {"lm_head.weight": "embedding.weight"}
    _supports_sdpa = True
    _no_split_modules = ["Block", "MemoryBlock"]

    def __init__(self, config: OriginalHFConfig):
        super().__init__(config)
        self.settings = settings = config.unwrap()
        if not settings.tie_embeddings:
            self._tied_weights_keys = {}
        self.embedding = nn.Embedding(settings.vocab_size, settings.dim)
        self.ngram_table = NgramTable(settings) if settings.ngram_table_rows else None
        self.make_blocks()
        self.norm = make_norm(settings)
        self.lm_head = nn.Linear(settings.dim, settings.vocab_size, bias=False)
        self.language_model_loss = language_model_loss
        ids = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
        self.generation_config = GenerationConfig()
        self.set_special_tokens(*ids)
        self.post_init()

    def set_special_tokens(self, bos: int, eos: int, pad: int) -> None:
        """Tell `generate`, and whoever reads the configuration, the special ids of the tokenizer."""
        for target in (self.config, self.generation_config):
            target.bos_token_id, target.eos_token_id, target.pad_token_id = bos, eos, pad

    @classmethod
    def from_pretrained(cls, path, *args, **options):
        """As in transformers; weights of an earlier layout are converted (`model/compat.py`)."""
        state = earlier_state(path) if path else None
        if state is None:
            return super().from_pretrained(path, *args, **options)
        config = options.pop("config", None) or cls.config_class.from_pretrained(path)
        return super().from_pretrained(None, *args, config=config, state_dict=state, **options)

    def make_blocks(self) -> None:
        self.stretches = []  # of blocks that a training step runs in one compilation; empty: none
        self.blocks = nn.ModuleList(self.make_block(layer) for layer in range(self.settings.n_layers))

    def make_block(self, layer: int) -> nn.Module:
        return Block(self.settings, layer)

    def make_context(
        self, input_BT: Tensor, labels_BT: Tensor | None, oracle_B: Tensor | None, matches: tuple | None, **shared
    ) -> Context:
        """What the blocks of one forward pass share."""
        if oracle_B is not None:
            raise ValueError("a model without a memory cannot be made to read an entry")
        return Context(**shared)

    def attention_mask(self, visible: Visibility) -> Tensor | BlockMask | DocumentStarts | None:
        """What `attend` takes, for the attention that the flags ask for."""
        settings = self.settings
        has_package = settings.use_flash_attn and settings.flash_backend == "flash_attn"
        if has_package and takes_documents(visible, autocast_dtype(self.embedding.weight)):
            return document_starts(visible.document_BX)
        return visible.mask(fused=settings.use_flash_attn)

    # The training loop knows of the memory only through `searched_together` and the next five methods.

    searched_together = 1  # batches that `search_text` takes as one, on a GPU

    def search_text(
        self, input_ids: Tensor, labels: Tensor | None = None, document_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Arguments of `forward` that depend on the text and the bank alone, of a batch to train on; none here."""
        return {}

    def refresh(self) -> None:
        """Bring up to date what depends on the parameters alone; a replayed step calls it outside of its graph."""

    def count_reads(self, readings: list) -> None:
        """Count which entries a forward pass in training mode has read; `forward` calls it, so a graph captures it."""

    def after_step(self, step: int, outcome, accelerator) -> None:
        """Change what the optimizer does not: an entry's moving average. Call it after every optimizer step.

        Args:
            step: optimizer steps taken so far, this one included.
            outcome: `outcome.readings`, the `readings` of the step's last micro-batch; `outcome.skipped`, a bool scalar
                on the device: the loss or gradient was not finite, so no parameter has changed.
            accelerator: gathers the readings of all processes; every process must call.
        """

    def metrics(self, accelerator, window: int) -> dict[str, float | list[int]]:
        """What the model measures of itself for a line of metrics.jsonl, by name; it counts reads anew from here.

        Every process must call, for the counts are summed over them. Nothing in the baseline.

        Args:
            window: steps between two calls. Reads are told only where they are those of so many steps: a shorter
                interval, as at a run's end, would seem to read less of the bank.
        """
        return {}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, StreamLinear) and self.settings.zero_init_out:
            init.zeros_(module.weight)
        elif isinstance(module, StreamLinear):
            # 2 n_layers outputs add up in the stream; its variance shall not grow with depth (GPT-2).
            init.normal_(module.weight, std=INIT_STD / (2 * self.settings.n_layers) ** 0.5)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, std=INIT_STD)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        elif hasattr(module, "init_parameters"):  # after the modules inside it
            module.init_parameters()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def set_input_embeddings(self, embedding: nn.Embedding) -> None:
        self.embedding = embedding

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, lm_head: nn.Linear) -> None:
        self.lm_head = lm_head

    def compile_parts(self) -> None:
        """Compile each block and the loss in place; equal blocks share a compilation, so the first step comes soon.

        Blocks with residual scalars are compiled in stretches: what one adds to the stream joins the norm of the next,
        and the gradients of the embeddings that all of them add are summed where they arise.
        """
        # Each kind of block or stretch is a variant of one function, in training, in evaluation and for rows of other
        # lengths. After 8 variants Dynamo would run the others uncompiled.
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, 4 * len(self.blocks))
        for block in self.blocks:
            block.compile()
        self.stretches = make_stretches(self.blocks) if self.settings.residual_scalars else []
        if self.ngram_table:
            self.ngram_table.compile()
        self.language_model_loss = torch.compile(language_model_loss)

    def fixed_cache(self, length: int) -> dict:
        """`generate`'s argument for captured steps, of texts up to `length`; none where that would gain nothing."""
        return {CACHE: StaticCache(length)} if self.device.type == "cuda" else {}

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        document_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: object | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_logits: bool = True,
        past_key_values: object | None = None,
        entry_B: Tensor | None = None,
        match_entry_BTC: Tensor | None = None,
        match_score_BTC: Tensor | None = None,
        suffix_entry_BTC: Tensor | None = None,
        suffix_score_BTC: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> LanguageModelOutput:
        """One pass over (B, T) token ids.

        Args:
            labels: (B, T), beside the input and not shifted; -100 where nothing is to be predicted.
            document_ids: (B, T) int; attention never crosses a change of it (packed rows).
            attention_mask: (B, past + T), 0 at padding on the left, as `generate` passes it; none within the text.
            cache: a transformers cache, or a StaticCache, filled in place; `past_key_values` is its name before
                transformers 5.24.
            logits_to_keep: 0 for the logits of every position, else of the last so many.
            return_logits: False spares a training step from handing back the largest tensor that it makes.
            entry_B: int64, an entry of the bank that every position of a row is made to read; NO_ENTRY: no change.
            match_entry_BTC, match_score_BTC, suffix_entry_BTC, suffix_score_BTC: as `search_text` returns them; without
                them the forward pass searches.
            output_hidden_states: return `hidden_states`: the embeddings, and the stream after each block, last normed.

        Returns:
            `loss` with the weighted auxiliary terms, None without labels; `logits` (B, T or logits_to_keep, V).
        """
        cache = cache if cache is not None else past_key_values
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if isinstance(cache, StaticCache) and cache.waits_for_step(input_ids):
            if self.training or output_hidden_states or any(x is not None for x in (labels, document_ids, entry_B)):
                raise ValueError("a StaticCache step takes no labels, document_ids, entry_B, dropout or hidden states")
            return cache.make_step(self, input_ids, attention_mask)
        if document_ids is None and attention_mask is not None and not attention_mask.all():
            document_ids = attention_mask  # padding is a document of its own
        found = (match_entry_BTC, match_score_BTC), (suffix_entry_BTC, suffix_score_BTC)
        matches = tuple(None if pair[0] is None else Matches(*pair) for pair in found)
        x_BTD, context = self.begin(input_ids, labels, document_ids, attention_mask, cache, entry_B, matches)
        hidden_states = [x_BTD] if output_hidden_states else None
        x_BTD, aux_losses, readings = self.run_blocks(x_BTD, context, hidden_states)
        end = compiled_end if self.training and self.stretches else end_stream
        x_BTD, *read = end(x_BTD, self.norm, self.row_stride_of(len(x_BTD)))
        if hidden_states:
            hidden_states = (*hidden_states[:-1], x_BTD)
        logits_BTV, lm_loss, more_readings = self.predict(
            x_BTD, *(read or [x_BTD]), context, labels, logits_to_keep, return_logits
        )
        readings += more_readings
        if self.training:
            self.count_reads(readings)
        weighted = (getattr(self.settings, f"{name}_loss_coef") * value for name, value in aux_losses.items())
        loss = None if labels is None else lm_loss + sum(weighted)
        return LanguageModelOutput(
            loss=loss, logits=logits_BTV, lm_loss=lm_loss, aux_losses=aux_losses,
            readings=readings, hidden_states=hidden_states, **{CACHE: cache},
        )  # fmt: skip

    def begin(
        self, input_ids: Tensor, labels, document_ids, attention_mask, cache, entry_B, matches
    ) -> tuple[Tensor, Context]:
        """The embedded text, and what every block sees of the forward pass; arguments as those of `forward`."""
        T, step_position_T = input_ids.shape[1], getattr(cache, "step_position_T", None)
        past = cache.get_seq_length() if cache is not None else 0
        if step_position_T is not None:
            past = cache.capacity - T
        visible = Visibility(past, T, document_ids, input_ids.device, step_position_T)
        cos_T1E, sin_T1E = rotary_table(visible.position_T, self.settings.head_dim, self.settings.rope_theta)
        start = compiled_begin if self.training and self.stretches else begin_stream
        x_BTD, embedded_BTD = start(self.embedding(input_ids), self.settings)
        context = self.make_context(
            input_ids, labels, entry_B, matches, visible=visible, cos_T1E=cos_T1E, sin_T1E=sin_T1E, cache=cache,
            attention_mask=self.attention_mask(visible),
            needs_losses=self.training or labels is not None, token_BT=input_ids,
            embedded_BTD=embedded_BTD,
            ngram_BTU=self.ngram_table and self.ngram_table(input_ids, visible, cache),
        )  # fmt: skip
        return x_BTD, context

    def before(self, blocks: list[nn.Module], context: Context) -> None:
        """What is due before these blocks run."""

    def run_blocks(
        self, x_BTD: Tensor, context: Context, hidden_states: list | None = None
    ) -> tuple[Tensor, dict[str, Tensor], list]:
        """The stream after the last block, each loss term's mean over the blocks that have it, and the readings.

        Args:
            hidden_states: a list that gets the stream after each block.
        """
        terms, readings = {}, []
        in_stretches = self.training and hidden_states is None and context.cache is None and self.stretches
        for blocks in in_stretches or ([block] for block in self.blocks):
            self.before(blocks, context)
            if len(blocks) > 1:
                x_BTD, each_aux, read = compiled_stretch(blocks, x_BTD, context)
            else:
                x_BTD, *each = blocks[0](x_BTD, context)
                each_aux, read = ([x] for x in each)
            readings += read
            if hidden_states is not None:
                hidden_states.append(x_BTD)
            for name, value in (item for aux in each_aux for item in aux.items()):
                terms.setdefault(name, []).append(value)
        return x_BTD, {name: torch.stack(values).mean() for name, values in terms.items()}, readings

    def row_stride_of(self, n_rows: int) -> int:
        """One of so many rows of a pass is read by a memory."""
        return 1

    def predict(
        self, x_BTD: Tensor, read_BTD: Tensor, context: Context, labels: Tensor | None, logits_to_keep: int,
        return_logits: bool,
    ):  # fmt: skip
        """From the last states: logits (or None), the language-model loss (or None), and what was read on the way.

        Args:
            read_BTD: the states of the rows that a memory reads.
        """
        logits_BTV = self.lm_head(x_BTD[:, -logits_to_keep:])
        cap = self.settings.logit_softcap
        lm_loss = None if labels is None else self.language_model_loss(logits_BTV, labels, cap)
        return softcapped(logits_BTV, cap) if return_logits else None, lm_loss, []
