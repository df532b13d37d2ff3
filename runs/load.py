"""What a run folder holds: the trained model with the edits of the journal, and the facts behind its bank."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from common.constants import NO_DOCUMENT
from common.files import read_json
from dataset.formats import require_data
from dataset.knowledge import (
    BANK_ORDER,
    Bank,
    TooFewSentences,
    bank_folder,
    count_sentences,
    load_bank,
    open_bank,
)  # fmt: skip
from model.model_original import Transformer

from .journal import Journal


def load_run(run_dir: str | Path, device: str | torch.device = "cpu") -> Transformer:
    """The trained model of a run folder, in evaluation mode, with all edits of its journal.

    Raises:
        FileNotFoundError: the folder has no weights.
        ValueError: the weights are damaged or belong to another version of the model, or the journal is damaged.
    """
    if not (Path(run_dir) / "model.safetensors").exists():
        raise FileNotFoundError(f"{run_dir} holds no model.safetensors: the run has not finished, or the path is wrong")
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(run_dir, output_loading_info=True)
    except (SafetensorError, RuntimeError) as problem:  # cut off, or of other shapes than config.json says
        what = " ".join(str(problem).split())[:200]
        raise ValueError(
            f"{run_dir}/model.safetensors cannot be loaded, it is damaged or does not fit config.json: start the run "
            f"again, which writes it from its checkpoint ({what})"
        ) from None
    if not isinstance(model, Transformer):
        raise ValueError(f"{run_dir} holds a {type(model).__name__}, not a run of this project: give a run folder")
    for kind in ("missing_keys", "unexpected_keys"):
        for name in sorted(loaded[kind]):  # transformers would initialise it at random
            raise ValueError(
                f"{run_dir} was written by another version of the model ({kind[:-5]} {name}): use the commit in its "
                "run.json, or train again"
            )
    return model.to(device).eval()


def load_run_bank(
    run_dir: str | Path, model: Transformer, tokenizer, knowledge_path: str | None = None, cache_dir: str | None = None
) -> Bank:
    """The facts behind the bank of a run, in the run's order of rows.

    The run recorded a fingerprint of its knowledge file. If the cache still holds that bank, the file is not needed.

    Args:
        knowledge_path: where the knowledge file is; None: where the run found it.
        cache_dir: where banks are kept; None: where the run kept them.
    Raises:
        FileNotFoundError: the knowledge file is missing.
        ValueError: it is not the one that the run was trained with.
    """
    run_dir = Path(run_dir)
    flags, info = read_json(run_dir / "flags.json"), run_dir / "run.json"
    data, shape = flags["data"], (flags["model"]["knowledge_num"], flags["model"]["knowledge_length"])
    reserve = data.get("reserve_entries", 0)  # an earlier version had none
    key = read_json(info).get("data", {}).get("knowledge", {}).get("bank_key") if info.exists() else None
    path, cache_dir = knowledge_path or data["database_init_path"], cache_dir or data["cache_dir"]
    other = ValueError(
        f"{path} is not the knowledge file that {run_dir} was trained with, its content differs: put that file "
        "back, or name it with --database_init_path"
    )
    try:
        is_cached = key and knowledge_path is None and bank_folder(cache_dir, key).exists()
        known = open_bank(bank_folder(cache_dir, key)) if is_cached else None
        bank = known or load_bank(path, tokenizer, *shape, cache_dir, reserve)
    except TooFewSentences:
        raise other from None
    order = run_dir / BANK_ORDER
    bank = replace(bank, order_N=np.load(order)) if order.exists() else bank
    # Training may have rewritten rows by moving averages. Then equal frozen rows are not enough.
    same_file = key in (None, bank.report["bank_key"]) or not model.settings.ema_interval
    if not (same_file and same_entries(run_dir, model, bank)):
        raise other
    return bank


def with_bank(
    run_dir: str | Path, model: Transformer, tokenizer, path: str | Path, cache_dir: str | None = None
) -> tuple[Transformer, Bank, Journal]:
    """A trained model with another bank (`--bank`): its sentences, the edits made of it in this run, and their journal.

    The rows that its sentences leave are empty. Retrieval by n-grams takes a larger bank too, product keys do not.

    Returns:
        The model, another object where the bank is larger; the facts; the journal, replayed.
    Raises:
        FileNotFoundError, ValueError: the file is missing or malformed, or has more sentences than product keys take;
            or the model has no memory.
    """
    settings, data = model.settings, read_json(Path(run_dir) / "flags.json")["data"]
    if not settings.reads_bank:
        raise ValueError(f"--bank {path}: {run_dir} is a run without a memory")
    path, rows, cache_dir = require_data(path, "bank"), settings.knowledge_num, cache_dir or data["cache_dir"]
    sentences = count_sentences(path, cache_dir)
    if sentences > rows:
        if settings.retrieval_class.has_grid:
            raise ValueError(
                f"--bank {path} has {sentences} different sentences, and the product keys of {run_dir} span {rows} "
                "entries: shorten it, or train with a larger --knowledge_num"
            )
        rows = sentences + data.get("reserve_entries", 0)
        model = with_rows(model, rows)
    bank = load_bank(path, tokenizer, rows, settings.knowledge_length, cache_dir, rows - sentences)
    model.bank.fill(torch.from_numpy(np.array(bank.tokens)))
    document_N = bank.documents()
    model.bank.tell_passages(None if document_N is None else torch.from_numpy(document_N != NO_DOCUMENT))
    model.bank.frozen.zero_()  # which rows training froze says nothing about these
    journal = Journal(run_dir, bank.report["bank_key"])
    journal.replay(model.bank)
    return model, bank, journal


def with_rows(model: Transformer, rows: int) -> Transformer:
    """The same weights around a bank of so many empty rows."""
    new = type(model)(type(model).config_class.wrap(replace(model.settings, knowledge_num=rows)))
    state = model.state_dict()
    weights = {name: x for name, x in state.items() if not name.startswith("bank.") or name == "bank.spelling"}
    missing, unexpected = new.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith("bank.") for name in missing), (missing, unexpected)
    return new.to(model.device).eval()


def same_entries(run_dir: Path, model: Transformer, bank: Bank) -> bool:
    """Whether a bank has the rows of a trained model, apart from rows that training or the journal has rewritten."""
    token_NL = bank.tokens if bank.order_N is None else bank.tokens[bank.order_N]
    if token_NL.shape != model.bank.tokens.shape:
        return False
    differs_N = (torch.from_numpy(np.array(token_NL)) != model.bank.tokens.cpu()).any(dim=1)
    if model.settings.ema_interval:
        differs_N &= model.bank.frozen.cpu()
    differs_N[[change.row for entry in Journal(run_dir).entries() for change in entry.changes]] = False
    return not differs_N.any()
