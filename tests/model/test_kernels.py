"""The Triton kernels against their references; only where there is a GPU."""

import pytest
import torch
import torch.nn.functional as F

from model.visibility import DocumentSpans, Visibility
from tests.conftest import tiny_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("columns, k", [(7, 3), (33, 16), (50, 16), (1024, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_best_of_rows_equals_topk(columns, k, dtype):
    from model.ops.triton.best_of_rows import best_of_rows

    score = torch.randn(3, 5, 2, columns, device="cuda", dtype=dtype, requires_grad=True)
    value, index = best_of_rows(score, k)
    assert torch.equal(value, score.topk(k).values)
    assert torch.equal(score.gather(-1, index), value)
    assert (index.sort(dim=-1).values.diff(dim=-1) > 0).all()
    gradient = torch.randn_like(value)
    (actual,) = torch.autograd.grad(value, score, gradient)
    assert torch.equal(actual, torch.zeros_like(score).scatter(-1, index, gradient))


@pytest.mark.parametrize(
    "M, R, C", [(5, 7, 3), (6, 33, 16), (40, 20, 19), (9, 64, 64), (50, 1008, 11), (3000, 1024, 16)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("use", [True, False])
def test_the_grid_search_and_its_gradient_equal_the_reference(M, R, C, dtype, use):
    from model.losses import balance_loss
    from model.ops import search_grid
    from model.ops.search_grid import product_key_topk, usage_of_keys

    # The two sets of a batched product, as the model hands them in: not contiguous.
    score = (2 * torch.randn(2, 1, M, R, device="cuda")).to(dtype).permute(1, 2, 0, 3).requires_grad_()
    exact, scale = score.detach().double().requires_grad_(), 0.3
    found, entry, used = search_grid(score, C, use, scale)
    best = product_key_topk(exact, C)[0] * scale
    chosen = exact.sort(dim=-1, descending=True, stable=True).indices[..., :C]  # the smaller of equal places first
    halves = entry // R, entry % R
    picked = scale * sum(exact[:, :, half].gather(-1, index) for half, index in enumerate(halves))
    torch.testing.assert_close(found.double(), best, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.double(), picked, rtol=0, atol=1e-5)  # ties may be broken either way
    assert (entry.sort(dim=-1).values.diff(dim=-1) > 0).all()

    weight = torch.randn_like(found)
    objective, wanted = (found * weight).sum(), (picked * weight).sum()
    if use:
        wanted_use = usage_of_keys(scale * exact, chosen)
        assert torch.equal(used.count_2R.long(), wanted_use.count_2R)
        torch.testing.assert_close(used.probability_2R, wanted_use.probability_2R)
        objective = objective + 100 * balance_loss(*used)
        wanted = wanted + 100 * balance_loss(used.count_2R, (scale * exact).softmax(dim=-1).mean(dim=(0, 1)))
    (actual,) = torch.autograd.grad(objective, score)
    (expected,) = torch.autograd.grad(wanted, exact)
    assert (actual.double() - expected).norm() <= (1e-5 if dtype == torch.float32 else 4e-3) * expected.norm()
    again, entries, used = search_grid(score, C, use, scale)
    objective = (again * weight).sum() + (100 * balance_loss(*used) if use else 0)
    assert torch.equal(torch.autograd.grad(objective, score)[0], actual)  # the same at every run
    with torch.no_grad():  # past the dispatcher; and whether the use is asked for or not
        for asked in (use, not use):
            assert all(map(torch.equal, search_grid(score, C, asked, scale)[:2], (found, entry)))


@pytest.mark.parametrize("n, length, width, words", [(11, 5, 48, 31), (7, 8, 33, 50), (300, 16, 512, 6400)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reading_entries_errs_no_more_than_torch(n, length, width, words, dtype):
    from model.ops.triton.entries import read_entries

    token = torch.randint(0, words, (n, length), device="cuda")
    token[0] = 0
    exact = torch.randn(words, width, device="cuda", dtype=torch.float64)
    gradient = torch.randn(n, width, device="cuda", dtype=torch.float64)

    def run(read, dtype):
        table = exact.to(dtype).requires_grad_()
        mean = read(table)
        return mean.double(), torch.autograd.grad(mean, table, gradient.to(dtype))[0].double()

    def reference(table):
        return F.embedding_bag(token, table, mode="mean", padding_idx=0)

    truth, eager = run(reference, torch.float64), run(reference, dtype)
    for t, e, kernel in zip(truth, eager, run(lambda table: read_entries(token, table, 0), dtype), strict=True):
        assert (kernel - t).norm() <= 1.05 * (e - t).norm() + 1e-6 * t.norm()


@pytest.mark.parametrize(
    "B, T, S, length, width, words",
    [(1, 1, 4, 8, 40, 31), (2, 3, 1, 1, 96, 31), (2, 5, 3, 3, 33, 50), (3, 20, 4, 8, 512, 640), (7, 300, 4, 8, 64, 50)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_common", [0, 13])
@pytest.mark.parametrize("states", [False, True])
def test_vectors_of_entries_err_no_more_than_torch(
    B, T, S, length, width, words, dtype, weighted, n_common, states, monkeypatch
):
    from common.constants import MASKED
    from model.ops import unit_entries
    from model.ops.entries import CommonTokens

    token = torch.randint(0, words, (B, T, S, length), device="cuda")
    token[0, 0, -1] = 0  # an entry of padding alone
    common = None
    if n_common:
        common_word = torch.randperm(words - 1, device="cuda")[:n_common] + 1
        place = torch.full((words,), -1, dtype=torch.int16, device="cuda")
        place[common_word] = torch.arange(n_common, dtype=torch.int16, device="cuda")
        common = CommonTokens(common_word, place)
    # As in training: states and table in one precision, log-weights in float32.
    log_weight = (2 * torch.randn(B, T, S)).log_softmax(dim=-1)
    log_weight[0, -1, -1] = MASKED  # a weight of 0
    exact = {"table": (0.02 * torch.randn(words, width)).to(dtype)}
    if states:
        exact["state"] = torch.randn(B, T, width).to(dtype)
    if weighted:
        exact["log_weight"] = log_weight
    exact = {name: x.double().cuda() for name, x in exact.items()}
    gradient = torch.randn(B, T, S + states, width, device="cuda").to(dtype).double()

    def run(unit, **dtypes):
        inputs = {name: x.to(dtypes[name]).requires_grad_() for name, x in exact.items()}
        state, table, log_weight = (inputs.get(name) for name in ("state", "table", "log_weight"))
        entries = token, table, 1e-8, state, log_weight, common
        vectors = unit(*entries)
        assert vectors.is_contiguous() and vectors.dtype == table.dtype
        with torch.no_grad():
            assert torch.equal(unit(*entries), vectors)
        grads = torch.autograd.grad(vectors, list(inputs.values()), gradient.to(vectors.dtype))
        return [x.double() for x in (vectors, *grads)]

    mixed = {"state": dtype, "table": dtype, "log_weight": torch.float32}
    with monkeypatch.context() as patch:
        poison(patch)
        actual = run(unit_entries, **mixed)
    truth = run(unit_entries.op.reference, **dict.fromkeys(mixed, torch.float64))
    eager = run(unit_entries.op.reference, **mixed)
    slack = 1e-3 if dtype == torch.bfloat16 else 1e-6  # half a rounding of the vectors, which gradients are made of
    for t, e, kernel in zip(truth, eager, actual, strict=True):
        assert kernel.isfinite().all()
        assert (kernel - t).norm() <= 1.05 * (e - t).norm() + slack * t.norm()


def poison(patch) -> None:
    """What a kernel does not write is not a number."""
    new_empty = torch.Tensor.new_empty

    def poisoned(*args, **kinds):
        out = new_empty(*args, **kinds)
        return out.fill_(float("nan")) if out.is_floating_point() else out

    patch.setattr(torch.Tensor, "new_empty", poisoned)


@pytest.mark.parametrize(
    "B, T, past, X, heads, width",
    [
        (2, 200, 0, 5, 2, 64),
        (3, 131, 0, 3, 4, 8),
        (1, 70, 0, 3, 2, 128),
        (2, 33, 0, 5, 1, 32),
        (3, 1, 100, 5, 2, 64),
        (1, 40, 7, 3, 2, 16),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("drops", [True, False])
def test_attending_to_entries_errs_no_more_than_torch(B, T, past, X, heads, width, dtype, packed, drops, monkeypatch):
    from common.constants import MASKED
    from model.ops import attend_entries

    P, D = T + past, heads * width
    document = (torch.rand(B, P, device="cuda") < 0.05).cumsum(dim=-1) if packed else None
    visible = Visibility(past, T, document, torch.device("cuda"))
    used = torch.ones(heads, width, device="cuda")
    used[:, -1] = 0  # the channel left free by queries and keys
    used = used.flatten()
    used_pair = torch.cat([used, torch.ones_like(used)])  # of a key and its value
    used_three, used_row = torch.cat([used, used_pair]), used_pair.repeat(X if past else X - 1)
    packed_states = torch.randn(B, T, 3 * D, device="cuda") * used_three
    entry = torch.randn(B, P, len(used_row), device="cuda") * used_row
    log_weight = torch.randn(B, P, X - 1, device="cuda").log_softmax(dim=-1)
    drop = None
    if drops:
        drop = torch.where(torch.rand(B, heads, P * X, device="cuda") < 0.3, MASKED, 0.0)
    exact = [x.to(dtype).double() for x in (packed_states, entry)] + [log_weight.double()]
    gradient = torch.randn(B, T, D, device="cuda").to(dtype).double()

    def run(mask, dtypes):
        fused = isinstance(mask, DocumentSpans)
        config = tiny_config(num_selected=X - 1, fusion_heads=heads, use_flash_attn=fused)
        inputs = [x.to(kind).requires_grad_() for x, kind in zip(exact, dtypes, strict=True)]
        out = attend_entries(*inputs, drop, mask, config)
        with torch.no_grad():
            assert torch.equal(attend_entries(*inputs, drop, mask, config), out)
        grads = [] if past else torch.autograd.grad(out, inputs, gradient.to(out.dtype), retain_graph=True)
        again = [] if past else torch.autograd.grad(out, inputs, gradient.to(out.dtype))
        assert not fused or all(map(torch.equal, grads, again))  # the same at every run
        # Without kernel the free channel serves for the bias, and gets a gradient that goes nowhere.
        grads = [x * kept for x, kept in zip(grads, (used_three, used_row, 1), strict=False)]
        return [x.double() for x in (out, *grads)]

    with monkeypatch.context() as patch:
        poison(patch)
        actual = run(visible.spans(B), (dtype, dtype, torch.float32))
    dense = visible.mask(X, fused=False)
    truth, eager = run(dense, [torch.float64] * 3), run(dense, (dtype, dtype, torch.float32))
    # Where all that a query sees is dropped, each logit has lost what MASKED leaves no bits for.
    slack = 3e-4 if drops else 1e-5
    for t, e, kernel in zip(truth, eager, actual, strict=True):
        assert kernel.isfinite().all()
        assert (kernel - t).norm() <= 1.05 * (e - t).norm() + slack * t.norm()


@pytest.mark.parametrize(
    "B, T, S, heads, width", [(1, 1, 4, 2, 64), (3, 7, 1, 3, 6), (2, 33, 7, 1, 16), (2, 150, 4, 8, 64)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("drops", [True, False])
def test_attending_to_own_entries_errs_no_more_than_torch(B, T, S, heads, width, dtype, drops, monkeypatch):
    from common.constants import MASKED
    from model.ops import attend_own

    D = heads * width
    log_weight = torch.randn(B, T, S, device="cuda").log_softmax(dim=-1)
    drop = None
    if drops:
        drop = torch.where(torch.rand(B, T, heads, S + 1, device="cuda") < 0.3, MASKED, 0.0)
    states, entry = torch.randn(B, T, 3 * D, device="cuda"), torch.randn(B, T, S * 2 * D, device="cuda")
    exact = [x.to(dtype).double() for x in (states, entry)] + [log_weight.double()]
    gradient = torch.randn(B, T, D, device="cuda").to(dtype).double()

    def run(fused, dtypes):
        config = tiny_config(
            num_selected=S, num_candidates=S, selection="gumbel", dim=D, n_heads=1, fusion_heads=heads,
            use_flash_attn=fused,
        )  # fmt: skip
        inputs = [x.to(kind).requires_grad_() for x, kind in zip(exact, dtypes, strict=True)]
        out = attend_own(*inputs, drop, config)
        with torch.no_grad():
            assert torch.equal(attend_own(*inputs, drop, config), out)
        grads = torch.autograd.grad(out, inputs, gradient.to(out.dtype), retain_graph=True)
        again = torch.autograd.grad(out, inputs, gradient.to(out.dtype))
        assert not fused or all(map(torch.equal, grads, again))  # the same at every run
        return [x.double() for x in (out, *grads)]

    mixed = dtype, dtype, torch.float32
    with monkeypatch.context() as patch:
        poison(patch)
        actual = run(True, mixed)
    truth, eager = run(False, [torch.float64] * 3), run(False, mixed)
    slack = 1e-3 if drops else 1e-5  # of logits that have lost what MASKED leaves no bits for
    for t, e, kernel in zip(truth, eager, actual, strict=True):
        assert kernel.isfinite().all()
        assert (kernel - t).norm() <= 1.05 * (e - t).norm() + slack * t.norm()


@pytest.mark.parametrize(
    "n_hints, n_kept", [(48, 16), (5, 3), (1, 2), (16, 8), (17, 16), (64, 64), (80, 16), (128, 64), (160, 16)]
)
def test_keeping_the_best_equals_the_reference(n_hints, n_kept):
    from model.ops import keep_best

    B, T = 5, 70
    entry = torch.randint(-1, 40, (B, T, n_hints), device="cuda")
    weight = torch.rand(B, T, n_hints, device="cuda") * (entry >= 0)
    start = torch.rand(B, T, device="cuda") < 0.05
    kept = torch.arange(n_kept, device="cuda").expand(B, -1).contiguous()
    score = torch.rand(B, n_kept, device="cuda").sort(descending=True).values
    expected = keep_best.op.reference(entry, weight, start, kept, score, 0.9)
    actual = keep_best(entry, weight, start, kept, score, 0.9)
    torch.testing.assert_close(actual[1], expected[1])
    assert (actual[0] == expected[0]).float().mean() > 0.999  # sums in another order may swap near ties


@pytest.mark.parametrize(
    "positions, slots, length, width, vocabulary",
    [(5, 1, 7, 33, 31), (300, 4, 32, 64, 6400), (70, 5, 8, 128, 50), (33, 2, 200, 520, 50), (2, 4, 32, 64, 6400)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("skip", [0, -1])
@pytest.mark.parametrize("shared", [0.0, 0.8])
@pytest.mark.parametrize("dense", [False, True])
def test_reading_tokens_errs_no_more_than_torch(
    positions, slots, length, width, vocabulary, dtype, skip, shared, dense, monkeypatch
):
    from model.ops.triton import token_attention
    from model.ops.triton.token_attention import sum_tokens

    monkeypatch.setattr(token_attention, "DENSE_POSITIONS", 0 if dense else 1 << 30)
    monkeypatch.setattr(token_attention, "DENSE_ROWS", 1 << 30)
    monkeypatch.setattr(token_attention, "DENSE_CAPABILITY", (0, 0))  # it is right on every GPU, if slow on some
    monkeypatch.setattr(token_attention, "DENSE_BYTES", 1 << 20)  # several parts
    bank = torch.randint(skip, vocabulary, (60, length), device="cuda")
    entry = torch.randint(-1, 60, (positions, slots), device="cuda")
    entry = torch.where(torch.rand(positions, slots, device="cuda") < shared, entry[:1], entry)
    entry[-1] = -1
    token = bank[entry.clamp(min=0)].masked_fill((entry < 0)[..., None], skip).flatten(1)
    token = token.int() if shared else token
    rest = token, entry, skip
    assert_reads_as_torch(
        None, lambda w, t: sum_tokens(w, t, *rest), token, skip, width, vocabulary, dtype, monkeypatch,
        at_most=2.5 if dense else 1.05,  # dense sums are rounded at each word that repeats
    )  # fmt: skip


@pytest.mark.parametrize(
    "B, T, slots, length, width, vocabulary",
    [(1, 5, 1, 7, 33, 31), (3, 100, 10, 28, 64, 6400), (2, 35, 5, 8, 128, 50), (1, 2, 4, 200, 250, 640)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [0.0, 0.8])
def test_matching_tokens_errs_no_more_than_torch(B, T, slots, length, width, vocabulary, dtype, shared, monkeypatch):
    from common.constants import PADDING
    from model.ops import match_tokens
    from model.ops.entry_layout import NO_TOKEN

    length_N1 = torch.randint(0, length + 1, (60, 1), device="cuda")
    bank = torch.randint(1, vocabulary, (60, length), device="cuda")
    bank = bank.where(torch.arange(length, device="cuda") < length_N1, PADDING).int()
    entry = torch.randint(-1, 60, (B, T, slots), device="cuda")  # one may stand in two slots of a position
    entry = torch.where(torch.rand(B, T, slots, device="cuda") < shared, entry[:1, :1], entry)
    entry[0, -1] = -1
    token = bank[entry.clamp(min=0)].masked_fill((entry < 0)[..., None], PADDING)
    previous = F.pad(token[..., :-1], (1, 0), value=PADDING).masked_fill(token == PADDING, NO_TOKEN)
    words = token.flatten(-2), previous.flatten(-2), entry
    exact = [torch.randn(B, T, width), torch.randn(B, T, width), *torch.randn(3, vocabulary, width)]
    exact = [x.cuda().to(dtype).double() for x in exact]
    grads = [torch.randn(x.shape, device="cuda") for x in (words[0], entry)]

    def run(match, dtype):
        inputs = [x.to(dtype).requires_grad_() for x in exact]
        outs = match(*inputs, *words)
        as_outs = [grad.to(out.dtype) for grad, out in zip(grads, outs, strict=True)]
        return [x.double() for x in (*outs, *torch.autograd.grad(outs, inputs, as_outs))]

    truth, eager = run(match_tokens.op.reference, torch.float64), run(match_tokens.op.reference, dtype)
    with monkeypatch.context() as patch:
        poison(patch)
        fast = run(match_tokens, dtype)
    for t, e, kernel in zip(truth, eager, fast, strict=True):
        assert kernel.shape == t.shape
        assert (kernel - t).norm() <= 1.05 * (e - t).norm() + 1e-5 * t.norm()
    assert (truth[0] != 0).any() or T == 5


def assert_reads_as_torch(
    score, mix, token, skip: int, width: int, vocabulary: int, dtype, monkeypatch, at_most: float = 1.05
) -> None:
    """Sums of words, scores of words unless None, and their gradients err no more than plain torch as precise."""
    read, shapes = (token != skip)[..., None], ((len(token), width), (vocabulary, width), token.shape)
    with_scores = score is not None
    exact = [torch.randn(*shape, device="cuda").to(dtype).double() for shape in shapes]

    def run(score, mix, dtype):
        query, table, weight = (x.to(dtype).requires_grad_() for x in exact)
        outs = [mix(weight, table), *([score(query, table)] if with_scores else [])]
        inputs = [table, weight, *([query] if with_scores else [])]
        grads = [torch.linspace(-1, 1, out.numel(), device="cuda").view_as(out).to(out.dtype) for out in outs]
        return [x.double() for x in (*outs, *torch.autograd.grad(outs, inputs, grads))]

    def slow_score(query, table):
        return (query[:, None] * table[token.long().clamp(min=0)] * read).sum(dim=-1)

    def slow_mix(weight, table):
        return (weight[..., None] * table[token.long().clamp(min=0)] * read).sum(dim=-2)

    truth, eager = run(slow_score, slow_mix, torch.float64), run(slow_score, slow_mix, dtype)
    with monkeypatch.context() as patch:
        poison(patch)
        fast = run(score, mix, dtype)
    for t, e, kernel in zip(truth, eager, fast, strict=True):
        assert (kernel - t).norm() <= at_most * (e - t).norm() + 1e-5 * t.norm()


@pytest.mark.parametrize(
    "positions, words, width, vocabulary", [(5, 7, 33, 31), (300, 64, 64, 6400), (70, 200, 128, 9)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reading_words_errs_no_more_than_torch(positions, words, width, vocabulary, dtype, monkeypatch):
    from model.ops.triton.words import score_words, sum_words

    token = torch.randint(0, vocabulary, (positions, words), device="cuda")
    token[-1] = 0
    assert_reads_as_torch(
        lambda q, t: score_words(q, t, token, 0), lambda w, t: sum_words(w, t, token, 0), token, 0, width, vocabulary,
        dtype, monkeypatch,
    )  # fmt: skip


def test_words_that_are_part_of_a_wider_row_are_read_where_they_stand():
    from model.ops.triton.words import score_words, spread_words, sum_words

    token, weight = torch.randint(0, 50, (90, 32), device="cuda"), torch.rand(90, 17, device="cuda")
    query, table = torch.randn(90, 128, device="cuda"), torch.randn(50, 64, device="cuda")
    parts = token[:, 16:], weight[:, :16], query[:, 64:]
    (own_token, own_weight, own_query), (token, weight, query) = (x.contiguous() for x in parts), parts
    assert torch.equal(score_words(query, table, token, 0), score_words(own_query, table, own_token, 0))
    torch.testing.assert_close(sum_words(weight, table, token, 0), sum_words(own_weight, table, own_token, 0))
    spread = [spread_words(*args, 50, 0) for args in ((weight, query, token), (own_weight, own_query, own_token))]
    torch.testing.assert_close(*spread)


@pytest.mark.parametrize("positions, words, width, rows", [(1, 1, 5, 3), (70, 130, 64, 900)])
def test_products_with_rows_equal_the_reference(positions, words, width, rows):
    from model.ops import row_products

    query, table = torch.randn(positions, width, device="cuda"), torch.randn(rows, width, device="cuda").half()
    row = torch.randint(0, rows, (positions, words), device="cuda")
    assert (row == 0).any() or words == 1
    torch.testing.assert_close(row_products(query, table, row), row_products.op.reference(query, table, row))


def assert_same(actual, expected) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype and a.shape == e.shape and int((a != e).sum()) == 0


@pytest.mark.parametrize(
    "n_tokens, entries, bits, length", [(3, 1, 2, 1), (5, 70, 3, 5), (4, 900, 3, 25), (9, 9000, 13, 8)]
)
def test_the_places_of_a_suffix_equal_the_reference(n_tokens, entries, bits, length):
    from model.memory.suffix_index import SuffixIndex
    from model.ops import spaced_places, suffix_bounds, suffix_levels, suffix_neighbours
    from model.ops.own_places import Own

    config = tiny_config(
        retrieval="suffix", fusion="continuations", keep_ffn=True, vocab_size=1 << bits, suffix_length=length
    )
    token = torch.randint(1, n_tokens, (entries, 9), device="cuda", dtype=torch.int16)
    token[torch.rand(entries, device="cuda") < 0.3, 6:] = 0
    index = SuffixIndex(token, config)
    text = torch.randint(1, n_tokens, (1, 500), device="cuda")
    query = index.queries(text, torch.rand(1, 500, device="cuda") < 0.05).flatten(1)
    form, places, n_places = index.form, (index.base.place_P, token), len(index.base.place_P)
    for n in (500, 40):  # many and few have kernels of their own
        args = query[:, :n], *index.base, token, *form
        assert_same(suffix_bounds(*args), suffix_bounds.op.reference(*args))
        args = query[0, :n], *index.base, token, index.free_M, *form
        assert_same(suffix_levels(*args), suffix_levels.op.reference(*args))

    low, high = suffix_bounds(query, *index.base, token, *form)
    given = torch.randperm(n_places, device="cuda").int()
    document = torch.arange(entries, device="cuda").int() % 3 - 1
    for own in (None, Own(document, 9, torch.randint(0, 2, (500,), device="cuda"))):
        for n, n_ranked, n_given, further in ((4, 8, 4, 0), (3, 20, 20, n_places // 2), (1, 2, 1, 0), (16, 32, 16, 0)):
            args = query, *places, low, high, given, further, n, n_ranked, n_given, *form, own
            expected = suffix_neighbours.op.reference(*args)
            assert_same(suffix_neighbours(*args), expected)
            assert (expected[1] > 0).any() or n_places == 1
        for n in (1, 7, 128):
            args = low, high - low, given, n, max(n_places - 5, 1), n_places // 2, own
            assert_same([spaced_places(*args)], [spaced_places.op.reference(*args)])


@pytest.mark.parametrize("shape, bits, length", [((1, 1), 2, 1), ((3, 70), 3, 25), ((48, 512), 13, 8)])
def test_the_suffixes_of_a_text_equal_the_reference(shape, bits, length):
    from model.ops import suffix_queries

    text = torch.randint(0, 1 << bits, shape, device="cuda")
    start = torch.rand(shape, device="cuda") < 0.05
    args = text, start, length, bits, 62 // bits
    assert_same(suffix_queries(*args), suffix_queries.op.reference(*args))


@pytest.mark.parametrize(
    "X, Y, entries, length, vocabulary, width, given",
    [
        (1, 1, 1, 4, 9, 5, 1), (70, 7, 50, 9, 9, 33, 9), (3000, 128, 3000, 64, 6400, 64, 16),
        (300, 256, 300, 16, 40, 26, 16), (50, 130, 300, 16, 5, None, 4), (20, 1024, 300, 16, 900, 64, 16),
        (5, 1030, 300, 16, 900, 64, 16),
    ],
)  # fmt: skip
def test_counted_next_tokens_equal_the_reference(X, Y, entries, length, vocabulary, width, given):
    from model.ops import next_tokens

    bank = torch.randint(0, vocabulary, (entries, length), device="cuda", dtype=torch.int16)
    place = torch.randint(-1, entries * length, (X, Y), device="cuda", dtype=torch.int32)
    place[:, Y // 2 + 1 :] = place[:, :1]  # often the same
    place[0] = -1
    topics = None, None
    if width:
        topics = (F.normalize(torch.randn(n, width, device="cuda"), dim=-1) for n in (X, entries))
        topics = next(topics), next(topics).half()
    args = place, torch.randint(1, 5, (X,), device="cuda"), bank, vocabulary, *topics, given
    expected = next_tokens.op.reference(*args)
    assert_same(next_tokens(*args), expected)
    assert (expected[1] > 0).any() or X == 1


@pytest.mark.parametrize(
    "B, T, W, n", [(1, 1, 1, 1), (2, 37, 5, 7), (3, 50, 32, 16), (2, 40, 31, 7), (2, 9, 33, 40), (1, 250, 200, 16)]
)
@pytest.mark.parametrize("has_now", [False, True])
def test_the_rarest_words_of_a_window_equal_the_reference(B, T, W, n, has_now):
    from model.ops import rarest_words

    word, now = (torch.randint(0, 12, (B, T), device="cuda") for _ in range(2))
    idf = torch.randint(0, 4, (12,), device="cuda").float()  # many are worth the same
    idf[0] = 0
    depth = torch.arange(T, device="cuda").expand(B, T) % 23 - 1
    factor = torch.rand(W, device="cuda").round(decimals=1).sort().values
    args = word, idf[word], depth, factor, n, *((now, idf[now]) if has_now else ())
    actual, expected = rarest_words(*args), rarest_words.op.reference(*args)
    assert all(map(torch.equal, actual, expected))
    assert T == 1 or (expected[0] > 0).any()


@pytest.mark.parametrize("firsts", [1, 2, 40])  # 1: keys of single words; else of pairs, too
@pytest.mark.parametrize("X, Y, P, n", [(1, 1, 0, 1), (3, 1, 1, 8), (37, 8, 500, 8), (129, 3, 1024, 5)])
def test_the_postings_of_keys_equal_the_reference(X, Y, P, n, firsts):
    from model.memory.bm25_index import CutPostings
    from model.ops import read_postings

    def keys(least, *shape):
        high, low = torch.randint(0, firsts, shape, device="cuda"), torch.randint(least, 90, shape, device="cuda")
        return high * 23_000_000 << 32 | low * 23_000_000  # up to nearly 2^31

    key_P, entry_P = keys(1, P).sort().values, torch.randint(0, 60, (P,), device="cuda")
    key, weight, norm = keys(0, X, Y), torch.rand(X, Y, device="cuda"), torch.rand(60, device="cuda")
    if P:
        key[0, 0] = key_P[-1]
    lists = CutPostings(key_P, entry_P, key_P[:0])
    args = key, weight, lists.first_V, lists.begin_V, lists.second_P, lists.entry_P, norm, n
    actual, expected = read_postings(*args), read_postings.op.reference(*args)
    assert all(map(torch.equal, actual, expected))
    assert P == 0 or (expected[0] >= 0).any()


@pytest.mark.parametrize("X, C, K, Q", [(1, 1, 1, 1), (37, 64, 26, 16), (200, 5, 9, 17)])
def test_ranking_entries_by_words_equals_the_reference(X, C, K, Q):
    from model.ops import rank_by_words

    words = torch.arange(1, 2 * K + 1).expand(300, -1)[:, torch.randperm(2 * K)[:K]].int() * (torch.rand(300, K) < 0.8)
    asked = torch.stack([torch.randperm(2 * K + Q)[:Q] for _ in range(X)]).int()
    value = torch.randint(0, 8, (X, Q)) / 8  # sums are exact: equal scores are equal in whatever order they are summed
    norm = torch.randint(1, 5, (300,)) / 4
    args = [x.cuda() for x in (torch.randint(-1, 300, (X, C)), words.int(), norm, asked, value)]
    actual, expected = rank_by_words(*args), rank_by_words.op.reference(*args)
    assert all(map(torch.equal, actual, expected))
    assert (expected[1] > 0).any() or K == 1


@pytest.mark.parametrize("B, T, X, S, L, window", [(1, 1, 1, 1, 1, 1), (3, 1, 20, 3, 5, 2), (2, 37, 37, 16, 32, 58)])
def test_laying_out_entries_equals_the_reference(B, T, X, S, L, window):
    from model.ops import lay_out_entries

    length_N1 = torch.randint(0, L + 1, (50, 1), device="cuda")
    token_NL = torch.randint(1, 9, (50, L), device="cuda").where(torch.arange(L, device="cuda") < length_N1, 0).short()
    text_BX, start_BX = torch.randint(0, 9, (B, X), device="cuda"), torch.rand(B, X, device="cuda") < 0.1
    start_BX[:, 0] = True
    args = torch.randint(-1, 50, (B, T, S), device="cuda"), token_NL, text_BX, start_BX, window
    assert_same(lay_out_entries(*args), lay_out_entries.op.reference(*args))


@pytest.mark.parametrize("shape, length", [((1,), 1), ((2, 33, 32), 9), ((24, 512, 32), 64)])
def test_what_stands_after_counted_places_equals_the_reference(shape, length):
    from model.ops import read_places
    from model.ops.place_counts import pack_score

    bank = torch.randint(0, 6400, (900, length), device="cuda", dtype=torch.int16)
    place = torch.randint(-1, bank.numel(), shape, device="cuda")
    matched, shares = torch.randint(0, 9, shape, device="cuda"), torch.rand(2, *shape, device="cuda")
    score = pack_score(matched, *shares).where(torch.rand(shape, device="cuda") < 0.5, matched)
    assert_same(read_places(place, score, bank), read_places.op.reference(place, score, bank))


@pytest.mark.parametrize(
    "X, Y, groups, width, words",
    [(1, 1, [1], 5, 9), (7, 1, [16, 16], 64, 900), (5, 3, [3, 2, 2], 33, 50), (33, 8, [16], 64, 6400)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_to_continuations_errs_no_more_than_torch(X, Y, groups, width, words, dtype):
    from model.ops import attend_continuations, order_of_words

    token = torch.randint(0, words, (X, Y, sum(groups)), device="cuda")
    token[0] = 0  # nothing is found
    exact = [torch.randn(n, width, device="cuda", dtype=torch.float64) for n in (X, words, words)]
    log_weight = 3 * torch.randn(X, sum(groups), device="cuda")
    nothing = torch.randn(X, len(groups), Y, device="cuda").to(dtype)
    gradient = torch.randn(X, len(groups), Y, width, device="cuda", dtype=torch.float64)

    def run(function, dtype, *order):
        leaves = [x.to(dtype) for x in (*exact, nothing)] + [log_weight.to(torch.promote_types(dtype, torch.float32))]
        *vectors, none, log = [x.detach().requires_grad_() for x in leaves]
        read, weight = function(*vectors, token, log, none, groups, *order)
        assert not weight.requires_grad
        return [read, weight, *torch.autograd.grad((read * gradient.to(read.dtype)).sum(), [*vectors, none, log])]

    truth = run(attend_continuations.op.reference, torch.float64)
    eager, kernel = run(attend_continuations.op.reference, dtype), run(attend_continuations, dtype)
    sorted_before = run(attend_continuations, dtype, order_of_words(token, words))
    for a, b in zip(kernel, sorted_before, strict=True):  # the tables' gradients are summed in no fixed order
        torch.testing.assert_close(a, b, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-3)
    for t, e, k in zip(truth, eager, kernel, strict=True):
        assert k.dtype == e.dtype and k.shape == e.shape
        assert (k - t).norm() <= 1.05 * (e - t).norm() + 2e-6 * t.norm()
    with torch.no_grad():  # past the dispatcher
        vectors = [x.to(dtype) for x in exact]
        assert_same(attend_continuations(*vectors, token, log_weight, nothing, groups), kernel[:2])


# The rows of the last shape take the programs of a gradient several turns.
@pytest.mark.parametrize("shape", [(2, 7, 3, 2, 16), (1, 33, 2, 2, 24), (3, 300, 8, 8, 64), (20, 512, 8, 8, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norming_and_rotating_heads_errs_no_more_than_torch(shape, dtype, monkeypatch):
    from model.layers import rotary_table
    from model.ops import normed_heads

    B, T, H, G, E = shape
    qkv_BTX = (1.5 * torch.randn(B, T, (H + 2 * G) * E, device="cuda")).to(dtype)
    gains = [torch.rand(E, device="cuda") + 0.5 for _ in range(2)]
    turn = rotary_table(torch.arange(T, device="cuda"), E, 10000.0)
    # As FlexAttention hands its gradients back: heads before positions.
    weights = [torch.randn(B, T, n, E, device="cuda").to(dtype).double() for n in (H, G, G)]
    weights[0] = weights[0].transpose(1, 2).contiguous().transpose(1, 2)

    def run(function, kind):
        leaves = [qkv_BTX.to(kind or dtype), *(gain.to(kind or torch.float32) for gain in gains)]
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        outs = function(*leaves, *(angle.to(kind or torch.float32) for angle in turn), H, G, 1e-5)
        grads = torch.autograd.grad(outs, leaves, [w.to(out.dtype) for w, out in zip(weights, outs, strict=True)])
        return [x.detach().double() for x in (*outs, *grads)]

    with monkeypatch.context() as patch:
        poison(patch)
        kernel, again = run(normed_heads, None), run(normed_heads, None)
    reference, exact = run(normed_heads.op.reference, None), run(normed_heads.op.reference, torch.float64)
    for k, a, r, e in zip(kernel, again, reference, exact, strict=True):
        assert torch.equal(k, a)
        assert (k - e).norm() <= 1.05 * (r - e).norm() + 1e-6 * e.norm()


KERNEL_TESTS = {
    "normed_heads": test_norming_and_rotating_heads_errs_no_more_than_torch,
    "best_of_rows": test_best_of_rows_equals_topk,
    "search_grid": test_the_grid_search_and_its_gradient_equal_the_reference,
    "attend_continuations": test_attention_to_continuations_errs_no_more_than_torch,
    "read_entries": test_reading_entries_errs_no_more_than_torch,
    "unit_entries": test_vectors_of_entries_err_no_more_than_torch,
    "attend_entries": test_attending_to_entries_errs_no_more_than_torch,
    "attend_own": test_attending_to_own_entries_errs_no_more_than_torch,
    "keep_best": test_keeping_the_best_equals_the_reference,
    "match_tokens": test_matching_tokens_errs_no_more_than_torch,
    "sum_tokens": test_reading_tokens_errs_no_more_than_torch,
    "score_words": test_reading_words_errs_no_more_than_torch,
    "sum_words": test_reading_words_errs_no_more_than_torch,
    "row_products": test_products_with_rows_equal_the_reference,
    "rarest_words": test_the_rarest_words_of_a_window_equal_the_reference,
    "read_postings": test_the_postings_of_keys_equal_the_reference,
    "rank_by_words": test_ranking_entries_by_words_equals_the_reference,
    "lay_out_entries": test_laying_out_entries_equals_the_reference,
    "suffix_bounds": test_the_places_of_a_suffix_equal_the_reference,
    "suffix_levels": test_the_places_of_a_suffix_equal_the_reference,
    "suffix_neighbours": test_the_places_of_a_suffix_equal_the_reference,
    "suffix_queries": test_the_suffixes_of_a_text_equal_the_reference,
    "spaced_places": test_the_places_of_a_suffix_equal_the_reference,
    "next_tokens": test_counted_next_tokens_equal_the_reference,
    "read_places": test_what_stands_after_counted_places_equals_the_reference,
}  # by operation; `test_ops.py` checks that none is missing
