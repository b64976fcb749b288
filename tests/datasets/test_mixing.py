"""Mixing pastes a part of the partner, with its labels, as a function of seed and position."""

import pytest
import torch

from datasets.mixing import Mixing

POSITIONS = torch.tensor([0, 1, 2, 3, -1, -2])
OUTSIDE, VOID = 254, 255


@pytest.fixture
def batch():
    """Six images that show their number in every pixel; the left half of an image has class 0, the right its number."""
    numbers = torch.arange(6, dtype=torch.uint8)[:, None, None]
    ids = numbers.expand(6, 20, 30).clone()
    ids[:, :, :15] = 0
    ids[4:] = VOID
    return numbers[:, None].expand(6, 3, 20, 30).clone(), ids


def never(images):
    raise AssertionError("the teacher was asked")


def test_cutmix_pastes_one_rectangle_of_the_partner_with_its_labels(batch):
    images, ids = batch
    mixed, labels = Mixing("cutmix", 1.0, "both", seed=3)(images, ids, POSITIONS, never)
    for row, partner in enumerate((1, 0, 3, 2, 5, 4)):
        pasted = mixed[row, 0] == partner
        assert torch.equal(mixed[row], images[partner].where(pasted, images[row]))
        assert torch.equal(labels[row], ids[partner].where(pasted, ids[row]))
        rows, columns = pasted.any(1).sum().item(), pasted.any(0).sum().item()
        assert rows * columns == pasted.sum()  # a rectangle
        assert 0.08 <= pasted.float().mean() <= 0.55  # its share is drawn from 0.1..0.5; sides are rounded


def test_the_region_depends_on_the_position_and_not_on_the_batch(batch):
    images, ids = batch
    mixing = Mixing("cutmix", 0.6, "both", seed=3)
    mixed, labels = mixing(images, ids, POSITIONS, never)
    for rows in ([0, 1], [2, 3], [4, 5], [2, 3, 4, 5]):
        one = mixing(images[rows], ids[rows], POSITIONS[rows], never)
        assert torch.equal(one[0], mixed[rows])
        assert torch.equal(one[1], labels[rows])
    assert not torch.equal(Mixing("cutmix", 0.6, "both", seed=4)(images, ids, POSITIONS, never)[0], mixed)


@pytest.mark.parametrize(("domain", "changed"), [("labelled", {0, 1, 2, 3}), ("unlabelled", {4, 5})])
def test_only_the_images_of_the_domain_are_mixed(batch, domain, changed):
    images, ids = batch
    mixed, _ = Mixing("cutmix", 1.0, domain, seed=0)(images, ids, POSITIONS, never)
    assert {row for row in range(6) if not torch.equal(mixed[row], images[row])} == changed


def test_the_share_of_mixed_images_is_the_probability():
    images, ids = torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8)
    images[1] = 1
    mixing = Mixing("cutmix", 0.25, "labelled", seed=0)
    count = sum((mixing(images, ids, torch.tensor([2 * p, 2 * p + 1]), never)[0][0] == 1).any() for p in range(400))
    assert 70 <= count <= 130  # 100 expected, standard deviation 8.7


def test_classmix_pastes_all_pixels_of_half_of_the_partners_classes(batch):
    """Image 3 has classes 0 and 3: one of them comes from it. The teacher says what an unlabelled image holds."""
    images, ids = batch
    asked = []

    def teacher(given):
        asked.append(given)
        classes = torch.zeros(2, 20, 30, dtype=torch.int64)
        classes[:, :5], classes[:, 5:10], classes[:, 10:] = 7, 8, 9
        return classes

    mixed, labels = Mixing("classmix", 1.0, "both", seed=1)(images, ids, POSITIONS, teacher)
    pasted = mixed[2, 0] == 3
    assert torch.equal(pasted, ids[3] == 0) or torch.equal(pasted, ids[3] == 3)
    assert torch.equal(labels[2], ids[3].where(pasted, ids[2]))
    assert torch.equal(asked[0], images[4:])
    taken = (mixed[4, 0] == 5)[:, 0]  # of three bands of rows two, each whole
    assert sorted(band.float().mean().item() for band in (taken[:5], taken[5:10], taken[10:])) == [0, 1, 1]
    assert (labels[4:] == VOID).all()


def test_classmix_never_pastes_padding_or_void(batch):
    images, ids = batch
    ids[1], ids[3] = OUTSIDE, VOID
    mixed, _ = Mixing("classmix", 1.0, "labelled", seed=1)(images, ids, POSITIONS, never)
    assert torch.equal(mixed[0], images[0])
    assert torch.equal(mixed[2], images[2])
