"""Retrieval: is the gold entry found, and is it read, at the last position of the question?

Axes: B questions · C candidates · S entries read · X sequences of a batch · T positions · N entries of the bank
"""

from dataclasses import replace

import torch

from common.constants import NO_ENTRY
from dataset.questions import PARAPHRASES, answer_index, split_question
from model.memory.ngram_index import NgramIndex
from model.memory.ngram_search import find_matches
from model.ops.search_grid import search_grid

from .config import EvalConfig, accuracy, clustered_interval
from .facts import ask_objects
from .likelihood import left_padded_batches

TASK_VERSION = 1
CANDIDATES = (1, 4, 16, 64)
MAX_POSTINGS = 4096  # the exhaustive search ignores n-grams in more places of the bank
MAX_EXHAUSTIVE = 200  # questions of the exhaustive search


@torch.no_grad()
def candidates_and_reads(
    model, tokenizer, prompts: list[str], config: EvalConfig
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """For each block and the pointer, (B, C) candidates, best first, and (B, S) entries read; NO_ENTRY: none.

    C is 64, or less where the search finds fewer: S, if all that it finds is read.
    """
    found: dict[str, list[torch.Tensor]] = {}
    read: dict[str, list[torch.Tensor]] = {}
    for _, input_XT, mask_XT in left_padded_batches(model, tokenizer, prompts, config.batch_size):
        readings = model(input_XT, attention_mask=mask_XT, logits_to_keep=1).readings
        kind = model.settings.index_class
        has_candidates = kind is not None and kind.keeps_matches
        if has_candidates:
            matches, _ = find_matches(model.bank.index(kind), input_XT, mask_XT, n_kept=max(CANDIDATES))
        for layer, reading in enumerate(readings):
            if reading is None:
                continue
            name = model.settings.reader_name(layer)
            is_read_XS = reading.weight_BTS[:, -1] > 0
            read.setdefault(name, []).append(reading.entry_BTS[:, -1].masked_fill(~is_read_XS, NO_ENTRY).cpu())
            if has_candidates and model.settings.part_of(layer) is model.settings:
                entry_XC = matches.entry_BTC[:, -1]
            elif reading.query_BTD is None:  # all that is found is read
                entry_XC = reading.entry_BTS[:, -1].masked_fill(~is_read_XS, NO_ENTRY)
            else:
                query_X1D = reading.query_BTD[:, -1:]
                entry_XC = model.blocks[layer].retrieval.candidates(query_X1D, max(CANDIDATES))[:, 0]
            found.setdefault(name, []).append(entry_XC.cpu())
    return {n: torch.cat(x) for n, x in found.items()}, {n: torch.cat(x) for n, x in read.items()}


@torch.no_grad()
def scores_of_search(
    model, tokenizer, prompts: list[str], config: EvalConfig
) -> dict[str, tuple[list[float] | None, list[float]]]:
    """For each block and the pointer, what a search and a reading are worth at the last token of each of B prompts.

    Returns:
        The score of the best entry that the search finds (0: none; None: this retrieval has no scores), and the sum of
        the weights of the entries read.
    """
    best: dict[str, list[float]] = {}
    mass: dict[str, list[float]] = {}
    for _, input_XT, mask_XT in left_padded_batches(model, tokenizer, prompts, config.batch_size):
        readings = model(input_XT, attention_mask=mask_XT, logits_to_keep=1).readings
        settings = model.settings
        if settings.index_class is not None:
            matches = settings.retrieval_class.search_text(settings, model.bank, input_XT, mask_XT)
        for layer, reading in enumerate(readings):
            if reading is None:
                continue
            name = model.settings.reader_name(layer)
            mass.setdefault(name, []).extend(reading.weight_BTS[:, -1].float().sum(dim=-1).tolist())
            if settings.part_of(layer) is not settings:
                continue  # what suffixes find has no score of an entry
            if settings.index_class is not None:
                best.setdefault(name, []).extend(matches.score_BTC[:, -1, 0].tolist())
            elif reading.query_BTD is not None and hasattr(model.blocks[layer].retrieval, "score_sub_keys"):
                retrieval = model.blocks[layer].retrieval
                query_X1D = reading.query_BTD[:, -1:].to(retrieval.keys_2RK.dtype)
                score_X11 = search_grid(retrieval.score_sub_keys(query_X1D), 1)[0]
                best.setdefault(name, []).extend(score_X11.flatten().tolist())
    return {name: (best.get(name), mass[name]) for name in mass}


@torch.no_grad()
def exhaustive_hits(model, tokenizer, prompts: list[str], gold_B: torch.Tensor) -> float:
    """Share of prompts whose gold entry has the highest sum of n-gram matches over the whole text, of all N entries."""
    settings = replace(model.settings, ngram_max_places=MAX_POSTINGS, ngram_pairs=0)
    index = NgramIndex(model.bank.tokens, settings, hidden_N=getattr(model.bank, "passage", None))
    hits = 0
    for batch, input_1T, _ in left_padded_batches(model, tokenizer, prompts, 1):
        start_1T = torch.zeros_like(input_1T, dtype=torch.bool)
        start_1T[:, 0] = True
        entry_TX, weight_TX = (x[0] for x in index.matches(input_1T, start_1T))
        age_T1 = torch.arange(len(entry_TX) - 1, -1, -1, device=weight_TX.device)[:, None]
        total_N = weight_TX.new_zeros(len(model.bank.tokens))
        total_N.index_add_(0, entry_TX.clamp(min=0).flatten(), (weight_TX * settings.ngram_decay**age_T1).flatten())
        hits += int(total_N.argmax()) == int(gold_B[batch.start]) and float(total_N.max()) > 0
    return hits / len(prompts)


def shares_of_gold(
    model, found: dict[str, torch.Tensor], read: dict[str, torch.Tensor], gold_B: torch.Tensor, config: EvalConfig,
    cluster_B: list | None = None,
) -> dict[str, dict]:  # fmt: skip
    """For each block and the pointer, the shares of questions with the gold entry among the candidates and the reads.

    `candidate_C` is left out where the search finds fewer than C entries.

    Args:
        found, read: as `candidates_and_reads` returns them.  gold_B: the gold entry of each question.
        cluster_B: of each question; those of one cluster are one draw of the intervals. None: each is.
    """
    N, layers = model.settings.knowledge_num, {}
    for name, entry_BC in found.items():
        is_gold_BC, width = entry_BC == gold_B[:, None], entry_BC.shape[1]
        shares = {f"candidate_{C}": (is_gold_BC[:, :C].any(dim=1), C / N) for C in CANDIDATES if C <= width}
        shares["selected"] = (read[name] == gold_B[:, None]).any(dim=1), read[name].shape[1] / N
        layers[name] = {}
        for key, (hit_B, chance) in shares.items():
            layers[name][key] = accuracy(hit_B.tolist(), chance, config, TASK_VERSION)
            if cluster_B:
                layers[name][key]["ci95"] = clustered_interval(hit_B.tolist(), cluster_B)
    return layers


def retrieval(model, tokenizer, config: EvalConfig) -> dict | None:
    """Shares of the object questions in the bank, for each reading block and for the pointer.

    `candidate_C`: the gold entry is among the first C candidates (chance: C entries at random), as far as the search
    finds so many.
    `selected`: it is among the entries read; `selected_if_right`, `selected_if_wrong`: by the model's answer.
    `exhaustive`: it is the best of all entries by n-gram matches, over the first 200 questions.
    `reworded`: the same shares in other words than the bank's, for questions that name their subject and predicate. The
    wordings of a question are one draw.

    A model with `--bank_control shuffled` reads other entries than its search finds. There `candidate_C` and
    `exhaustive` are of what the search finds, and `selected` is of what is read.
    """
    if not model.settings.reads_bank or config.object_path is None or config.gold is None:
        return None
    rows, chosen, _ = ask_objects(model, tokenizer, config)
    known = [i for i, row in enumerate(rows) if config.gold.row(row) != NO_ENTRY]
    if not known:
        return None
    prompts = [split_question(rows[i]["question"], rows[i]["choices"])[0] for i in known]
    gold_B = torch.tensor([config.gold.row(rows[i]) for i in known])
    right_B = torch.tensor([chosen[i] == answer_index(rows[i]) for i in known])
    found, read = candidates_and_reads(model, tokenizer, prompts, config)

    def share(hit_B: torch.Tensor, chance: float) -> dict:
        return accuracy(hit_B.tolist(), chance, config, TASK_VERSION)

    layers = shares_of_gold(model, found, read, gold_B, config)
    for name, shares in layers.items():
        read_B, chance = (read[name] == gold_B[:, None]).any(dim=1), shares["selected"]["chance"]
        shares["selected_if_right"] = share(read_B[right_B], chance)
        shares["selected_if_wrong"] = share(read_B[~right_B], chance)
    result = {"layers": layers, "n": len(known), "seed": config.seed, "task_version": TASK_VERSION}
    named = [i for i in known if {"subject", "predicate"} <= rows[i].keys()]
    if named:
        asked = [(i, wording.format(**rows[i])) for wording in PARAPHRASES for i in named]
        found, read = candidates_and_reads(model, tokenizer, [prompt for _, prompt in asked], config)
        gold_B, questions = torch.tensor([config.gold.row(rows[i]) for i, _ in asked]), [i for i, _ in asked]
        shares = shares_of_gold(model, found, read, gold_B, config, questions)
        result["reworded"] = {"layers": shares, "n": len(asked)}
    if model.settings.index_class is NgramIndex:
        result["exhaustive"] = exhaustive_hits(model, tokenizer, prompts[:MAX_EXHAUSTIVE], gold_B)
    return result
