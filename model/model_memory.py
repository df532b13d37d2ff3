"""The memory model: blocks that look up short texts in a bank and read them, at every position.

Axes: B batch · T position · D width · N bank entries = R*R · R sub-keys per half · K sub-key width D/2
      L tokens per entry · C candidates · S selected entries · H halves of a query, in a Lesson
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from common.constants import IGNORED, NO_ENTRY, PADDING

from .config import MemoryHFConfig, ModelConfig
from .layers import Context, Kept, Visibility, in_autocast, make_norm
from .losses import balance_loss, copying_loss, diversity_loss, retrieval_loss, similarity_loss, softcapped
from .memory.bank import ROWS_AT_ONCE, MemoryBank, usage_statistics, use_histogram
from .memory.cross_attention import DROPPED, FUSIONS, Entries, fusion_mask
from .memory.grid_order import cached_content_order, content_keys, order_by_rarest_words, weighed_words
from .memory.ngram_index import find_matches, previous_tokens, rarity
from .memory.product_keys import cosine_to_entries, mixed_entries, select
from .memory.tokens import Pointer, WordAttention, WordFusion, Words, mixed_log_probabilities, read_words
from .model_original import INIT_STD, Block, Transformer
from .ops import search_grid, unit_entries
from .ops.entries import CommonTokens

TEACHER_CANDIDATES = 16  # what the n-grams keep where they only teach


class Reading(NamedTuple):
    """What one block, or the pointer, read at every position.

    entry_BTS: int64; any row where the weight is 0.  weight_BTS: at most 1 in sum; the pointer's: the probability that
    the next token is copied from the entry.  query_BTD: what chose the entries, None where n-grams did.
    """

    entry_BTS: Tensor
    weight_BTS: Tensor
    query_BTD: Tensor | None


@dataclass
class Found:
    """What the n-grams found for every position, and the words that stand there."""

    entry_BTS: Tensor  # row 0 where nothing was found
    token_BTSL: Tensor  # PADDING where nothing was found
    log_score_BTS: Tensor  # float32, ln(1 + score), 0 where nothing was found
    words: Words


class Lesson(NamedTuple):
    """What training shows the product keys.

    place_BTH: int64, row and column of the entry to be found, IGNORED where that is not known.
    entry_BT1: int64, an entry that is read whatever the keys propose, NO_ENTRY where there is none; None: nowhere.
    """

    place_BTH: Tensor
    entry_BT1: Tensor | None


@dataclass
class MemoryContext(Context):
    """The bank as the blocks see it, and the mask of the fusion."""

    token_NL: Tensor
    norm_N: Tensor | None  # lengths of the entries' vectors, where a cosine is needed
    embedding_VD: Tensor
    table_VD: Tensor | None  # the embeddings at unit scale, for reading words
    fusion_mask: object
    common: CommonTokens | None
    found: Found | None
    text: tuple[Tensor, Tensor] | None  # each token and the one before it, where words meet them
    lesson: Lesson | None
    entry_B: Tensor | None  # what every position is made to read, whatever it found


class MemoryBlock(Block):
    """Attention, then the memory in the place of the feed-forward, or beside it with `keep_ffn`.

    This one finds its entries by product keys; NgramBlock reads what the n-grams found.
    """

    def __init__(self, config: ModelConfig, layer: int, memory_index: int):
        super().__init__(config, layer, has_ffn=config.keep_ffn)
        self.config = config
        self.memory_norm = make_norm(config)
        self.make_retrieval()
        if config.fusion == "words":
            self.fusion = WordFusion(config)
        else:
            self.fusion = FUSIONS[config.fusion](config, memory_index)
            # Mean embeddings start near 0.007; the epsilon of the other norms would shrink them.
            self.entry_norm = nn.RMSNorm(config.dim, eps=1e-8)
        self.fusion_dropout = nn.Dropout(config.fusion_dropout)

    def make_retrieval(self) -> None:
        self.query_proj = nn.Linear(self.config.dim, self.config.dim, bias=False)
        self.keys_2RK = nn.Parameter(torch.empty(2, self.config.grid_side, self.config.dim // 2))

    def forward(self, x_BTD: Tensor, context: MemoryContext) -> tuple[Tensor, dict[str, Tensor], Reading]:
        x_BTD = self.enter(x_BTD, context)
        h_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), context)
        memory_BTD, aux, reading = self.read_memory(in_autocast(self.memory_norm(h_BTD)), context)
        out_BTD = h_BTD + self.fusion_dropout(memory_BTD)
        if self.config.keep_ffn:
            ffn_BTD, ffn_aux = self.feed_forward(self.ffn_norm(h_BTD))
            out_BTD, aux = out_BTD + ffn_BTD, aux | ffn_aux
        return out_BTD, aux, reading

    def read_memory(self, x_BTD: Tensor, context: MemoryContext) -> tuple[Tensor, dict[str, Tensor], Reading]:
        """Query, retrieve, select, read, fuse: in that order."""
        query_BTD = self.make_query(x_BTD)
        query_2MK = query_BTD.flatten(0, 1).unflatten(-1, (2, -1)).transpose(0, 1)
        score_BT2R = torch.bmm(query_2MK, self.keys_2RK.transpose(1, 2)).transpose(0, 1).unflatten(0, x_BTD.shape[:2])
        balanced = context.needs_losses and self.config.balance_loss_coef > 0
        scale = self.keys_2RK.shape[-1] ** -0.5
        score_BTC, entry_BTC, use = search_grid(score_BT2R, self.config.num_candidates, balanced, scale)
        aux = {"balance": balance_loss(*use)} if use else {}
        if context.lesson:
            aux["retrieval"] = retrieval_loss(score_BT2R * scale, context.lesson.place_BTH)

        if context.norm_N is not None:
            score_BTC, cosine_aux = self.rescore(query_BTD, entry_BTC, score_BTC, context)
            aux |= cosine_aux
            if context.lesson and self.config.selection != "product_key":
                place_BT1 = self.place_among(entry_BTC, context.lesson.place_BTH)
                aux["retrieval"] = aux["retrieval"] + retrieval_loss(score_BTC[:, :, None], place_BT1)
        entry_BTS, log_weight_BTS = select(entry_BTC, score_BTC, self.config, self.training)
        forced_BT1 = context.lesson.entry_BT1 if context.lesson else None
        if context.entry_B is not None:
            forced_BT1 = context.entry_B[:, None, None]
        if forced_BT1 is not None:
            entry_BTS, score_BTS = force(forced_BT1, entry_BTS, log_weight_BTS, 0.0, DROPPED)
            entry_BTS = entry_BTS.clamp(min=0)
            log_weight_BTS = torch.where(forced_BT1 == NO_ENTRY, log_weight_BTS, score_BTS.log_softmax(dim=-1))
        token_BTSL = context.token_NL[entry_BTS.flatten()].view(*entry_BTS.shape, -1)
        if isinstance(self.fusion, WordFusion):
            words = read_words(token_BTSL.long(), entry_BTS, *context.text)
            fused_BTD, attention_BTW = self.fusion(x_BTD, words, log_weight_BTS, context.table_VD)
            return fused_BTD, aux, Reading(entry_BTS, weight_of_entries(attention_BTW, words), query_BTD.detach())
        fused_BTD = self.fuse(x_BTD, token_BTSL, log_weight_BTS, context)
        return fused_BTD, aux, Reading(entry_BTS, log_weight_BTS.detach().exp(), query_BTD.detach())

    def place_among(self, entry_BTC: Tensor, place_BTH: Tensor) -> Tensor:
        """(B, T, 1) int64: where the right entry stands among the candidates, IGNORED where it does not."""
        right_BT1 = place_BTH[..., :1] * self.config.grid_side + place_BTH[..., 1:]
        is_right_BTC = entry_BTC == right_BT1
        return is_right_BTC.int().argmax(dim=-1, keepdim=True).masked_fill(~is_right_BTC.any(-1, keepdim=True), IGNORED)

    def make_query(self, x_BTD: Tensor) -> Tensor:
        """The query, with `query_norm` each half of it at unit scale.

        Source: Lample et al. 2019, arXiv:1907.05242, who norm queries over the batch. Differs: over a half's own
        channels, so that no position's entries depend on other positions, and without a gain: the sub-keys have one.
        """
        query_BTD = self.query_proj(x_BTD)
        if not self.config.query_norm:
            return query_BTD
        query_BT2K = query_BTD.unflatten(-1, (2, -1))
        return in_autocast(F.rms_norm(query_BT2K, query_BT2K.shape[-1:], eps=self.config.norm_eps).flatten(-2))

    def fuse(self, x_BTD: Tensor, token_BTSL: Tensor, log_weight_BTS: Tensor, context: MemoryContext) -> Tensor:
        norm = self.entry_norm
        entries = Entries(token_BTSL, context.embedding_VD, norm.weight, norm.eps, context.common)
        return self.fusion(x_BTD, entries, log_weight_BTS, context.fusion_mask, context.cache)

    def rescore(self, query_BTD: Tensor, entry_BTC: Tensor, score_BTC: Tensor, context: MemoryContext):
        """The candidates' scores after their texts were compared with the query, and the losses of that comparison.

        The product-key score stays in the sum, as a prior: without it the language-model loss could not train the keys.
        """
        config = self.config
        token_BTCL, norm_BTC = context.token_NL[entry_BTC].long(), context.norm_N[entry_BTC]
        cosine_BTC = cosine_to_entries(query_BTD, token_BTCL, norm_BTC, context.embedding_VD)
        if config.selection != "product_key":
            score_BTC = score_BTC + cosine_BTC / config.cosine_temperature
        if not context.needs_losses:
            return score_BTC, {}

        log_weight_BTC, aux = score_BTC.log_softmax(dim=-1), {}
        if config.similarity_loss_coef:
            aux["similarity"] = similarity_loss(cosine_BTC, log_weight_BTC)
        if config.diversity_loss_coef:
            unit_BTC = log_weight_BTC.exp() / norm_BTC.clamp(min=1e-6)
            mixture_BTD = mixed_entries(token_BTCL, unit_BTC, context.embedding_VD.detach())
            aux["diversity"] = diversity_loss(mixture_BTD, log_weight_BTC)
        return score_BTC, aux


def force(entry_BT1: Tensor, entry_BTS: Tensor, score_BTS: Tensor, score: float, absent: float):
    """Make a position read one entry before the others that it found; the last of those gives way.

    Args:
        entry_BT1: NO_ENTRY leaves a position as it is; T may be 1, for all of a row.
        score: what the entry gets.  absent: the score of no entry.
    Returns:
        entry_BTS, NO_ENTRY where the same entry had been found anyway, and score_BTS.
    """
    again_BTS = entry_BTS == entry_BT1
    others_BTS = entry_BTS.masked_fill(again_BTS, NO_ENTRY)[..., :-1]
    scores_BTS = score_BTS.masked_fill(again_BTS, absent)[..., :-1]
    forced_BTS = torch.cat([entry_BT1.expand(*entry_BTS.shape[:2], 1), others_BTS], dim=-1)
    forced_score_BTS = F.pad(scores_BTS, (1, 0), value=score)
    is_forced_BT1 = entry_BT1 != NO_ENTRY
    return torch.where(is_forced_BT1, forced_BTS, entry_BTS), torch.where(is_forced_BT1, forced_score_BTS, score_BTS)


def log_weights(strength: Tensor, found: Found) -> Tensor:
    """(B, T, S): how much the n-grams speak for each entry; `strength` is learned."""
    return strength * found.log_score_BTS


def weight_of_entries(attention_BTW: Tensor, words: Words) -> Tensor:
    """(B, T, S): the attention to all words of each entry."""
    return attention_BTW.detach().unflatten(-1, (words.entry_BTS.shape[-1], -1)).sum(dim=-1)


def words_reading(attention_BTW: Tensor, found: Found) -> Reading:
    return Reading(found.entry_BTS, weight_of_entries(attention_BTW, found.words), None)


class NgramBlock(MemoryBlock):
    """Reads the entries that the n-grams found, by their words or, with the other fusions, by their vectors."""

    def make_retrieval(self) -> None:
        self.strength = nn.Parameter(torch.empty(()))

    def read_memory(self, x_BTD: Tensor, context: MemoryContext) -> tuple[Tensor, dict[str, Tensor], Reading]:
        found = context.found
        log_weight_BTS = log_weights(self.strength, found)
        if isinstance(self.fusion, WordFusion):
            fused_BTD, attention_BTW = self.fusion(x_BTD, found.words, log_weight_BTS, context.table_VD)
            return fused_BTD, {}, words_reading(attention_BTW, found)
        log_weight_BTS = log_weight_BTS.log_softmax(dim=-1)
        fused_BTD = self.fuse(x_BTD, found.token_BTSL, log_weight_BTS, context)
        weight_BTS = log_weight_BTS.detach().exp() * (found.log_score_BTS > 0)
        return fused_BTD, {}, Reading(found.entry_BTS, weight_BTS, None)


class MemoryTransformer(Transformer):
    """`model_memory`: the baseline with a memory block in each of `memory_layers`, and a pointer if asked for.

    With neither it is the baseline.
    """

    config_class = MemoryHFConfig

    def __init__(self, config: MemoryHFConfig):
        super().__init__(config)
        self.bank = MemoryBank(self.settings)
        self.kept = Kept()
        self.last_weights = []  # of the entries that the last micro-batch read, for `metrics`

    @classmethod
    def from_pretrained(cls, path, *args, **options):
        """As in transformers; the bank of a run folder gets the edits of the run's journal.

        Raises:
            ValueError: the journal is damaged, or belongs to another bank.
        """
        loaded = super().from_pretrained(path, *args, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.settings.reads_bank and Path(path).is_dir():
            from runs.journal import Journal  # imported here: no module of this package depends on `runs`

            Journal(path).replay(model.bank)
        return loaded

    def make_blocks(self) -> None:
        super().make_blocks()
        if self.settings.pointer:
            self.pointer = Pointer(self.settings)
            self.strength = nn.Parameter(torch.empty(()))
        self.copying_loss = copying_loss

    def make_block(self, layer: int) -> nn.Module:
        if layer not in self.settings.reading_layers:
            return super().make_block(layer)
        block_class = NgramBlock if self.settings.retrieval == "ngram" else MemoryBlock
        return block_class(self.settings, layer, self.settings.reading_layers.index(layer))

    def refresh(self) -> None:
        if self.settings.needs_cosine():
            self.bank.norms(self.embedding.weight)

    def make_context(
        self, input_BT: Tensor, labels_BT: Tensor | None, entry_B: Tensor | None, visible: Visibility, cache,
        needs_losses: bool, **shared
    ) -> Context:  # fmt: skip
        """The bank and the words as the blocks of one forward pass see them."""
        embedding_VD = self.embedding.weight
        norm_N = self.bank.norms(embedding_VD) if self.settings.needs_cosine(needs_losses) else None
        embedding_VD, table_VD = self.kept(self.tables, embedding_VD)
        found = self.find(input_BT, visible, cache, entry_B) if self.settings.uses_ngrams else None
        text = None
        if self.settings.reads_words and not found:
            layer = self.settings.cache_layers - 1
            text = input_BT, previous_tokens(input_BT, visible.document_BX, cache, layer)
        taught = self.training and self.settings.teaches_retrieval and labels_BT is not None
        lesson = self.make_lesson(input_BT, labels_BT, visible) if taught else None
        vectors = self.settings.fusion != "words" and bool(self.settings.reading_layers)
        trained = torch.is_grad_enabled() and unit_entries.op.uses_kernel(embedding_VD.device)
        common = self.bank.common_words() if vectors and trained else None
        return MemoryContext(
            visible=visible, cache=cache, needs_losses=needs_losses, token_NL=self.bank.tokens, norm_N=norm_N,
            embedding_VD=embedding_VD, table_VD=table_VD, found=found, text=text, lesson=lesson, entry_B=entry_B,
            common=common, fusion_mask=fusion_mask(visible, self.settings, len(input_BT)), **shared,
        )  # fmt: skip

    def tables(self) -> tuple[Tensor, Tensor | None]:
        """The embeddings in the precision of autocast and, for reading words, at unit scale."""
        embedding_VD = in_autocast(self.embedding.weight)
        if not self.settings.reads_words:
            return embedding_VD, None
        return embedding_VD, F.rms_norm(embedding_VD, embedding_VD.shape[-1:], eps=1e-8)

    @torch.no_grad()
    def find(self, input_BT: Tensor, visible: Visibility, cache, entry_B: Tensor | None) -> Found:
        """Retrieval by n-grams, once for all blocks."""
        S, layer = self.settings.num_selected, self.settings.cache_layers - 1
        matches, previous_BT = find_matches(self.bank.ngrams(), input_BT, visible.document_BX, cache, layer)
        entry_BTS, score_BTS = matches.entry_BTC[..., :S], matches.score_BTC[..., :S]
        if entry_B is not None:
            sure = 10 * math.log(len(self.bank.tokens))  # as if ten n-grams stood nowhere else
            entry_BTS, score_BTS = force(entry_B[:, None, None], entry_BTS, score_BTS, sure, 0.0)
        missing_BTS, entry_BTS = entry_BTS == NO_ENTRY, entry_BTS.clamp(min=0)
        if self.training and self.settings.retrieval_noise:
            noisy_BTS = torch.rand_like(score_BTS) < self.settings.retrieval_noise
            entry_BTS = torch.where(noisy_BTS, torch.randint_like(entry_BTS, len(self.bank.tokens)), entry_BTS)
        token_BTSL = self.bank.tokens[entry_BTS].long().masked_fill(missing_BTS[..., None], PADDING)
        words = read_words(token_BTSL, entry_BTS.masked_fill(missing_BTS, NO_ENTRY), input_BT, previous_BT)
        return Found(entry_BTS, token_BTSL, score_BTS.log1p(), words)

    @torch.no_grad()
    def make_lesson(self, input_BT: Tensor, labels_BT: Tensor, visible: Visibility) -> Lesson:
        """The entry that the text up to each position points to most, as the keys are shown it.

        It is to be found only where the text is given and not to be learnt, in questions and in entries: of what a
        running text points to, most says nothing about it. Read it may be anywhere.
        Related: Tay et al. 2022, arXiv:2202.06991 (a search index that is learnt from its documents, under ids that
        mean something).
        """
        matches, _ = find_matches(self.bank.ngrams(), input_BT, visible.document_BX, n_kept=TEACHER_CANDIDATES)
        entry_BT1, R = matches.entry_BTC[..., :1], self.settings.grid_side
        learnt_BT1 = ((labels_BT != IGNORED) | (input_BT == PADDING))[..., None]
        unknown_BT1 = (entry_BT1 == NO_ENTRY) | learnt_BT1
        place_BTH = torch.cat([entry_BT1 // R, entry_BT1 % R], dim=-1).masked_fill(unknown_BT1, IGNORED)
        if not self.settings.teacher_forcing:
            return Lesson(place_BTH, None)
        left_BT1 = torch.rand(entry_BT1.shape, device=entry_BT1.device) >= self.settings.teacher_forcing
        return Lesson(place_BTH, entry_BT1.masked_fill(left_BT1, NO_ENTRY))

    def predict(self, x_BTD: Tensor, context: Context, labels: Tensor | None, logits_to_keep: int, return_logits: bool):
        if not self.settings.pointer:
            return super().predict(x_BTD, context, labels, logits_to_keep, return_logits)
        log_weight_BTS = log_weights(self.strength, context.found)
        copy_BTW = self.pointer(x_BTD, context.found.words, log_weight_BTS, context.table_VD)
        reading = words_reading(copy_BTW, context.found)
        token_BTW, logits_BTV = context.found.words.token_BTW, self.lm_head(x_BTD[:, -logits_to_keep:])
        cap = self.settings.logit_softcap
        lm_loss = None if labels is None else self.copying_loss(logits_BTV, copy_BTW, token_BTW, labels, cap)
        if not return_logits:
            return None, lm_loss, [reading]
        copy_BTW, token_BTW = copy_BTW[:, -logits_to_keep:], token_BTW[:, -logits_to_keep:]
        return mixed_log_probabilities(softcapped(logits_BTV, cap), copy_BTW, token_BTW), lm_loss, [reading]

    def compile_parts(self) -> None:
        super().compile_parts()
        if self.settings.pointer:
            self.pointer.compile()
            self.copying_loss = torch.compile(copying_loss)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, NgramBlock) or (module is self and self.settings.pointer):
            init.ones_(module.strength)
        elif isinstance(module, MemoryBlock):
            init.normal_(module.keys_2RK)
        elif isinstance(module, WordAttention):
            init.normal_(module.entry_q_proj.weight, std=0.1 * INIT_STD)  # the ranking starts as the retrieval's
            init.zeros_(module.nothing.weight)
            # A word whose two predecessors are the text's last two beats reading nothing, if n-grams found its entry.
            init.constant_(module.nothing.bias, 3.0)
            init.copy_(module.follows_bias, torch.tensor([3.0, 2.0]))
        elif isinstance(module, Pointer):
            init.zeros_(module.gate.weight)
            init.zeros_(module.gate.bias)

    @torch.no_grad()
    def order_by_content(self, cache_path: str, n_words: int | None = None) -> Tensor:
        """Order the bank so that rows and columns of the grid are clusters, and start every block's sub-keys from them.

        Args:
            n_words: so many words at an entry's beginning say what it is about, the rarest most; None: all alike.
        Returns:
            (N,) int64: which of the given entries now stands in each place.
        """
        rows = torch.arange(len(self.bank.tokens), device=self.device).split(ROWS_AT_ONCE)
        if n_words is None:
            vectors, by_word_N = [self.bank.vectors(row_X, self.embedding.weight) for row_X in rows], None
        else:
            first_NW, count_V = self.bank.tokens[:, :n_words], self.bank.count_words()
            rarity_V, by_word_N = rarity(count_V, len(first_NW)), order_by_rarest_words(first_NW, count_V)
            vectors = [weighed_words(first_NW[row_X], rarity_V, self.embedding.weight) for row_X in rows]
        vector_ND = torch.cat(vectors)
        order_N = cached_content_order(cache_path, self.bank.tokens, vector_ND, self.settings.grid_side, by_word_N)
        order_N = order_N.to(self.device)
        self.bank.tokens.copy_(self.bank.tokens[order_N])
        keys_2RK = content_keys(vector_ND[order_N], self.settings.grid_side)
        for layer in self.settings.reading_layers:
            self.blocks[layer].keys_2RK.copy_(keys_2RK)
        return order_N.cpu()

    # What the training loop calls: see the docstrings of `Transformer`.

    def count_reads(self, readings: list[Reading | None]) -> None:
        for reading in filter(None, readings):
            self.bank.count(reading.entry_BTS, reading.weight_BTS)

    def after_step(self, step: int, outcome, accelerator) -> None:
        if not self.settings.reads_bank:
            return
        readings = [reading for reading in outcome.readings if reading is not None]
        self.last_weights = [reading.weight_BTS for reading in readings]
        interval = self.settings.ema_interval
        if interval and step % interval == 0 and not outcome.skipped:
            self.rewrite_bank(accelerator.gather(readings))

    @torch.no_grad()
    def metrics(self, accelerator) -> dict[str, float | list[int]]:
        """Use of the bank since the last call, and the entropy in nats of the weights of the last micro-batch."""
        if not self.settings.reads_bank:
            return {}
        uses_N = accelerator.reduce(self.bank.take_counts().to(self.device))
        if torch.are_deterministic_algorithms_enabled():  # sums along a tensor are not, on CUDA
            uses_N = uses_N.cpu()
        metrics = {f"memory/{name}": value for name, value in usage_statistics(uses_N).items()}
        metrics["memory/uses"] = use_histogram(uses_N)
        if self.last_weights:
            weight_XS = torch.cat([weight_BTS.flatten(0, 1) for weight_BTS in self.last_weights]).float()
            metrics["memory/selection_entropy"] = float(torch.special.entr(weight_XS).sum(dim=-1).mean())
        return metrics

    @torch.no_grad()
    def rewrite_bank(self, readings: list[Reading | None]) -> int:
        """Rewrite unfrozen entries toward the queries that read them; returns how many rows changed."""
        read = [reading for reading in readings if reading is not None]
        entry_X = torch.cat([reading.entry_BTS.flatten() for reading in read])
        query_XD = torch.cat(
            [reading.query_BTD.repeat_interleave(self.settings.num_selected, dim=1).flatten(0, 1) for reading in read]
        )
        return self.bank.rewrite(entry_X, query_XD, self.embedding.weight)
