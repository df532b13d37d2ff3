"""Files and folders that take their place whole."""

import os

import pytest
import torch

from common.files import atomic
from dataset.cache import cached_order, content_key
from dataset.pretrain import open_token_cache
from dataset.tokenizer import load_tokenizer


def test_of_two_processes_that_make_the_same_folder_the_first_wins(tmp_path):
    place = tmp_path / "tokens"
    with atomic(place) as late:
        late.mkdir()
        (late / "made").write_text("second")
        place.mkdir()  # the other process gets there before this one has finished
        (place / "made").write_text("first")
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]
    assert (place / "made").read_text() == "first"


def test_a_file_in_the_place_of_a_folder_is_no_folder_of_another_process(tmp_path):
    (tmp_path / "tokens").write_text("a file")
    with pytest.raises(NotADirectoryError), atomic(tmp_path / "tokens") as temporary:
        temporary.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]


def test_an_error_leaves_what_stood_there(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(RuntimeError), atomic(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("by_token", [False, True])
def test_a_cached_order_of_another_bank_is_refused(by_token, tmp_path):
    path, tokens = tmp_path / "order.npz", torch.randint(0, 9, (16, 3))
    more = (torch.randperm(16),) if by_token else ()
    order = cached_order(path, (tokens, *more), lambda: torch.randperm(16))
    assert torch.equal(cached_order(path, (tokens, *more), lambda: torch.randperm(16)), order)
    with pytest.raises(ValueError, match="orders another bank"):
        cached_order(path, (tokens + 1, *more), lambda: order)
    with pytest.raises(ValueError, match="or by other words"):
        cached_order(path, (tokens,) if by_token else (tokens, torch.arange(16)), lambda: order)


def test_a_file_of_the_same_size_and_time_is_another_file(tmp_path):
    path, keys = tmp_path / "file", set()
    for text in ("1869", "1870"):  # as two archives that were made reproducibly hold it
        path.write_text(text)
        os.utime(path, (0, 0))
        keys.add(content_key(path, tmp_path / "cache"))
    assert len(keys) == 2


def test_texts_end_with_the_end_token_of_the_tokenizer_whatever_was_cached_before(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "One."}\n')
    tokenizer = load_tokenizer("dataset/tokenizer")
    for name in ("<|im_end|>", "<|endoftext|>"):
        tokenizer.eos_token = name
        cache = open_token_cache(tmp_path / "t.jsonl", tokenizer, tmp_path / "cache")
        assert cache.token_N[-1] == tokenizer.convert_tokens_to_ids(name)


def test_a_damaged_order_is_named(tmp_path):
    cached_order(tmp_path / "o.npz", (torch.ones(2),), lambda: torch.arange(2))
    content = (tmp_path / "o.npz").read_bytes()
    for broken in (content[:-9], content[:20], b"", b"no archive"):
        (tmp_path / "o.npz").write_bytes(broken)
        with pytest.raises(ValueError, match="o.npz is damaged: delete it, and it is made again"):
            cached_order(tmp_path / "o.npz", (torch.ones(2),), lambda: torch.arange(2))
