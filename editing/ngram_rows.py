"""The rows of the hashed n-gram table that a text's last tokens read, and what they say by themselves.

Axes: N orders · H heads of an order · K heads of all orders, N * H · W width of a row · U width of all rows, K * W
      D width of the stream · V vocabulary
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from common.files import require_text
from dataset.tokenizer import encode_texts, load_tokenizer
from model import load_run

START = "start"  # stands for a place before the text, where the model reads padding


@dataclass(frozen=True)
class NgramRows:
    """What one order of the table reads after a text.

    Attributes:
        ngram: the last `order` tokens, decoded and quoted; START for each place before the text.
        rows: the row of each head, numbered as `NgramTable.look_up` numbers them.
        norms: the Euclidean norm of each of these rows, as stored.
        likelier: (next token, effect) of the highest effects above 0, best first. An effect is in logits, but before
            the gate and the scale of the last norm. Both are positive and the same for all tokens.
    """

    order: int
    ngram: str
    rows: list[int]
    norms: list[float]
    likelier: list[tuple[str, float]]


class OpenRun:
    """A trained run of either model type: what a `MemoryStore` has without its memory."""

    def __init__(self, run_dir: str | Path):
        self.run_dir, self.model, self.tokenizer = Path(run_dir), load_run(run_dir), load_tokenizer(run_dir, "run")


@torch.no_grad()
def read_rows(run, text: str, n: int = 5) -> list[NgramRows]:
    """What each order of a run's table reads after a text, with at most n next tokens, in the order of the flags.

    Effects are direct: value projection of the first block with a gate, gain of the last norm, output head. Later
    blocks are ignored.

    Args:
        run: an `OpenRun` or a `MemoryStore`.
    Raises:
        ValueError: the run has no table, or the text has half a character.
    """
    model, tokenizer, table = run.model, run.tokenizer, run.model.ngram_table
    if table is None:
        raise ValueError(f"{run.run_dir} is a run without an n-gram table: give a run trained with --ngram_table_rows")
    (own,) = encode_texts(tokenizer, [require_text(text, "the text")])
    ids, orders = [tokenizer.bos_token_id, *own], model.settings.ngram_table_orders
    row_K = table.look_up(torch.tensor([ids], device=model.device))[0, -1]
    vector_KW = table.rows(row_K)
    norm_NH = vector_KW.norm(dim=-1).view(len(orders), -1)
    vector_NU = torch.block_diag(*table.norm(vector_KW.flatten()).chunk(len(orders)))  # each order without the others
    value_ND = model.blocks[min(model.settings.ngram_table_layers)].ngram_gate.value_proj(vector_NU)
    effect_NV = model.lm_head(model.norm.weight * value_ND)
    best_Nn = effect_NV.topk(min(n, effect_NV.shape[-1]))
    each = (row_K.view(len(orders), -1), norm_NH, best_Nn.indices, best_Nn.values)
    found = []
    for order, rows, norms, tokens, effects in zip(orders, *(x.tolist() for x in each), strict=True):
        ngram = " ".join([*[START] * (order - len(ids)), repr(tokenizer.decode(ids[-order:]))])
        best = zip(tokens, effects, strict=True)
        likelier = [(tokenizer.decode([token]), effect) for token, effect in best if effect > 0]
        found.append(NgramRows(order, ngram, rows, norms, likelier))
    return found
