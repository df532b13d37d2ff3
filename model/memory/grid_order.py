"""Ordering the bank by content, so that a row or a column of sub-keys means something.

Axes: N bank entries = R*R · R rows and columns of the grid · K sub-key width · G groups · X entries of one
      W words at the beginning of an entry · D width · V vocabulary
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .ngram_index import rarest, rarity_ranks

POWER_STEPS = 8
WORDS_COMPARED = 3  # entries that share all of them keep the order of the bank


def content_order(vector_ND: Tensor, grid_side: int, by_word_N: Tensor | None = None) -> Tensor:
    """(N,) int64: which entry goes to each place of the R x R grid.

    Rows are clusters of the first halves of the entries' vectors, because the first set of sub-keys scores the first
    half of a query; within each row, entries are dealt to columns that are clusters of the second halves.

    Args:
        by_word_N: the entries in an order to be cut into rows as it stands. Columns are then clusters of what the
            entries of a row do not share: of their second halves without the row's mean.
    """
    first_NK, second_NK = F.normalize(vector_ND.float(), dim=-1).chunk(2, dim=-1)
    if by_word_N is None:
        every_1N = torch.arange(len(vector_ND), device=vector_ND.device)[None]
        row_RR = balanced_clusters(first_NK, every_1N, grid_side).view(grid_side, grid_side)
    else:
        row_RR = by_word_N.view(grid_side, grid_side)
        second_RRK = second_NK[row_RR]
        second_NK = torch.empty_like(second_NK).index_copy_(
            0, by_word_N, (second_RRK - second_RRK.mean(dim=1, keepdim=True)).flatten(0, 1)
        )
    return balanced_clusters(second_NK, row_RR, grid_side).flatten()


def order_by_rarest_words(token_NW: Tensor, count_V: Tensor) -> Tensor:
    """(N,) int64: the entries, those side by side that share their rarest word; among them, the next rarest."""
    order_N = torch.arange(len(token_NW), device=token_NW.device)
    for rank_N in rarest(rarity_ranks(count_V)[token_NW.long()], WORDS_COMPARED).unbind(dim=-1)[::-1]:
        order_N = order_N[rank_N[order_N].argsort(stable=True)]
    return order_N


def weighed_words(token_XW: Tensor, rarity_V: Tensor, embedding_VD: Tensor) -> Tensor:
    """(X, D): the sum of an entry's first words, each as much as it is rare."""
    token_XW = token_XW.long()
    return F.embedding_bag(token_XW, embedding_VD, per_sample_weights=rarity_V[token_XW].to(embedding_VD), mode="sum")


def balanced_clusters(vector_NK: Tensor, index_GX: Tensor, n_clusters: int) -> Tensor:
    """(G, X): each group's entries, reordered into `n_clusters` consecutive runs of equal length.

    Hierarchical 2-means with sizes held equal: the points are cut at the median along their leading principal
    direction, the relaxed solution of 2-means, and each half likewise. All groups are cut along the same directions,
    so cluster c means the same in each of them.

    Source: Ding & He 2004, "K-means clustering via principal component analysis".
    """
    if n_clusters == 1:
        return index_GX
    point_GXK = vector_NK[index_GX]
    centred_XK = point_GXK.flatten(0, 1) - point_GXK.mean(dim=(0, 1))
    # The power iteration starts from the widest coordinate: deterministic, and seldom orthogonal to the answer.
    direction_K = F.one_hot(centred_XK.square().sum(dim=0).argmax(), centred_XK.shape[1]).to(centred_XK.dtype)
    for _ in range(POWER_STEPS):
        direction_K = F.normalize(centred_XK.T @ (centred_XK @ direction_K), dim=0)
    order_GX = (point_GXK @ direction_K).argsort(dim=-1, stable=True)
    index_GX = index_GX.gather(-1, order_GX)
    left = n_clusters // 2
    cut = left * (index_GX.shape[1] // n_clusters)
    return torch.cat(
        [
            balanced_clusters(vector_NK, index_GX[:, :cut], left),
            balanced_clusters(vector_NK, index_GX[:, cut:], n_clusters - left),
        ],
        dim=-1,
    )


def content_keys(vector_ND: Tensor, grid_side: int) -> Tensor:
    """(2, R, K) sub-keys: the mean first half of each row and second half of each column, scaled to unit variance.

    Args:
        vector_ND: the entries' vectors, in the order of the grid.
    """
    grid_RRD = F.normalize(vector_ND.float(), dim=-1).view(grid_side, grid_side, -1)
    first_RRK, second_RRK = grid_RRD.chunk(2, dim=-1)
    keys_2RK = torch.stack([first_RRK.mean(dim=1), second_RRK.mean(dim=0)])
    keys_2RK = keys_2RK - keys_2RK.mean(dim=1, keepdim=True)
    return F.normalize(keys_2RK, dim=-1) * keys_2RK.shape[-1] ** 0.5


def cached_content_order(
    path: str | Path, token_NL: Tensor, vector_ND: Tensor, grid_side: int, by_word_N: Tensor | None = None
) -> Tensor:
    """`content_order`, kept in the .npz file `path` for the runs that start from the same bank.

    Raises:
        ValueError: the file orders another bank, or in another way.
    """
    path, digest = Path(path), hashlib.blake2b(token_NL.cpu().numpy().tobytes())
    if by_word_N is not None:
        digest.update(by_word_N.cpu().numpy().tobytes())
    digest = digest.hexdigest()
    if path.exists():
        with np.load(path) as saved:
            if str(saved["bank"]) != digest:
                raise ValueError(
                    f"{path} orders another bank, or by other words: give the --cluster_words it was made with, or "
                    "another --cluster_cache_path, or delete it"
                )
            return torch.from_numpy(saved["order"])
    order_N = content_order(vector_ND, grid_side, by_word_N).cpu()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.npz")
    np.savez(temporary, order=order_N.numpy(), bank=digest)
    temporary.replace(path)
    return order_N
