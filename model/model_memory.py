"""`model_memory`: the baseline with blocks that look short texts up in a bank and read them, at every position.

Which file to open for which change (all but the first in `model/memory/`):
    model_memory.py      the order of attention, memory and feed-forward in a block; what is shared by all blocks
    product_keys.py      retrieval by learned keys: query, scores, selection, auxiliary losses, supervision
    ngrams.py            retrieval by n-grams; `ngram_index.py` and `ngram_search.py` below it
    cross_attention.py   fusion by attention to entries' vectors;   pooled.py   gated MLP and concatenation
    tokens.py            fusion by attention to entries' tokens, and the pointer;   coverage.py  by what is said of them
    word_keys.py         retrieval by product keys over words; `word_keys_index.py` below it
    suffixes.py          retrieval by the longest suffix of the text;   continuations.py   fusion of what follows it;
                         blocks of `suffix_layers` have both, whatever retrieval and fusion the others have
    bank.py, ema.py      the texts, their edits and access counts; their moving averages in training
    interfaces.py        what a retrieval and a fusion are given and return: read it before adding one
    __init__.py          the tables of retrievals and fusions: a new one is one file and one line

Axes: B batch · T position · D width · V vocabulary · S entries per position · W tokens of a position's entries
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import MemoryHFConfig, ModelConfig
from .layers import Context, DerivedWeights, in_autocast, make_norm, normed, scaled
from .losses import copying_loss, drawing_losses, softcapped
from .memory.bank import MemoryBank, access_histogram, add_reads, usage_statistics
from .memory.continuations import words_of
from .memory.ema import ema_update
from .memory.grid_order import Cached, order_bank
from .memory.interfaces import ForwardPass, Found, MemoryContext, Reading
from .memory.ngram_index import Matches
from .memory.suffixes import Suffixes
from .memory.text import previous_tokens
from .memory.tokens import Pointer, mixed_log_probabilities
from .model_original import Block, Transformer
from .ops import order_of_words, unit_entries
from .streams import beside, branch_of
from .visibility import Visibility


class MemoryBlock(Block):
    """Attention, then the memory in place of the feed-forward, or beside it with `keep_ffn`."""

    def __init__(self, config: ModelConfig, layer: int, memory_index: int):
        super().__init__(config, layer, has_ffn=config.keep_ffn)
        self.keeps_ffn = config.keep_ffn
        self.memory_norm = make_norm(config)
        self.retrieval = config.retrieval_class(config)
        self.fusion = config.fusion_class(config, memory_index)
        self.fusion_dropout = nn.Dropout(config.fusion_dropout)

    def forward(
        self, x_BTD: Tensor, context: MemoryContext, fold: bool = False
    ) -> tuple[Tensor, dict[str, Tensor], Reading]:
        x_BTD = self.enter(x_BTD, context)
        n_BTD, gain_D = normed(self.attention_norm, x_BTD, fold)
        h_BTD = x_BTD + self.attention(n_BTD, context, gain_D)
        n_BTD, gain_D = normed(self.memory_norm, h_BTD, fold)
        n_BTD = in_autocast(n_BTD)
        m_BTD = scaled(n_BTD, gain_D)  # compiled, it costs nothing where nobody reads it
        if context.searched is not None:
            context.searched.wait()
        found, aux = self.retrieval(m_BTD, context)
        every = len(x_BTD) // len(found.entry_BTS)  # with `memory_every` training searches some rows
        read_BTD = (n_BTD if self.fusion.folds_gain else m_BTD)[::every]
        y_BTD, weight_BTS = self.fusion(read_BTD, found, context, *([gain_D] if self.fusion.folds_gain else []))
        y_BTD = spread_rows(y_BTD, every)
        out_BTD = h_BTD + self.fusion_dropout(y_BTD)
        if self.keeps_ffn:
            n_BTD, gain_D = normed(self.ffn_norm, h_BTD, fold)
            ffn_BTD, ffn_aux = self.feed_forward(n_BTD, gain_D)
            out_BTD, aux = out_BTD + ffn_BTD, aux | ffn_aux
        return out_BTD, aux, Reading(found.entry_BTS, weight_BTS, found.query_BTD)


class MemoryTransformer(Transformer):
    """A memory block in each of `memory_layers`, and a pointer if asked for. With neither it is the baseline."""

    config_class = MemoryHFConfig

    def __init__(self, config: MemoryHFConfig):
        super().__init__(config)
        self.bank = MemoryBank(self.settings)
        if self.finder is not None:
            self.bank.finder = (self.finder,)
        self.derived, self.embeddings = DerivedWeights(), embeddings
        self.counted_steps = 0  # whose reads the bank has counted
        self.last_weights = []  # of the entries that the last micro-batch read, for `metrics`

    @classmethod
    def from_pretrained(cls, path, *args, **options):
        """As in transformers; the bank of a run folder gets the edits of the run's journal.

        Raises:
            ValueError: the journal is damaged, or belongs to another bank.
        """
        loaded = super().from_pretrained(path, *args, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.settings.reads_bank and path is not None and Path(path).is_dir():
            from runs.journal import Journal  # at the first call, so that `import model` imports nothing of `runs`

            Journal(path).replay(model.bank)
        return loaded

    def make_blocks(self) -> None:
        super().make_blocks()
        reads = self.settings.reads_bank
        self.finder = self.settings.retrieval_class.make_finder(self.settings) if reads else None
        if self.settings.pointer:
            self.pointer = Pointer(self.settings)
        self.drawing_losses, self.copying_loss = drawing_losses, copying_loss

    def make_block(self, layer: int) -> nn.Module:
        if layer not in self.settings.reading_layers:
            return super().make_block(layer)
        return MemoryBlock(self.settings.part_of(layer), layer, self.settings.reading_layers.index(layer))

    def refresh(self) -> None:
        if self.settings.reads_bank:
            self.settings.retrieval_class.refresh(self.settings, self.bank, self.embedding.weight)

    def make_context(
        self, input_BT: Tensor, labels_BT: Tensor | None, oracle_B: Tensor | None, matches: tuple | None,
        visible: Visibility, cache, needs_losses: bool, **shared
    ) -> Context:  # fmt: skip
        """The bank, and what retrieval, fusion and pointer declare to need, once for all blocks."""
        shared |= {"visible": visible, "cache": cache, "needs_losses": needs_losses}
        config, needs = self.settings, self.settings.prepares
        if not config.reads_bank:
            return super().make_context(input_BT, labels_BT, oracle_B, matches, **shared)
        retrieval, parameter_VD = config.retrieval_class, self.embedding.weight
        make = self.embeddings if self.training else embeddings
        embedding_VD, unit_VD = self.derived(lambda: make(parameter_VD, "unit_embeddings" in needs), parameter_VD)
        matches, suffixes = matches or (None, None)
        inputs = ForwardPass(
            input_BT, labels_BT, visible, cache, oracle_B, parameter_VD, self.training, needs_losses,
            matches, config.cache_layers - 1,
        )  # fmt: skip

        def search() -> object:
            every = self.row_stride_of(len(input_BT))
            read = inputs.every(every) if every > 1 else inputs
            return retrieval.search(config, self.bank, read, lay_out="text" in needs)

        def search_suffixes() -> Found | None:
            """For the blocks of `--suffix_layers`."""
            if (part := config.suffix_part) is None:
                return None
            own = inputs._replace(matches=suffixes, text_layer=config.cache_layers - 2)
            return Suffixes.search(part, self.bank, own, lay_out=False)

        # A step of a StaticCache searches beside its first blocks. One of training makes what is needed later there.
        decoding = getattr(cache, "branch", None)
        branch = branch_of(input_BT.device) if self.searches_beside(matches) else decoding
        places, _ = beside(decoding, search_suffixes)
        if branch and places is not None and self.training:
            order, _ = beside(branch, lambda: order_of_words(words_of(places), config.vocab_size))
            places = places._replace(order_2Z=order)
        found, searched = beside(branch, search)
        searched, found_later = (searched, None) if decoding else (None, searched)
        text = None
        if "text" in needs and retrieval.index_class is None:
            text = input_BT, previous_tokens(input_BT, visible.document_BX, cache, config.cache_layers - 1)
        has_kernel = torch.is_grad_enabled() and unit_entries.op.uses_kernel(embedding_VD.device)
        return MemoryContext(
            bank_token_NL=self.bank.tokens, embedding_VD=embedding_VD, shared=found, places=places,
            searched=searched, found_later=found_later, oracle_B=oracle_B,
            mask=config.fusion_class.make_mask(config, visible, len(input_BT)) if "mask" in needs else None,
            common=self.bank.common_tokens() if "common" in needs and has_kernel else None,
            unit_embedding_VD=unit_VD, text=text, **shared,
        )  # fmt: skip

    def searches_beside(self, matches: object) -> bool:
        """Whether a training step lays out beside its first blocks what was found ahead of it."""
        return self.training and matches is not None and self.finder is None and self.device.type == "cuda"

    def before(self, blocks: list[nn.Module], context: Context) -> None:
        """The first blocks that read `context.shared` wait for it."""
        if getattr(context, "found_later", None) is not None and any(reads_shared(block, context) for block in blocks):
            context.found_later.wait()
            context.found_later = None

    def row_stride_of(self, n_rows: int) -> int:
        """One of so many rows is read: all of them, but in training with `memory_every`."""
        every = self.settings.row_stride if self.training else 1
        if n_rows % every:
            raise ValueError(f"--memory_every {every} does not divide the {n_rows} rows of a micro-batch")
        return every

    def run_blocks(self, x_BTD: Tensor, context: Context, hidden_states: list | None = None):
        x_BTD, terms, readings = super().run_blocks(x_BTD, context, hidden_states)
        finder_loss = getattr(getattr(context, "shared", None), "loss", None)
        return x_BTD, terms if finder_loss is None else terms | {"finder": finder_loss}, readings

    def predict(
        self, x_BTD: Tensor, read_BTD: Tensor, context: Context, labels: Tensor | None, logits_to_keep: int,
        return_logits: bool,
    ):  # fmt: skip
        if not self.settings.pointer:
            return super().predict(x_BTD, read_BTD, context, labels, logits_to_keep, return_logits)
        for event in (context.searched, context.found_later):
            if event is not None:
                event.wait()
        every = len(x_BTD) // len(read_BTD)
        copy_BTW, weight_BTS = self.pointer(read_BTD, context.shared, context.unit_embedding_VD)
        reading = Reading(context.shared.entry_BTS, weight_BTS, None)
        token_BTW, logits_BTV = context.shared.tokens.token_BTW, self.lm_head(x_BTD[:, -logits_to_keep:])
        cap = self.settings.logit_softcap
        lm_loss = None
        if labels is not None:
            lm_loss = self.copying_loss(self.drawing_losses(logits_BTV, labels, cap), copy_BTW, token_BTW, labels)
        if not return_logits:
            return None, lm_loss, [reading]
        copy_BTW, token_BTW = (spread_rows(x[:, -logits_to_keep:], every) for x in (copy_BTW, token_BTW))
        return mixed_log_probabilities(softcapped(logits_BTV, cap), copy_BTW, token_BTW), lm_loss, [reading]

    def compile_parts(self) -> None:
        super().compile_parts()
        self.bank.add_reads = torch.compile(add_reads)
        if "unit_embeddings" in self.settings.prepares:
            self.embeddings = torch.compile(embeddings)
        if self.settings.pointer:
            self.pointer.compile()
            self.drawing_losses, self.copying_loss = map(torch.compile, (drawing_losses, copying_loss))

    # What the training loop calls: see the docstrings of `Transformer`.

    @property
    def searched_together(self) -> int:
        return self.settings.retrieval_class.searched_together if self.device.type == "cuda" else 1

    @torch.no_grad()
    def search_text(
        self, input_ids: Tensor, labels: Tensor | None = None, document_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        config = self.settings
        if not config.reads_bank:
            return {}
        every = self.row_stride_of(len(input_ids))
        texts = input_ids[::every], document_ids if document_ids is None else document_ids[::every]
        found = {"match": config.retrieval_class.search_text(config, self.bank, *texts)}
        if found["match"] and every > 1:
            found["match"] = Matches(*(spread_rows(x, every) for x in found["match"]))
        if config.suffix_part:
            found["suffix"] = Suffixes.search_text(config.suffix_part, self.bank, input_ids, document_ids)
        # Contiguous, as copies are: other strides would compile a training step anew while it is captured.
        return {
            f"{kind}_{name}": value.contiguous()
            for kind, matches in found.items()
            if matches
            for name, value in matches._asdict().items()
        }

    def count_reads(self, readings: list[Reading | None]) -> None:
        if found := [reading for reading in readings if reading is not None]:
            self.bank.count(found)

    def after_step(self, step: int, outcome, accelerator) -> None:
        if not self.settings.reads_bank:
            return
        self.counted_steps += 1
        readings = [reading for reading in outcome.readings if reading is not None]
        self.last_weights = [reading.weight_BTS for reading in readings]
        interval = self.settings.ema_interval
        if interval and step % interval == 0 and not outcome.skipped:
            self.ema_update(accelerator.gather(readings))

    @torch.no_grad()
    def metrics(self, accelerator, window: int) -> dict[str, float | list[int]]:
        """Use of the bank by each reader in the rows that it reads; the entropy in nats of the last weights."""
        if not self.settings.reads_bank:
            return {}
        names = [self.settings.reader_name(index).replace(" ", "_") for index in self.settings.readers]
        count_MN = accelerator.reduce(self.bank.take_counts(len(names)).to(self.device))
        if torch.are_deterministic_algorithms_enabled():  # sums along a tensor are not, on CUDA
            count_MN = count_MN.cpu()
        metrics = {}
        if self.counted_steps == window:
            for name, count_N in zip(names, count_MN, strict=True):
                metrics |= {f"memory/{key}/{name}": value for key, value in usage_statistics(count_N).items()}
                metrics[f"memory/uses/{name}"] = access_histogram(count_N)
        self.counted_steps = 0
        if self.last_weights:
            entropies = [torch.special.entr(weight_BTS.float()).sum(dim=-1).mean() for weight_BTS in self.last_weights]
            metrics["memory/selection_entropy"] = float(torch.stack(entropies).mean())
        return metrics

    def ema_update(self, readings: list[Reading | None]) -> int:
        """Move unfrozen entries toward the queries that read them; returns how many rows changed."""
        return ema_update(self.bank, [r for r in readings if r is not None], self.embedding.weight)

    @torch.no_grad()
    def order_by_content(self, n_tokens: int | None = None, cached: Cached | None = None) -> Tensor:
        """Order the bank so that rows and columns of the grid are clusters, and start every block's sub-keys from them.

        Args:
            n_tokens, cached: see `grid_order.order_bank`.
        Returns:
            (N,) int64 on the CPU: which of the given entries each row now has.
        """
        order_N, keys_2RK = order_bank(self.bank, self.embedding.weight, n_tokens, cached)
        for layer in self.settings.reading_layers:
            self.blocks[layer].retrieval.keys_2RK.copy_(keys_2RK)
        return order_N.cpu()


def reads_shared(block: nn.Module, context: MemoryContext) -> bool:
    """Whether a block reads what the search of `--retrieval` has found."""
    reads_places = context.places is not None and isinstance(getattr(block, "retrieval", None), Suffixes)
    return isinstance(block, MemoryBlock) and not reads_places


def spread_rows(x_BTX: Tensor, every: int) -> Tensor:
    """Each row, and after it rows of zeros: `every` rows for one."""
    return x_BTX if every == 1 else F.pad(x_BTX[:, None], (0, 0, 0, 0, 0, every - 1)).flatten(0, 1)


def embeddings(parameter_VD: Tensor, unit: bool) -> tuple[Tensor, Tensor | None]:
    """The embeddings in the precision of autocast and, if `unit`, each row of them at unit scale."""
    embedding_VD = in_autocast(parameter_VD)
    return embedding_VD, F.rms_norm(embedding_VD, embedding_VD.shape[-1:], eps=1e-8) if unit else None
