"""Questions that training asks at each validation: is the memory read, and do the answers come from it?

The numbers are those of `eval_model.py --object_path FILE --limit 200`, in the precision of the training.
"""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from common.constants import NO_ENTRY
from dataset.knowledge import BANK_ORDER, Bank
from dataset.questions import FIELDS, VAL_QUESTIONS, read_questions, split_question
from trainer.config import Flags

from .config import EvalConfig
from .controls import shuffled
from .facts import ask_objects
from .gold import Gold
from .retrieval import candidates_and_reads

log = logging.getLogger("run")


class ValidationQuestions:
    """The first 200 object questions of `--val_questions`; none without the flag. The main process alone asks."""

    def __init__(self, flags: Flags, model, tokenizer, bank: Bank | None, accelerator):
        self.path, self.model, self.tokenizer = flags.data.val_questions, model, tokenizer
        self.asks = self.path is not None and accelerator.is_main_process
        if not self.asks:
            return
        rows = read_questions(self.path, FIELDS["object"], VAL_QUESTIONS, "val_questions")
        gold = gold_of(rows, ordered(bank, flags)) if bank else None
        self.config = EvalConfig(object_path=self.path, limit=VAL_QUESTIONS, gold=gold)
        known = [row for row in rows if gold and gold.row(row) != NO_ENTRY]
        self.prompts = [split_question(row["question"], row["choices"])[0] for row in known]
        self.gold_B = torch.tensor([gold.row(row) for row in known])
        if bank and not known:
            log.warning("no question of %s names a fact of the bank: which entries are read is unknown", self.path)

    @torch.no_grad()
    def ask(self) -> dict[str, float]:
        """Shares of right answers, also with the bank shuffled, and of questions whose entry each reader reads."""
        if not self.asks:
            return {}
        self.model.eval()
        wait_for_all_streams(self.model.device)
        try:
            with torch.compiler.set_stance("force_eager"):  # their shapes are not those of the training
                found = self._measured()
        finally:
            wait_for_all_streams(self.model.device)
            self.model.train()
        log.info("questions: %s", ", ".join(f"{name.split('/', 1)[1]} {value:.1%}" for name, value in found.items()))
        return found

    def _measured(self) -> dict[str, float]:
        model, config = self.model, self.config
        found = {"questions/right": ask_objects(model, self.tokenizer, config)[2]["accuracy"]}
        if not model.settings.reads_bank:
            return found
        with shuffled(model, self.tokenizer, config):
            found["questions/shuffled"] = ask_objects(model, self.tokenizer, config)[2]["accuracy"]
        if self.prompts:
            _, read = candidates_and_reads(model, self.tokenizer, self.prompts, config)
            for name, entry_BS in read.items():
                is_read_B = (entry_BS == self.gold_B[:, None]).any(dim=1)
                found[f"questions/read/{name.replace(' ', '_')}"] = float(is_read_B.double().mean())
        return found


def wait_for_all_streams(device: torch.device) -> None:
    """The search for the next batch reads the bank on a stream of its own: never while the bank is shuffled."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ordered(bank: Bank, flags: Flags) -> Bank:
    """The bank with the order of rows that `--cluster_cache_path` gave the model's."""
    order = Path(flags.run.out_dir) / BANK_ORDER
    return replace(bank, order_N=np.load(order)) if flags.data.cluster_cache_path else bank


def gold_of(rows: list[dict], bank: Bank) -> Gold:
    """The entries of the facts that questions name."""
    uuids = {row["uuid"] for row in rows if "uuid" in row}
    asked = [(row, fact) for row, fact in bank.facts() if fact.uuid in uuids] if uuids else []
    return Gold({fact.uuid: row for row, fact in asked}, {fact.uuid: fact for _, fact in asked}, bank.facts)
