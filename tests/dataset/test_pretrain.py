import gzip
from itertools import islice

import numpy as np
import pytest
import torch

from common.constants import IGNORED
from dataset import pretrain
from dataset.loader import BatchLoader, batch_rows
from dataset.pretrain import open_entries, open_pretrain_data, read_documents

from .conftest import TEXTS

ROWS = [{"text": text} for text in TEXTS]


@pytest.fixture
def open_rows(tokenizer, tmp_path, write):
    path = write("text.jsonl", ROWS)

    def open_as(mode="packed", max_seq_len=16, **options):
        return open_pretrain_data(path, tokenizer, max_seq_len, mode, tmp_path / "cache", **options)

    return open_as


def documents(tokenizer):
    for text in TEXTS:
        yield [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]


def test_packed_rows_are_the_stream_of_documents(tokenizer, open_rows):
    rows, stream = open_rows(), np.concatenate(list(documents(tokenizer)))
    batch = rows.fetch(np.arange(len(rows)))
    n_used = batch["input_ids"].numel()
    assert batch["input_ids"].flatten().tolist() == stream[:n_used].tolist()
    assert rows.report["tokens_left_out"] == len(stream) - n_used < 16


def test_packed_rows_predict_every_token_but_the_first_of_a_document(tokenizer, open_rows):
    batch = open_rows().fetch(np.arange(len(open_rows())))
    first = batch["input_ids"] == tokenizer.bos_token_id
    assert torch.equal(batch["labels"], batch["input_ids"].masked_fill(first, IGNORED))
    changes = batch["document_ids"].diff(dim=1) != 0
    assert torch.equal(changes, first[:, 1:])
    assert torch.equal(batch["document_ids"].flatten(), first.flatten().cumsum(0) - 1)


def test_padded_rows_are_single_documents(tokenizer, open_rows):
    rows = open_rows("padded", 24)
    batch = rows.fetch(np.arange(len(rows)))
    for row, document in enumerate(documents(tokenizer)):
        kept = document[:24]
        assert batch["input_ids"][row].tolist() == kept + [tokenizer.pad_token_id] * (24 - len(kept))
        assert batch["labels"][row].tolist() == [IGNORED, *kept[1:]] + [IGNORED] * (24 - len(kept))
    assert "document_ids" not in batch


def test_packed_and_padded_rows_ask_for_the_same_tokens_where_nothing_is_cut(tokenizer, open_rows):
    n_tokens = sum(map(len, documents(tokenizer)))
    packed, padded = open_rows("packed", n_tokens), open_rows("padded", 512)
    asked = [rows.fetch(np.arange(len(rows)))["labels"] for rows in (packed, padded)]
    assert torch.equal(*(labels[labels != IGNORED] for labels in asked))


def test_a_text_shorter_than_a_row_is_padded(open_rows):
    batch = open_rows(max_seq_len=8192).fetch(np.array([0]))
    n_tokens = open_rows().report["tokens"]
    assert batch["labels"][0, n_tokens:].eq(IGNORED).all() and batch["labels"][0, 1:9].ne(IGNORED).all()
    assert batch["document_ids"][0, n_tokens] > batch["document_ids"][0, n_tokens - 1]


def test_held_out_documents_are_in_one_part_only(open_rows):
    parts = [open_rows("padded", 512, part=part, val_fraction=0.25) for part in ("train", "val")]
    assert [len(part) for part in parts] == [30, 10]
    both = torch.cat([part.fetch(np.arange(len(part)))["input_ids"] for part in parts])
    whole = open_rows("padded", 512)
    assert torch.equal(both, whole.fetch(np.arange(len(whole)))["input_ids"])


def test_the_cache_is_reused_until_the_content_changes(tokenizer, tmp_path, write, monkeypatch):
    built = []
    build = pretrain.build_token_cache
    monkeypatch.setattr(pretrain, "build_token_cache", lambda *args: (built.append(1), build(*args)))
    for name, rows in [("a.jsonl", ROWS), ("a.jsonl", ROWS), ("same_content.jsonl", ROWS), ("a.jsonl", ROWS[:-1])]:
        data = open_pretrain_data(write(name, rows), tokenizer, 16, "padded", tmp_path / "cache")
        assert len(data) == len(rows)
    assert len(built) == 2
    assert not list((tmp_path / "cache").glob(".*")), "a temporary folder was left behind"


