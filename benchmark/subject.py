"""A model under test: building it, its batches, and its full training steps.

A step is forward, backward, clipping and the experiment's optimizer on one micro-batch of packed documents. Without a
file of text, tokens are random, as frequent as those of text, and up to a third of them stand in entries of the bank.
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle, islice

import torch

from dataset.knowledge import count_sentences, load_bank
from dataset.loader import BatchLoader
from dataset.pretrain import PretrainDataset, open_pretrain_data
from dataset.tokenizer import load_tokenizer, with_padding_first
from model import build_model
from model.config import ModelConfig
from model.memory.bank_index import ROWS_AT_ONCE
from trainer.ahead import prepared_ahead
from trainer.config import DataConfig, OptimConfig
from trainer.optim import make_optimizer
from trainer.step import EAGER_CALLS, MicroStep, graphable

from .harness import random_bank, random_tokens, timed_ms
from .reference import build_reference

LEARNING_RATE = 1e-4  # of every model; it changes no time
TEXT_BATCHES = 32  # of real text, which differ in how much of it the bank knows


@dataclass(frozen=True)
class Text:
    """Real text in place of random tokens: the rows that training would learn, and the tokenizer of text and bank."""

    rows: PretrainDataset
    tokenizer: object


def add_text_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data_path", help="real text in place of random tokens; with a bank of --database_init_path")
    add("--database_init_path", help="the knowledge file of that bank")
    add("--cache_dir", default="dataset/cache", help="where its tokens are kept")


def read_text(args: argparse.Namespace, configs: list[ModelConfig]) -> Text | None:
    """The text of --data_path; None without it.

    Raises:
        FileNotFoundError, ValueError: a file is missing or malformed; a bank is needed and not given, or the reverse.
    """
    if not args.data_path:
        if args.database_init_path:
            raise ValueError(
                "--database_init_path needs --data_path: a bank is measured with the text that searches it"
            )
        return None
    if any(config.reads_bank for config in configs) and not args.database_init_path:
        raise ValueError("--data_path with an experiment that reads a bank needs --database_init_path")
    tokenizer = with_padding_first(load_tokenizer(DataConfig.tokenizer_path))
    rows = open_pretrain_data(args.data_path, tokenizer, args.seq_len, "packed", args.cache_dir, labelled_only=True)
    return Text(rows, tokenizer)


def banks_of(args: argparse.Namespace, text: Text | None) -> Callable[[ModelConfig], torch.Tensor]:
    """What gives the bank of a model: the sentences of the knowledge file where there is text, else random entries.

    Where the file has too few, `with_crossed` adds others.
    """
    banks = {}

    def bank_of(config: ModelConfig) -> torch.Tensor:
        shape = (config.knowledge_num, config.knowledge_length)
        if shape not in banks and text and config.reads_bank:
            number = min(config.knowledge_num, count_sentences(args.database_init_path, args.cache_dir))
            bank = load_bank(args.database_init_path, text.tokenizer, number, shape[1], args.cache_dir)
            banks[shape] = with_crossed(torch.tensor(bank.tokens), config.knowledge_num)
        elif shape not in banks:
            banks[shape] = random_bank(config)
        return banks[shape]

    return bank_of


def with_crossed(token_NL: torch.Tensor, number: int) -> torch.Tensor:
    """A bank of so many entries: those given, then the beginning of one with the end of another.

    Suffixes of few tokens are as frequent as in real text, so a search takes as long; what is found means nothing.
    """
    generator, (N, L) = torch.Generator().manual_seed(0), token_NL.shape
    bank_NL = token_NL.new_empty(number, L)
    bank_NL[:N] = token_NL
    for part_XL in bank_NL[N:].split(ROWS_AT_ONCE):
        begin_X, end_X = torch.randint(N, (2, len(part_XL)), generator=generator)
        cut_X1 = (token_NL[begin_X] > 0).sum(dim=1, keepdim=True) // 2
        part_XL.copy_(token_NL[begin_X].where(torch.arange(L) < cut_X1, token_NL[end_X]))
    return bank_NL


@dataclass
class Subject:
    """One model under test."""

    name: str
    config: ModelConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    reference: bool = False
    compiled: bool = True
    batch_size: int = 48
    text: Text | None = None
    batches: list[dict] = field(default_factory=list)
    supply: Iterator[dict] | None = None  # the batches without end, the text of the next one searched meanwhile
    model: torch.nn.Module | None = None
    optimizer: object = None
    micro_step: MicroStep | None = None
    parameters: int = 0
    first_step_s: float = 0.0
    peak_gib: float = 0.0  # of steps, what stays between them included
    index_s: float | None = None  # of building the index of the bank, of a model that has one
    index_bytes: int = 0  # what stays of it on the GPU
    index_peak_gib: float | None = None  # on the GPU while it is built
    step_ms: list[float] = field(default_factory=list)  # of each turn the mean
    steps_timed: int = 0


def make_batches(config: ModelConfig, bank_NL: torch.Tensor, batch_size: int, n: int, device) -> list[dict]:
    """Random rows of four documents; every third stretch of L tokens is an entry of the bank."""
    T, L, batches = config.max_seq_len, bank_NL.shape[1], []
    generator = torch.Generator().manual_seed(0)
    for _ in range(n):
        ids = random_tokens((batch_size, T), config.vocab_size, generator)
        for place in range(0, T - L, 3 * L):
            entry_BL = bank_NL[torch.randint(len(bank_NL), (batch_size,), generator=generator)].long()
            ids[:, place : place + L] = torch.where(entry_BL > 0, entry_BL, ids[:, place : place + L])
        document_ids = (torch.arange(T) * 4 // T).expand(batch_size, T).contiguous()
        batch = {"input_ids": ids, "labels": ids.clone(), "document_ids": document_ids}
        batches.append({name: value.to(device) for name, value in batch.items()})
    return batches


def text_batches(text: Text, batch_size: int, n: int, device) -> list[dict]:
    """The first batches that training would learn."""
    with closing(BatchLoader(text.rows, batch_size, seed=0).iterate(0)) as batches:
        return [{name: value.to(device) for name, value in batch.items()} for batch in islice(batches, n)]


def train_step(subject: Subject, batch: dict, device) -> torch.Tensor:
    out = subject.micro_step(batch, torch.ones((), device=device), 1.0, lambda part: nullcontext())
    torch.nn.utils.clip_grad_norm_(subject.model.parameters(), 1.0)
    subject.optimizer.step()
    torch.autograd.graph.increment_version(subject.model.parameters())  # as step_if_finite does
    subject.micro_step.clear_gradients(subject.optimizer)
    return out.lm_loss.detach().clone()


def make_micro_step(subject: Subject, device, dtype: torch.dtype) -> MicroStep:
    """As the training loop makes it; a model that is not compiled is measured without graphs too."""

    def forward(batch: dict):
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            return subject.model(**batch, return_logits=False)

    graphed = graphable(subject.config, device, "bfloat16", subject.compiled) is None
    stores = subject.optim.accumulation_steps == 1
    return MicroStep(forward, lambda loss: loss.backward(), subject.model.refresh, graphed, stores)


def prepare(subject: Subject, bank_NL: torch.Tensor, batch: dict, device, dtype=torch.bfloat16) -> None:
    """Build, compile, and make the first step."""
    torch.manual_seed(0)
    build = build_reference if subject.reference else build_model
    subject.model = build(subject.config, bank_NL if subject.config.reads_bank else None).to(device).train()
    if subject.text is not None and subject.config.reads_bank:
        subject.model.bank.spell(subject.text.tokenizer)
    if subject.config.index_class is not None and not subject.reference:
        build_index(subject, device)
    subject.optimizer = make_optimizer(subject.model, replace(subject.optim, learning_rate=LEARNING_RATE), device)
    if subject.compiled:
        subject.model.compile_parts()
    subject.micro_step = make_micro_step(subject, device, dtype)
    subject.parameters = sum(p.numel() for p in subject.model.parameters())
    begin = time.perf_counter()
    float(train_step(subject, batch, device))
    subject.first_step_s = time.perf_counter() - begin


def build_index(subject: Subject, device) -> None:
    """Build the index of the bank, as the first search would, and note what that takes."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    bank, kinds = subject.model.bank, subject.config.index_classes
    subject.index_s = timed_ms(lambda: [bank.index(kind) for kind in kinds], device) / 1000
    if on_gpu:
        subject.index_bytes = torch.cuda.memory_allocated() - allocated
        subject.index_peak_gib = (torch.cuda.max_memory_reserved() - reserved) / 2**30


