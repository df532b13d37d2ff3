"""Entries in the prompt: the rival of a memory, a model that reads the same retrieved entries as text.

    python -m evaluation.in_context --entries_from out/quickstart_memory --questions questions.jsonl --out out.jsonl

It writes each question of a training file behind the entries that a memory run's retrieval finds at the end of its
prompt, as many as that run reads at a position. Spaces part them. The best one is last: it stands beside the question,
and a short context loses it last. Training on the file (`--data_path`) learns the answers alone.
`eval_model.py --entries_from RUN` asks in the same form, under the control "entries in prompt".

Axes: X sequences of a batch · T positions · C entries found at a position
"""

import json
from pathlib import Path
from statistics import mean

import torch
from transformers.utils import logging as transformers_logging

from common.cli import CommandParser, choose_device, run_command
from common.constants import NO_ENTRY
from common.files import atomic
from dataset.formats import read_records, require_data
from dataset.knowledge import entry_text
from dataset.tokenizer import encode_texts, load_tokenizer
from runs.load import load_run

from .likelihood import behind, left_padded_batches
from .lookup import WordIndex

RETRIEVERS = ("run", "words")
RETRIEVER_HELP = "run: the n-grams of that run; words: a word index over its bank"
SEARCHED = 128  # prompts that are searched at once


class EntryFinder:
    """Finds entries of a run's bank at the end of a prompt, as many as the run reads at a position.

    Args:
        model, tokenizer: those of a run with a memory.
        retriever: "run": what the run's own n-grams find; "words": the best entries of the look-up's word index.
    Raises:
        ValueError: the run has no bank, or finds its entries otherwise than by n-grams.
    """

    def __init__(self, model, tokenizer, retriever: str = "run"):
        self.model, self.tokenizer, self.index = model, tokenizer, None
        settings = model.settings
        if not settings.reads_bank:
            raise ValueError("--entries_from names a run without a memory: give one with a bank")
        if retriever == "words":
            self.index = WordIndex(entry_text(tokenizer, row.tolist()) for row in model.bank.tokens.cpu().numpy())
        elif not (settings.index_class and settings.index_class.keeps_matches):
            raise ValueError(
                f"--entries_from names a run with --retrieval {settings.retrieval}, and only the indexes of "
                "--retrieval ngram and bm25 can be searched alone: give --retriever words, or a run with one of them"
            )

    @classmethod
    def of_run(cls, run_dir: str, device: torch.device, retriever: str) -> "EntryFinder":
        """The finder of a run folder, with the edits of its bank."""
        return cls(load_run(run_dir, device), load_tokenizer(run_dir, "run"), retriever)

    def batches(self, prompts: list[str], size: int) -> list:
        """Prompts as `search` takes them."""
        if self.index:
            return [prompts[begin : begin + size] for begin in range(0, len(prompts), size)]
        return [batch[1:] for batch in left_padded_batches(self.model, self.tokenizer, prompts, size)]

    @torch.no_grad()
    def search(self, batch) -> list[list[int]]:
        """The rows of the entries for each prompt of a batch, best first."""
        settings = self.model.settings
        if self.index:
            return [self.index.best(prompt, settings.num_selected) for prompt in batch]
        input_XT, mask_XT = batch
        matches = settings.retrieval_class.search_text(settings, self.model.bank, input_XT, mask_XT)
        return [[row for row in rows if row != NO_ENTRY] for rows in matches.entry_BTC[:, -1].tolist()]

    def entries(self, prompts: list[str]) -> list[list[str]]:
        """The texts of the entries for each prompt, best first; empty rows of the bank are left out."""
        found = [rows for batch in self.batches(prompts, SEARCHED) for rows in self.search(batch)]
        row_X = torch.tensor([row for rows in found for row in rows], dtype=torch.int64, device=self.model.device)
        texts = iter([entry_text(self.tokenizer, token_L) for token_L in self.model.bank.tokens[row_X].tolist()])
        return [[text for text in [next(texts) for _ in rows] if text] for rows in found]

    def texts(self, prompts: list[str]) -> list[str]:
        """What stands before each prompt; empty where nothing is found."""
        return [" ".join(reversed(own)) for own in self.entries(prompts)]


def write_questions(finder: EntryFinder, path: Path, out: Path) -> None:
    """Write a file of texts and questions with the found entries before each prompt; texts stay as they are.

    Raises:
        FileNotFoundError, ValueError: the file is missing or malformed, or has no question.
    """
    rows = [row for _, row in read_records(require_data(path, "questions"), ("text", "prompt", "answer"))]
    asked = [row for row in rows if isinstance(row, dict) and {"prompt", "answer"} <= row.keys()]
    if not asked:
        raise ValueError(f"{path} has no line with a prompt and an answer: python -m dataset.questions writes them")

    def lengths() -> list[int]:  # with the tokens that begin and end a text
        texts = [row["prompt"] + row["answer"] for row in asked]
        return [2 + len(ids) for ids in encode_texts(finder.tokenizer, texts)]

    alone, before = lengths(), finder.texts([row["prompt"] for row in asked])
    for row, text in zip(asked, before, strict=True):
        row["prompt"], (row["answer"],) = behind(text, row["prompt"], [row["answer"]])
    with atomic(out) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(
        f"{len(asked)} questions, {sum(map(bool, before))} of them with entries, written to {out}: "
        f"{mean(alone):.1f} tokens a question became {mean(lengths()):.1f}, the longest has {max(lengths())}"
    )


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--entries_from", required=True, help="run with a memory, whose bank and retrieval are used")
    parser.add_argument("--retriever", choices=RETRIEVERS, default="run", help=RETRIEVER_HELP)
    parser.add_argument("--questions", type=Path, required=True, help="JSON Lines with prompt and answer")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--device", help="cpu or cuda; default: cuda if there is one")
    args = parser.parse_args()
    transformers_logging.disable_progress_bar()
    require_data(args.questions, "questions")
    write_questions(
        EntryFinder.of_run(args.entries_from, choose_device(args.device), args.retriever), args.questions, args.out
    )


if __name__ == "__main__":
    run_command(main)
