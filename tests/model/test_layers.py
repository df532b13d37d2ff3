"""Rotary positions and masks, against their definitions."""

import pytest
import torch

from model.layers import rotary_table, rotate
from model.visibility import Visibility


def test_rotation_multiplies_each_pair_of_channels_by_a_unit_number():
    x_BTHE, position_T = torch.randn(2, 5, 3, 8), torch.arange(2, 7)
    angle_T1F = (position_T[:, None] * 100.0 ** -(torch.arange(4) / 4))[:, None]
    turned_BTHF = torch.complex(*x_BTHE.chunk(2, dim=-1)) * torch.polar(torch.ones_like(angle_T1F), angle_T1F)
    expected_BTHE = torch.cat([turned_BTHF.real, turned_BTHF.imag], dim=-1)
    torch.testing.assert_close(rotate(x_BTHE, *rotary_table(position_T, 8, 100.0)), expected_BTHE)


def test_one_position_needs_no_mask_unless_its_row_has_documents():
    here = torch.device("cpu")
    assert Visibility(5, 1, None, here).mask(4) is None
    assert Visibility(5, 2, None, here).mask(4).sum(dim=-1).tolist() == [[[24, 28]]]
    document_BX = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    visible_BX = Visibility(5, 1, document_BX, here).mask(4)[:, 0, 0]
    assert torch.equal(visible_BX, (document_BX == 1).repeat_interleave(4, dim=1))


@pytest.mark.parametrize("past, length", [(0, 7), (5, 2), (6, 1)])
@pytest.mark.parametrize("packed", [True, False])
def test_spans_show_what_the_mask_shows(past, length, packed):
    document_BX = torch.tensor([[0, 0, 1, 1, 1, 4, 3], [1] * 7, [0, 1, 2, 3, 4, 4, 4]]) if packed else None
    visible = Visibility(past, length, document_BX, torch.device("cpu"))
    position_X, position_T = torch.arange(past + length), torch.arange(past, past + length)
    _, first_BT, last_BT = visible.spans(3)
    assert first_BT.dtype == last_BT.dtype == torch.int32 and first_BT.shape == last_BT.shape == (3, length)
    seen_BTX = (position_X >= first_BT[..., None]) & (position_X <= position_T[:, None])
    assert torch.equal(seen_BTX, visible.mask(2, fused=False)[:, 0, :, ::2].expand(3, -1, -1))
    if packed:
        for row in range(3):
            same = document_BX[row][None, :] == document_BX[row, past:, None]
            assert torch.equal(last_BT[row], (same * position_X).amax(dim=-1).int())
