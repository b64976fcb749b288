"""Labels and their grids, by hand."""

import pytest
import torch
import torch.nn.functional as F

from losses.base import class_ids
from losses.labels import Grid, Labels, majority_labels, pool_valid
from utils.names import OUTSIDE, VOID


def labels(*rows):
    """One image."""
    return Labels(torch.tensor([rows], dtype=torch.uint8))


def test_a_cell_takes_the_label_at_its_centre():
    ids = Labels(torch.arange(30, dtype=torch.uint8).view(1, 5, 6))
    # 5 rows to 2: floor(1.25), floor(3.75); 6 columns to 2: 1, 4.
    assert ids.at(3).ids.tolist() == [[[7, 10], [19, 22]]]
    assert ids.at(1).ids is ids.ids


def test_grids_round_up_also_at_fractional_strides():
    ids = Labels(torch.zeros(2, 33, 64, dtype=torch.uint8))
    assert ids.size(8) == (5, 8)
    assert ids.size(8 / 0.75) == (4, 6)  # a teacher that sees 24.75 x 48 pixels: ceil(33 / 10.67), and 6 exactly
    assert ids.at(8 / 0.75).ids.shape == (2, 4, 6)
    assert Labels(torch.zeros(1, 90, 120, dtype=torch.uint8)).size(4 / 1.5) == (34, 45)


def test_three_kinds_of_pixels_and_their_counts():
    ids = torch.tensor([[[0, VOID], [OUTSIDE, 253]], [[OUTSIDE, OUTSIDE], [OUTSIDE, VOID]]], dtype=torch.uint8)
    grid = Labels(ids).at(1)
    assert grid.labelled.int().tolist() == [[[1, 0], [0, 1]], [[0, 0], [0, 0]]]
    assert grid.inside.int().tolist() == [[[1, 1], [0, 1]], [[0, 0], [0, 1]]]
    assert [grid.count(pixels).item() for pixels in ("labelled", "inside")] == [2, 4]
    assert [grid.count_images(pixels).item() for pixels in ("labelled", "inside")] == [1, 2]
    assert torch.equal(grid.mask("labelled"), grid.labelled)
    assert torch.equal(grid.mask("inside"), grid.inside)
    assert all(
        x.dtype == torch.float32 for x in (grid.count("labelled"), grid.count("inside"), grid.count_images("inside"))
    )


def test_class_weights_count_labelled_pixels_only():
    grid = labels([0, 1, 2, 1, VOID, OUTSIDE]).at(1)
    weights = grid.weights(torch.tensor([0.5, 2.0, 3.0]))
    assert weights.tolist() == [[[0.5, 2.0, 3.0, 2.0, 0.0, 0.0]]]
    assert grid.weights() is grid.labelled


def test_each_grid_is_computed_once(monkeypatch):
    calls = []
    monkeypatch.setattr(
        F, "unfold", lambda *args, unfold=F.unfold, **options: calls.append(1) or unfold(*args, **options)
    )
    ids = Labels(torch.zeros(1, 9, 9, dtype=torch.uint8))
    assert ids.at(2) is ids.at(2)
    assert ids.at(2).labelled is ids.at(2).labelled
    assert ids.at(2).count("inside") is ids.at(2).count("inside")
    assert ids.at(2) is not ids.at(3)
    assert ids.at(5) is ids.at(6)  # one grid of 2 x 2 cells
    assert ids.patches(2, 2) is ids.patches(2, 2)
    assert len(calls) == 1


def test_patches_are_padded_and_take_the_majority_of_their_labelled_cells():
    patches = labels([1, 1, 2], [VOID, 0, VOID], [2, 2, OUTSIDE]).patches(1, 2)
    assert patches.ids.tolist() == [
        [[1, 1, VOID, 0], [2, OUTSIDE, VOID, OUTSIDE], [2, 2, OUTSIDE, OUTSIDE], [OUTSIDE, OUTSIDE, OUTSIDE, OUTSIDE]]
    ]
    assert patches.labelled.any(-1).tolist() == [[True, True, True, False]]
    assert majority_labels(patches, num_classes=3).tolist() == [[1, 2, 2, VOID]]
    assert majority_labels(Grid(torch.full((1, 1, 4), VOID, dtype=torch.uint8)), 3).tolist() == [[VOID]]


def test_a_pooled_cell_is_valid_if_any_of_its_cells_is():
    valid = torch.tensor([[[1, 0, 0], [0, 0, 0], [0, 0, 1]]], dtype=torch.bool)
    assert pool_valid(valid, 2).tolist() == [[[True, False], [False, True]]]


def test_class_ids_by_hand():
    grid = labels([2, VOID, OUTSIDE, VOID]).at(1)
    logits = torch.tensor([[0.0, 0.0, 9.0, 5.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])[None, :, None]
    assert class_ids(grid, None, "labelled").tolist() == [[[2, VOID, VOID, VOID]]]
    assert class_ids(grid, logits, "inside").tolist() == [[[2, 1, VOID, 0]]]
    coarse = torch.tensor([[0.0, 5.0], [4.0, 0.0], [0.0, 0.0]])[None, :, None]  # second column: 5 / 4 against 3
    assert class_ids(grid, coarse, "inside").tolist() == [[[2, 1, VOID, 0]]]
    assert class_ids(grid, logits, "inside").dtype == torch.uint8


@pytest.mark.parametrize("ids", [torch.zeros(4, 4, dtype=torch.uint8), torch.zeros(1, 4, 4, dtype=torch.int64)])
def test_other_shapes_and_types_are_refused(ids):
    with pytest.raises(ValueError, match="expected B x H x W uint8"):
        Labels(ids)
