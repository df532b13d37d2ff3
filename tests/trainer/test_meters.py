"""Readings of a run."""

import torch

from model.memory.bank import access_histogram


def test_entries_are_counted_by_powers_of_two_of_their_reads():
    uses_N = torch.tensor([0, 0, 1, 2, 3, 4, 7, 8])
    assert access_histogram(uses_N) == [2, 1, 2, 2, 1]
    assert access_histogram(torch.zeros(3)) == [3]
