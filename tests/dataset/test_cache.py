"""Files and folders that take their place whole."""

import pytest
import torch

from common.files import atomic
from dataset.cache import cached_order


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
