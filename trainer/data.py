"""What a run reads: tokenizer, training and validation rows, the bank's entries."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.constants import NO_DOCUMENT
from common.files import read_json, require_file
from dataset.cache import content_key, tokenizer_key
from dataset.formats import require_data
from dataset.knowledge import load_bank
from dataset.loader import BatchLoader
from dataset.pretrain import PretrainDataset, open_entries, open_pretrain_data
from dataset.questions import FIELDS, VAL_QUESTIONS, read_questions
from dataset.tokenizer import load_tokenizer, vocabulary_size, with_padding_first

from .config import Flags

PASSAGES_LOOKED_AT = 32  # of a bank that says where they stand


@dataclass
class Data:
    """Everything that training reads.

    Attributes:
        bank: the entries as token ids, None for the baseline.  entries: they as rows, only with `--entry_rows`.
        inputs: a fingerprint of the content of each input, by its name in messages.
    """

    tokenizer: object
    train: PretrainDataset
    val: PretrainDataset
    bank: object | None
    entries: PretrainDataset | None
    inputs: dict[str, str]


def require_inputs(flags: Flags) -> None:
    """Refuse a path that leads nowhere before anything is started or written.

    Raises:
        FileNotFoundError, ValueError: a file is missing or empty; its flag is named.
    """
    data = flags.data
    require_data(data.data_path, "data_path")
    if data.val_path:
        require_data(data.val_path, "val_path")
    if flags.model.reads_bank:
        if not data.database_init_path:
            raise ValueError("model_memory needs --database_init_path, the knowledge file that fills its bank")
        require_data(data.database_init_path, "database_init_path")
    if data.val_questions:
        read_questions(data.val_questions, FIELDS["object"], VAL_QUESTIONS, "val_questions")
    if data.init_path:
        require_file(Path(data.init_path) / "model.safetensors", "init_path")
    require_file(Path(data.tokenizer_path) / "tokenizer.json", "tokenizer_path")


def load_data(flags: Flags, accelerator, run) -> Data:
    """Open everything that training reads; what is new is tokenised and cached first.

    Args:
        run: a `RunFolder`, which gets the reports of the files.
    Raises:
        FileNotFoundError, ValueError: a file is missing or malformed, or `--vocab_size` is too small.
    """
    data, model = flags.data, flags.model
    tokenizer = load_tokenizer(data.tokenizer_path)
    if (size := vocabulary_size(tokenizer)) > model.vocab_size:
        raise ValueError(
            f"the tokenizer {data.tokenizer_path} has {size} entries: pass --vocab_size {size} or more, got "
            f"{model.vocab_size}"
        )
    if model.reads_bank:
        tokenizer = with_padding_first(tokenizer)
    bank = entries = None
    # The main process builds the caches, the others then find them.
    with accelerator.main_process_first():
        if model.reads_bank:
            bank = load_bank(
                data.database_init_path, tokenizer, model.knowledge_num, model.knowledge_length, data.cache_dir,
                data.reserve_entries,
            )  # fmt: skip
            run.report("knowledge", bank.report)
            tell_unused(bank.report, data.database_init_path, run.log_file)
        val_path = data.val_path or data.data_path
        held_out = 0.0 if data.val_path else data.val_fraction
        options = {"mode": data.data_mode, "cache_dir": data.cache_dir, "labelled_only": True}
        train = open_pretrain_data(
            data.data_path, tokenizer, model.max_seq_len, part="train", val_fraction=held_out, **options
        )
        val = open_pretrain_data(
            val_path, tokenizer, model.max_seq_len, part="train" if data.val_path else "val",
            val_fraction=held_out, **options,
        )  # fmt: skip
        if bank is not None:
            require_own_documents(bank, train, flags, tokenizer)
        run.report("train", train.report)
        run.report("val", val.report)
        files = {"--data_path": data.data_path, "--val_path": data.val_path}
        files["--database_init_path"] = data.database_init_path if bank else None
        keys = {f"{name} file": content_key(Path(path), Path(data.cache_dir)) for name, path in files.items() if path}
    special = " ".join(str(getattr(tokenizer, f"{name}_token_id")) for name in ("bos", "eos", "pad"))
    inputs = {"tokenizer": tokenizer_key(tokenizer), "tokenizer's special ids": special} | keys
    if data.init_path:
        require_same_inputs(data.init_path, tokenizer, bank, model.retrieval)
    if flags.optim.entry_rows:
        entries = open_entries(bank.tokens, tokenizer, model.max_seq_len)
    run.note(f"{len(train)} rows to train, {len(val)} to validate")
    return Data(tokenizer, train, val, bank, entries, inputs)


def require_own_documents(bank, train: PretrainDataset, flags: Flags, tokenizer) -> None:
    """Refuse a bank with passages of the training text where training could read a position's own document.

    Raises:
        ValueError: the retrieval cannot leave them out, rows have no documents, held-out documents are among the
            passages, or these are of another text.
    """
    document_N, data, offset_D = bank.documents(), flags.data, train.cache.offset_D
    if document_N is None:
        return
    path = data.database_init_path
    if not flags.model.leaves_out_own:
        raise ValueError(
            f"{path} holds passages of a training text, and --retrieval {flags.model.retrieval} would read the "
            "document that it learns: take --retrieval suffix, --suffix_layers, or a knowledge file of other texts"
        )
    if data.data_mode != "packed":
        raise ValueError(
            f"{path} holds passages of a training text, and rows of --data_mode {data.data_mode} do not say which "
            "document they are of: take --data_mode packed"
        )
    texts = [content_key(Path(text), Path(data.cache_dir)) for text in (data.data_path, data.val_path) if text]
    if len(set(texts)) < 2:
        raise ValueError(f"{path} holds passages of the held-out documents too: give a --val_path with other texts")
    rows = np.flatnonzero(document_N != NO_DOCUMENT)
    for row in rows[:: max(len(rows) // PASSAGES_LOOKED_AT, 1)].tolist():
        number, text = document_N[row], ""
        if number < len(offset_D) - 1:
            text = tokenizer.decode(train.cache.token_N[offset_D[number] : offset_D[number + 1]].tolist())
        if bank.fact(row).sentence not in text:
            raise ValueError(
                f"{path}: an entry is said to stand in document {number} of --data_path {data.data_path} and does not: "
                "write the passages anew with python -m dataset.passages, or leave `document` out of them if this is "
                "another text"
            )


def tell_unused(report: dict, path: str, log) -> None:
    """One line in train.log if the bank is smaller than its knowledge file."""
    if report["unused"]:
        log.info(
            "%d sentences of %s have no place in the bank: --knowledge_num takes the first %d different ones",
            report["unused"], path, report["entries"] - report.get("reserve", 0),
        )  # fmt: skip


def require_same_inputs(init_path: str, tokenizer, bank, retrieval: str) -> None:
    """Refuse weights that belong to another tokenizer, or product keys that belong to another bank.

    Raises:
        ValueError: they do.
    """
    folder = Path(init_path)
    if (folder / "tokenizer.json").is_file() and load_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"--init_path {init_path} was trained with another tokenizer than --tokenizer_path has: pass "
            f"--tokenizer_path {init_path}"
        )
    info = read_json(folder / "run.json") if (folder / "run.json").is_file() else {}
    trained = info.get("data", {}).get("knowledge", {}).get("bank_key")
    if bank and retrieval == "product_key" and trained not in (None, bank.report["bank_key"]):
        raise ValueError(
            f"--init_path {init_path} was trained with another bank, and its product keys fit the rows of that one: "
            "give its --database_init_path, --knowledge_num and --knowledge_length"
        )


def make_loader(data: Data, flags: Flags, accelerator) -> BatchLoader:
    """This process's share of the training rows.

    Raises:
        ValueError: the rows are fewer than one optimizer step needs.
    """
    optim, processes, entries = flags.optim, accelerator.num_processes, data.entries
    loader = BatchLoader(
        data.train, optim.batch_size, flags.run.seed, accelerator.process_index, processes,
        pin_memory=accelerator.device.type == "cuda", beside=entries and (entries, optim.entry_rows),
    )  # fmt: skip
    if len(loader) < optim.accumulation_steps:
        raise ValueError(
            f"{flags.data.data_path} gives {len(loader)} micro-batches, fewer than one optimizer step of "
            f"--accumulation_steps {optim.accumulation_steps}: lower it, or --batch_size {optim.batch_size}"
        )
    if entries and len(entries) < optim.entry_rows * processes:
        raise ValueError(
            f"the bank fills {len(entries)} rows, fewer than --entry_rows {optim.entry_rows} of "
            f"{processes} processes: lower it"
        )
    return loader