def test_a_gzipped_file_reads_like_the_plain_one(tokenizer, tmp_path, write):
    plain = write("a.jsonl", ROWS)
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    a, b = (open_pretrain_data(path, tokenizer, 16, "packed", tmp_path / "cache") for path in (plain, packed))
    assert torch.equal(a.fetch(np.arange(len(a)))["input_ids"], b.fetch(np.arange(len(b)))["input_ids"])


@pytest.mark.parametrize(
    "lines, sentence",
    [
        ([*ROWS[:6], '{"text": "cut', *ROWS], "line 7: not valid JSON"),
        ([*ROWS[:2], {"words": "x"}], 'line 3: no "text" field'),
        ([{"text": 5}], 'line 1: no "text" field'),
        ([{"text": "  "}], "holds no text"),
        ([], "is empty"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_place(tokenizer, tmp_path, write, lines, sentence):
    path = write("bad.jsonl", lines)
    with pytest.raises(ValueError, match=sentence) as problem:
        open_pretrain_data(path, tokenizer, 16, "packed", tmp_path / "cache")
    assert str(path) in str(problem.value)
    assert not list((tmp_path / "cache").glob("tokens_*"))


def test_a_missing_file_is_refused(tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match="another --data_path"):
        open_pretrain_data(tmp_path / "none.jsonl", tokenizer, 16, "packed", tmp_path)


def test_an_epoch_is_a_permutation_fixed_by_seed_and_epoch():
    order = batch_rows(50, 7, seed=3, epoch=1)
    assert order.shape == (7, 7) and len(set(order.flatten())) == 49
    assert (order == batch_rows(50, 7, seed=3, epoch=1)).all()
    assert (order != batch_rows(50, 7, seed=3, epoch=2)).any() and (order != batch_rows(50, 7, seed=4, epoch=1)).any()


def test_resuming_anywhere_gives_the_batches_that_were_left(open_rows):
    loader = BatchLoader(open_rows(), batch_size=4, seed=0)
    whole = [batch["input_ids"] for batch in islice(loader.iterate(0), 2 * len(loader) + 3)]
    for start in (1, len(loader) - 1, len(loader), 2 * len(loader)):
        rest = [batch["input_ids"] for batch in islice(loader.iterate(start), len(whole) - start)]
        assert all(map(torch.equal, rest, whole[start:]))


def test_two_processes_share_the_rows_of_one(open_rows):
    one = BatchLoader(open_rows(), batch_size=6, seed=0)
    two = [BatchLoader(open_rows(), batch_size=3, seed=0, rank=rank, world_size=2) for rank in (0, 1)]
    assert len(one) == len(two[0])
    for whole, *halves in islice(zip(one.iterate(0), *(loader.iterate(0) for loader in two), strict=True), 9):
        assert torch.equal(whole["input_ids"], torch.cat([half["input_ids"] for half in halves]))


def test_entries_are_documents_of_which_nothing_is_learnt(tokenizer):
    token_NL = np.array([[7, 8, 9], [10, 0, 0], [11, 12, 0]] * 5, dtype=np.int16)
    rows = open_entries(token_NL, tokenizer, max_seq_len=8)
    batch = rows.fetch(np.arange(len(rows)))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    stream = [bos, 7, 8, 9, eos, bos, 10, eos, bos, 11, 12, eos] * 5
    assert batch["input_ids"].flatten().tolist() == stream[: len(rows) * 8] and len(rows) == 60 // 8
    assert (batch["labels"] == IGNORED).all()
    assert batch["document_ids"][0].tolist() == [0] * 5 + [1] * 3


def test_rows_of_another_dataset_follow_those_of_each_batch(open_rows, tokenizer):
    entries = open_entries(np.arange(3, 35, dtype=np.int16).reshape(-1, 2), tokenizer, max_seq_len=16)
    alone = BatchLoader(open_rows(), batch_size=4, seed=0)
    loader = BatchLoader(open_rows(), batch_size=4, seed=0, beside=(entries, 3))
    both = list(islice(loader.iterate(0), 9))
    for batch, text in zip(both, alone.iterate(0), strict=False):
        assert batch["labels"].shape == (7, 16) and torch.equal(batch["input_ids"][:4], text["input_ids"])
        assert (batch["labels"][4:] == IGNORED).all()
    assert len({batch["input_ids"][4:].numpy().tobytes() for batch in both}) > 1
    for start in (1, 5):
        rest = list(islice(loader.iterate(start), 9 - start))
        assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(rest, both[start:], strict=True))


def test_a_problem_in_the_background_reaches_the_consumer(open_rows, monkeypatch):
    rows = open_rows()
    monkeypatch.setattr(rows, "fetch", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(BatchLoader(rows, batch_size=2, seed=0).iterate(0))


@pytest.mark.parametrize("mode", ["packed", "padded"])
def test_of_a_question_only_the_answer_is_learnt(mode, write, tokenizer, tmp_path):
    lines = [
        {"prompt": "Document 3 tells of the", "answer": " year 1803."},
        {"text": "Document 4 tells of the year 1804."},
    ]
    rows = open_pretrain_data(write("q.jsonl", lines), tokenizer, 64, mode, tmp_path / "cache")
    batch = rows.fetch(np.arange(len(rows)))
    learnt = batch["labels"][batch["labels"] != IGNORED].tolist()
    answer = tokenizer(" year 1803.", add_special_tokens=False).input_ids
    text = tokenizer("Document 4 tells of the year 1804.", add_special_tokens=False).input_ids
    assert learnt == [*answer, tokenizer.eos_token_id, *text, tokenizer.eos_token_id]


def test_a_question_without_answer_is_refused(write, tokenizer, tmp_path):
    path = write("q.jsonl", [{"text": "Words."}, {"prompt": "Who?"}])
    with pytest.raises(ValueError, match="line 2"):
        open_pretrain_data(path, tokenizer, 64, "packed", tmp_path / "cache")


@pytest.mark.fault("text in another form")
def test_a_text_that_has_kept_its_prompt_is_a_text(write, tmp_path):
    path = write("t.jsonl", [{"prompt": "Write a tale.", "text": "Once.", "format": "story"}, {"text": "Twice."}])
    assert [(d.text, d.given) for d in read_documents(path)] == [("Once.", 0), ("Twice.", 0)]
    asked = write("q.jsonl", [{"prompt": "Who?", "answer": " I.", "text": "ignored"}])
    assert [(d.text, d.given) for d in read_documents(asked)] == [("Who? I.", 4)]
    wrong = write("w.jsonl", [{"instruction": "Write.", "output": "Once."}])
    with pytest.raises(ValueError, match="line 1: no \"text\" field .*: it has 'instruction', 'output'"):
        list(read_documents(wrong))


@pytest.mark.fault("text in another form")
@pytest.mark.parametrize("mode", ["packed", "padded"])
@pytest.mark.parametrize("T", [4, 7, 16, 33])
def test_rows_in_which_nothing_is_predicted_are_left_out(write, tokenizer, tmp_path, mode, T):
    rng = np.random.default_rng(T)
    lines = [
        {"prompt": "year " * int(rng.integers(1, 60)), "answer": " of" * int(rng.integers(1, 4))} for _ in range(30)
    ]
    path = write("q.jsonl", [*lines, {"text": "Document 1 tells."}])
    every = open_pretrain_data(path, tokenizer, T, mode, tmp_path / "cache")
    labelled = open_pretrain_data(path, tokenizer, T, mode, tmp_path / "cache", labelled_only=True)
    batch = every.fetch(np.arange(len(every)))
    has_target = (batch["labels"][:, 1:] != IGNORED).any(dim=1)
    assert 0 < len(labelled) == int(has_target.sum()) < len(every)
    kept = labelled.fetch(np.arange(len(labelled)))
    for name, value in batch.items():
        assert torch.equal(kept[name], value[has_target])
    assert labelled.report["rows_without_labels"] == int((~has_target).sum())


@pytest.mark.fault("text in another form")
def test_prompts_that_fill_all_rows_are_refused_with_their_file(write, tokenizer, tmp_path):
    path = write("q.jsonl", [{"prompt": "year of " * 40, "answer": " 1801"}] * 3)
    with pytest.raises(ValueError, match="q.jsonl: every prompt fills a row of --max_seq_len 8 tokens.*give a larger"):
        open_pretrain_data(path, tokenizer, 8, "padded", tmp_path / "cache", labelled_only=True)
