"""Moving averages of entries: training moves the texts of unfrozen entries toward the queries that read them.

Axes: N bank entries · L tokens per entry · D width · V vocabulary · X reads · U entries updated at once
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.constants import PADDING

from .bank import MemoryBank
from .bank_index import ROWS_AT_ONCE
from .interfaces import Reading


@torch.no_grad()
def ema_update(bank: MemoryBank, readings: list[Reading], embedding_VD: Tensor) -> int:
    """Move the unfrozen entries that were read toward the queries that read them.

    The average of an entry starts as its own direction. At each call it decays toward the mean direction of its
    queries. The L tokens whose mean embedding is nearest to it, chosen greedily, become the entry. The result depends
    only on the arguments and the buffers: processes that pass the same reads get the same bank.

    Returns:
        How many rows changed.
    """
    entry_X = torch.cat([reading.entry_BTS.flatten() for reading in readings])
    query_XD = torch.cat([r.query_BTD.repeat_interleave(r.entry_BTS.shape[-1], dim=1).flatten(0, 1) for r in readings])
    unfrozen_N = ~bank.frozen
    keep_X = unfrozen_N[entry_X]
    row_U, group_X = entry_X[keep_X].unique(return_inverse=True)
    if not len(row_U):
        return 0
    direction_XD = F.normalize(query_XD[keep_X].float(), dim=-1)
    total_UD = torch.zeros(len(row_U), direction_XD.shape[1], device=row_U.device)
    target_UD = F.normalize(total_UD.index_add_(0, group_X, direction_XD), dim=-1)

    index_U = (unfrozen_N.cumsum(0) - 1)[row_U]
    average_UD = bank.average[index_U].float()
    fresh_U1 = ~average_UD.any(dim=-1, keepdim=True)
    own_UD = F.normalize(bank.vectors(row_U, embedding_VD).float(), dim=-1)
    decay = bank.config.ema_decay
    average_UD = decay * torch.where(fresh_U1, own_UD, average_UD) + (1 - decay) * target_UD
    bank.average[index_U] = average_UD.half()

    changed = 0
    for row_Y, goal_YD in zip(row_U.split(ROWS_AT_ONCE), average_UD.split(ROWS_AT_ONCE), strict=True):
        token_YL = nearest_tokens(goal_YD, embedding_VD.float(), bank.tokens.shape[1]).to(bank.tokens.dtype)
        changed += int((token_YL != bank.tokens[row_Y]).any(dim=-1).sum())
        bank.tokens[row_Y] = token_YL
    return changed


def nearest_tokens(goal_UD: Tensor, embedding_VD: Tensor, length: int) -> Tensor:
    """(U, length) int64: tokens, chosen one by one, whose summed embedding points most nearly along each goal.

    Source: matching pursuit, Mallat & Zhang 1993, with a fixed number of steps and unit steps.
    """
    goal_UD = F.normalize(goal_UD, dim=-1)
    along_UV = goal_UD @ embedding_VD.T
    squared_V = embedding_VD.square().sum(dim=-1)
    sum_UD, tokens = torch.zeros_like(goal_UD), []
    for _ in range(length):
        numerator_UV = (sum_UD * goal_UD).sum(dim=-1, keepdim=True) + along_UV
        squared_UV = sum_UD.square().sum(dim=-1, keepdim=True) + 2 * sum_UD @ embedding_VD.T + squared_V
        cosine_UV = numerator_UV / squared_UV.clamp(min=1e-12).sqrt()
        cosine_UV[:, PADDING] = -2.0
        tokens.append(cosine_UV.argmax(dim=-1))
        sum_UD = sum_UD + embedding_VD[tokens[-1]]
    return torch.stack(tokens, dim=-1)
