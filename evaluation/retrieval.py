"""Is the entry that holds the answer found, and is it read, where the answer begins?

Axes: B questions · C candidates · X sequences of a batch
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.nn.utils.rnn import pad_sequence

from common.constants import NO_ENTRY
from model.memory.ngram_index import NgramIndex, find_matches
from model.ops import search_grid

from .likelihood import letter
from .object import ask_objects, split_question
from .settings import Settings, accuracy

TASK_VERSION = 1
CANDIDATES = (1, 4, 16, 64)
MOST_PLACES = 4096  # for the exhaustive search, an n-gram in more places than this says nothing


def last_positions(model, tokenizer, prompts: list[str], batch_size: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Batches of prompts as (X, T) ids, padded on the left so that each ends where its answer begins."""
    ids = [[tokenizer.bos_token_id, *tokenizer(p, add_special_tokens=False).input_ids] for p in prompts]
    ids = [torch.tensor(row[-model.settings.max_seq_len :]) for row in ids]
    for begin in range(0, len(ids), batch_size):
        rows = ids[begin : begin + batch_size]
        input_XT = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id, padding_side="left")
        yield slice(begin, begin + len(rows)), input_XT.to(model.device)


def best_entries(model, reading, block, n: int) -> torch.Tensor:
    """(X, n): the best entries by product key for the last query of each row."""
    query_X12K = reading.query_BTD[:, -1:].unflatten(-1, (2, -1))
    score_X12R = torch.einsum("btpk,prk->btpr", query_X12K, block.keys_2RK.to(query_X12K.dtype))
    return search_grid(score_X12R, min(n, model.settings.grid_side))[1][:, 0]


@torch.no_grad()
def candidates_and_reads(model, tokenizer, prompts: list[str], settings: Settings):
    """For each reading layer, (B, 64) candidates in order, and (B, S) entries that are read, NO_ENTRY as filler."""
    found: dict[str, list[torch.Tensor]] = {}
    read: dict[str, list[torch.Tensor]] = {}
    for _, input_XT in last_positions(model, tokenizer, prompts, settings.batch_size):
        mask_XT = (input_XT != tokenizer.pad_token_id).long()
        readings = model(input_XT, attention_mask=mask_XT, logits_to_keep=1).readings
        if model.settings.uses_ngrams:
            matches, _ = find_matches(model.bank.ngrams(), input_XT, mask_XT, n_kept=max(CANDIDATES))
        for layer, reading in enumerate(readings):
            if reading is None:
                continue
            name = model.settings.reader_name(layer)
            used_XS = reading.weight_BTS[:, -1] > 0
            read.setdefault(name, []).append(reading.entry_BTS[:, -1].masked_fill(~used_XS, NO_ENTRY).cpu())
            if model.settings.uses_ngrams:
                entry_XC = matches.entry_BTC[:, -1]
            else:
                entry_XC = best_entries(model, reading, model.blocks[layer], max(CANDIDATES))
            found.setdefault(name, []).append(entry_XC.cpu())
    return {n: torch.cat(x) for n, x in found.items()}, {n: torch.cat(x) for n, x in read.items()}


@torch.no_grad()
def exhaustive_hits(model, tokenizer, prompts: list[str], gold_B: torch.Tensor, settings: Settings) -> float:
    """Share of prompts whose gold entry is the best of all entries when no n-gram is left out and none is forgotten."""
    config = replace(model.settings, ngram_max_places=MOST_PLACES, ngram_pairs=0)
    index = NgramIndex(model.bank.tokens, config)
    hits = 0
    for place, input_1T in last_positions(model, tokenizer, prompts, 1):
        start_1T = torch.zeros_like(input_1T, dtype=torch.bool)
        start_1T[:, 0] = True
        entry_TX, weight_TX = (x[0] for x in index.hints(input_1T, start_1T))
        age_T1 = torch.arange(len(entry_TX) - 1, -1, -1, device=weight_TX.device)[:, None]
        total_N = weight_TX.new_zeros(len(model.bank.tokens))
        total_N.index_add_(0, entry_TX.clamp(min=0).flatten(), (weight_TX * config.ngram_decay**age_T1).flatten())
        hits += int(total_N.argmax()) == int(gold_B[place.start]) and float(total_N.max()) > 0
    return hits / len(prompts)


def retrieval(model, tokenizer, settings: Settings) -> dict | None:
    """Over the object questions whose fact is in the bank, for each reading layer and for the pointer:

    `candidate_C`, share with the gold entry among the first C candidates; `selected`, among the S that are read;
    `selected_if_right`, `selected_if_wrong`: the same where the answer was right, or wrong. `floor_C`: of C entries
    drawn at random. `exhaustive`: best of all entries, n-grams only, over the first 200 questions.
    """
    if not model.settings.reads_bank or settings.object_path is None or settings.gold is None:
        return None
    rows, chosen, _ = ask_objects(model, tokenizer, settings)
    known = [i for i, row in enumerate(rows) if settings.gold.row(row) != NO_ENTRY]
    if not known:
        return None
    prompts = [split_question(rows[i]["question"], rows[i]["choices"])[0] for i in known]
    gold_B = torch.tensor([settings.gold.row(rows[i]) for i in known])
    right_B = torch.tensor([chosen[i] == letter(rows[i]) for i in known])
    found, read = candidates_and_reads(model, tokenizer, prompts, settings)

    def share(hit_B: torch.Tensor, floor: float) -> dict:
        return accuracy(hit_B.tolist(), floor, settings, TASK_VERSION)

    N, layers = model.settings.knowledge_num, {}
    for name, entry_BC in found.items():
        hit_BC = entry_BC == gold_B[:, None]
        read_B = (read[name] == gold_B[:, None]).any(dim=1)
        layers[name] = {f"candidate_{C}": share(hit_BC[:, :C].any(dim=1), C / N) for C in CANDIDATES} | {
            "selected": share(read_B, model.settings.num_selected / N),
            "selected_if_right": share(read_B[right_B], model.settings.num_selected / N),
            "selected_if_wrong": share(read_B[~right_B], model.settings.num_selected / N),
        }
    result = {"layers": layers, "n": len(known), "seed": settings.seed, "task_version": TASK_VERSION}
    if model.settings.uses_ngrams:
        result["exhaustive"] = exhaustive_hits(model, tokenizer, prompts[:200], gold_B, settings)
    return result
