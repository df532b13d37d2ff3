"""The hot operations. Each file has the reference in plain torch; `triton/` has the kernels for CUDA.

| file | operations |
|---|---|
| `normed_heads` | queries and keys, normed and rotated |
| `search_grid` | product-key search over the grid of entries |
| `best_of_rows` | the k largest values of each row |
| `keep_best` | the running best entries of an n-gram search |
| `entries` | `read_entries`, `unit_entries`: vectors of entries |
| `entry_attention` | `attend_entries`, `attend_own`: attention to vectors of entries |
| `entry_layout` | `lay_out_entries`: the tokens of entries, and how they relate to the text |
| `token_attention` | `sum_tokens`: weighted sums of the tokens of entries |
| `token_match` | `match_tokens`: how the tokens of entries match a position |
| `continuations` | `attend_continuations`: attention to tokens after places |
| `words` | `score_words`, `sum_words`: attention to single tokens, that neighbours do not share; `row_products` |
| `word_search` | `rarest_words`, `read_postings`, `rank_by_words`: the steps of a search by words (BM25) |
| `suffix_bounds` | binary search in a suffix index; `suffix_levels`: of suffixes of every length |
| `suffix_neighbours` | the places of a suffix index that share most with the text; `suffix_queries`: its suffixes |
| `place_counts` | `spaced_places`, `next_tokens`: what follows many places, counted; `read_places` |

`OPS` lists them all, with the rule that chooses between reference and kernel (`twin.Op`). A new operation:
1. Write the reference in a file of its own, and test it on a CPU.
2. Write the kernel under the same name in `triton/`, decorated with `custom_op`.
3. Write a function with the reference's arguments that imports the kernel and runs it through `call`.
4. Decorate the reference with `@twin` and name that function; say whether the kernel is deterministic.
5. Import the operation below.
6. Add its rule to `KERNEL_ON_GPU` in `tests/model/test_ops.py`, and a test to `KERNEL_TESTS` in `test_kernels.py`.
"""

from .best_of_rows import best_of_rows
from .continuations import attend_continuations, order_of_words
from .entries import read_entries, unit_entries
from .entry_attention import attend_entries, attend_own
from .entry_layout import lay_out_entries
from .keep_best import keep_best
from .normed_heads import normed_heads
from .place_counts import next_tokens, read_places, spaced_places
from .search_grid import search_grid
from .suffix_bounds import suffix_bounds, suffix_levels
from .suffix_neighbours import suffix_neighbours, suffix_queries
from .token_attention import sum_tokens
from .token_match import match_tokens
from .twin import OPS, Op, twin
from .word_search import rank_by_words, rarest_words, read_postings
from .words import row_products, score_words, sum_words

__all__ = [
    "OPS", "Op", "attend_continuations", "attend_entries", "attend_own", "best_of_rows", "keep_best",
    "lay_out_entries", "match_tokens", "next_tokens", "normed_heads", "order_of_words", "rank_by_words", "rarest_words",
    "read_entries", "read_places", "read_postings", "row_products", "score_words", "search_grid", "spaced_places",
    "suffix_bounds", "suffix_levels", "suffix_neighbours", "suffix_queries", "sum_tokens", "sum_words", "twin",
    "unit_entries",
]  # fmt: skip