def next_batch(subject: Subject, device) -> dict:
    """As training has it: a retrieval by n-grams has searched its text beside earlier steps."""
    if subject.supply is None:
        subject.supply = (batch for batch in cycle(subject.batches))
        if subject.config.searches_text and not subject.reference:
            searched = subject.model.search_text, device, subject.model.searched_together
            subject.supply = prepared_ahead(subject.supply, *searched)
    return next(subject.supply)


def take_turn(subject: Subject, n: int, device) -> None:
    """Time `n` steps in a row, as training makes them: nothing waits for the device between them."""

    def steps(n: int) -> None:
        for _ in range(n):
            train_step(subject, next_batch(subject, device), device)

    if device.type == "cuda":
        torch.cuda.synchronize()  # another model's search may still run on a stream of its own
        torch.cuda.reset_peak_memory_stats()
        others = torch.cuda.memory_allocated() - resident_bytes(subject)
        steps(1)  # not timed: the device is idle until it is launched
    subject.step_ms.append(timed_ms(partial(steps, n), device) / n)
    subject.steps_timed += n
    if device.type == "cuda":
        subject.peak_gib = max(subject.peak_gib, (torch.cuda.max_memory_allocated() - others) / 2**30)


def forget_times(subject: Subject) -> None:
    subject.step_ms, subject.steps_timed = [], 0


def resident_bytes(subject: Subject) -> int:
    """What a model keeps between steps: parameters, buffers, gradients, the optimizer's state, and its index."""
    state = [
        value for values in subject.optimizer.state.values() for value in values.values() if torch.is_tensor(value)
    ]
    gradients = [p.grad for p in subject.model.parameters() if p.grad is not None]
    kept = [*subject.model.parameters(), *subject.model.buffers(), *gradients, *state]
    return sum(x.numel() * x.element_size() for x in kept) + subject.index_bytes


def release(*subjects: Subject) -> None:
    """Give the memory of measured models back."""
    for subject in subjects:
        subject.model = subject.optimizer = subject.micro_step = None
        subject.batches, subject.supply = [], None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def start(subject: Subject, bank_NL: torch.Tensor, device) -> None:
    """Build a model and take it past compilation and capture."""
    if subject.text is None:
        subject.batches = make_batches(subject.config, bank_NL, subject.batch_size, 4, device)
    else:
        subject.batches = text_batches(subject.text, subject.batch_size, TEXT_BATCHES, device)
    prepare(subject, bank_NL, subject.batches[0], device)
    take_turn(subject, EAGER_CALLS + 2, device)
    forget_times(subject)  # the peak is that of the warm-up: a replay allocates nothing
