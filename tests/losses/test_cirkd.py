"""CIRKD: values by hand, what the memories hold, and what must hold of any method."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck

from losses.cirkd import CIRKD, ClassMemory, pool_factor, relation_divergence
from losses.labels import Labels, pool_valid
from models.base import SegOutput, Tap
from tests.losses.networks import LARGE, SMALL, random_ids, random_labels, random_output, spec, zero_labels

TERMS = ["cirkd_kd", "cirkd_batch", "cirkd_pixel", "cirkd_region"]
BRIEF = {"pixel_queue": 40, "region_queue": 5, "pixel_keys": 30, "region_keys": 12}
TINY = spec("cnn", (2, 2, 2, 2), (1, 1, 1, 1), Tap(2, 1), num_classes=2)
TAU = 1 / math.log(3)  # a similarity of 1 weighs three times one of 0
E1, E2 = (1.0, 0.0), (0.0, 1.0)


def small_case(B=2, requires_grad=False, **options):
    torch.manual_seed(0)
    method = CIRKD(SMALL, LARGE, **BRIEF | options)
    outputs = [random_output(network, B, 6, 8, requires_grad) for network in (SMALL, LARGE)]
    return method, *outputs, random_ids(B, 6, 8)


def strips(*images):
    """Images of one row, each a list of feature vectors -> an output whose 'head' tap they are."""
    features = torch.tensor(images).permute(0, 2, 1)[:, :, None]
    return SegOutput(torch.zeros(len(images), 2, *features.shape[-2:]), {"head": features}, None)


def part(output, index):
    return SegOutput(output.logits[index], {name: tap[index] for name, tap in output.taps.items()}, None)


def leaves(output):
    return [output.logits, output.taps["head"]]


# Values by hand


def test_relation_divergence_by_hand():
    student, teacher, keys = torch.tensor([E1, E2]), torch.tensor([E2, E2]), torch.tensor([E1, E2])
    # Row 1: KL((1/4, 3/4) || (3/4, 1/4)) = 1/4 log 1/3 + 3/4 log 3; row 2: equal.
    assert relation_divergence([student], [teacher], [keys], [keys], TAU).item() == pytest.approx(math.log(3) / 2)
    assert relation_divergence([student], [student], [keys], [keys], TAU).item() == 0
    assert relation_divergence([student], [teacher], [keys[:0]], [keys[:0]], TAU).item() == 0
    both, sets = [teacher, student], [keys[:0], keys, keys]
    assert relation_divergence(both, both[::-1], sets, sets, TAU).item() == pytest.approx(2 * math.log(3))


@pytest.mark.parametrize("elements", [1, 15, 10**6])
def test_relation_divergence_and_gradients_equal_the_plain_form(elements, monkeypatch):
    """However few rows are taken at a time; images are their own keys, as in the batch term."""
    monkeypatch.setattr("losses.cirkd.tile_elements", lambda x: elements)
    torch.manual_seed(0)
    lengths = (7, 0, 4)
    S = [torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in lengths]
    T = [torch.randn(n, 5, dtype=torch.float64) for n in lengths]

    def plain(S, T, K_s, K_t):
        pairs = ((i, j) for i in range(3) for j in range(len(K_s)) if len(K_s[j]))
        return sum(
            F.kl_div((S[i] @ K_s[j].T / TAU).log_softmax(1), (T[i] @ K_t[j].T / TAU).softmax(1), reduction="sum")
            for i, j in pairs
        )

    memory = [torch.randn(6, n, dtype=torch.float64) for n in (3, 5)]
    for K_s, K_t in ((S, T), (memory[:1], memory[1:])):
        found, expected = relation_divergence(S, T, K_s, K_t, TAU), plain(S, T, K_s, K_t)
        torch.testing.assert_close(found, expected)
        for pair in zip(torch.autograd.grad(3 * found, S), torch.autograd.grad(3 * expected, S), strict=True):
            torch.testing.assert_close(*pair)
    with torch.no_grad():
        torch.testing.assert_close(relation_divergence(S, T, S, T, TAU), plain(S, T, S, T))


def test_batch_term_by_hand():
    method = CIRKD(TINY, TINY, kd=0.0, pixel=0.0, region=0.0, tau=TAU)
    assert not list(method.parameters())
    labels = torch.zeros(2, 1, 2, dtype=torch.uint8)
    student, teacher = strips([E1, E2], [E1, E1]), strips([E1, E1], [E1, E1])
    # The teacher's rows are uniform. The student's over the first image's cells are (3/4, 1/4) or the reverse, at a
    # KL of (log 2/3 + log 2) / 2, but for the rows of [E1, E1] over itself and of [E1, E2] over it: uniform.
    assert method(student, teacher, Labels(labels))["cirkd_batch"].item() == pytest.approx(math.log(4 / 3) / 4)
    assert method(part(student, [0]), part(teacher, [0]), Labels(labels[:1]))["cirkd_batch"].item() == pytest.approx(
        math.log(4 / 3) / 2
    )
    void = labels.clone()
    void[1, 0, 1] = 255  # a row fewer, of the same value as the others
    assert method(student, teacher, Labels(void))["cirkd_batch"].item() == pytest.approx(math.log(4 / 3) / 4)
    void[1] = 255  # an image that is void is no image
    assert method(student, teacher, Labels(void))["cirkd_batch"].item() == pytest.approx(math.log(4 / 3) / 2)
    labels[0, 0, 1] = 255  # one key: nothing to compare
    assert method(student, teacher, Labels(labels))["cirkd_batch"].item() == 0


@pytest.mark.parametrize("term", ["pixel", "region"])
def test_memory_terms_by_hand(term):
    weights = {"kd": 0.0, "batch": 0.0, "pixel": 0.0, "region": 0.0, term: 1.0}
    method = CIRKD(TINY, TINY, **weights, tau=TAU, **BRIEF).eval()
    method.project = nn.Identity()
    labels = torch.zeros(1, 1, 2, dtype=torch.uint8)
    student, teacher = strips([E1, E2]), strips([E2, E2])
    assert method(student, teacher, Labels(labels))[f"cirkd_{term}"].item() == 0  # nothing in memory
    memory = method.memories[f"cirkd_{term}"]
    memory.write(torch.tensor([[[E1], [E2]]]), torch.ones(1, 2, 1, dtype=torch.bool))
    # However often each key is drawn, it is as in test_relation_divergence_by_hand; a mean over two cells.
    assert method(student, teacher, Labels(labels))[f"cirkd_{term}"].item() == pytest.approx(math.log(3) / 4)
    labels[0, 0, 1] = 255
    assert method(student, teacher, Labels(labels))[f"cirkd_{term}"].item() == pytest.approx(math.log(3) / 2)


def test_kd_term_by_hand():
    method = CIRKD(TINY, TINY, batch=0.0, pixel=0.0, region=0.0, temperature=2.0)
    student, teacher = strips([E1, E1]), strips([E1, E1])
    teacher.logits[0, :, 0, 0] = torch.tensor([2 * math.log(3), 0.0])
    # T^2 KL((3/4, 1/4) || (1/2, 1/2)) in one of two cells.
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    terms = method(student, teacher, zero_labels(1, 1, 2))
    assert terms["cirkd_kd"].item() == pytest.approx(expected)


# The memories


def test_a_memory_is_a_ring_of_each_class():
    memory = ClassMemory(num_classes=3, size=3, channels=1, keys=11)

    def write(*classes):  # the vectors of each of two classes; class 2 has none
        length = max(map(len, classes))
        padded = [list(values) + [-1.0] * (length - len(values)) for values in (*classes, [])]
        memory.write(torch.tensor(padded)[None, :, :, None], torch.tensor(padded)[None] >= 0)

    write([1.0, 2.0], [9.0])
    assert memory.vectors[:2, :, 0].tolist() == [[1, 2, 0], [9, 0, 0]]
    write([3.0, 4.0], [])  # wraps around
    assert memory.vectors[:2, :, 0].tolist() == [[4, 2, 3], [9, 0, 0]]
    assert memory.written.tolist() == [4, 1, 0]
    drawn = memory.draw()[:, 0].tolist()
    assert len(drawn) == 8  # 11 // 3 + 1 of each class seen
    assert set(drawn[:4]) <= {2.0, 3.0, 4.0}
    assert drawn[4:] == [9.0] * 4
    write([5.0, 6.0, 7.0, 8.0], [])  # more than there is room for: the newest stay, in their turn
    assert memory.vectors[0, :, 0].tolist() == [7, 8, 6]
    torch.manual_seed(0)
    assert {value for _ in range(20) for value in memory.draw()[:4, 0].tolist()} == {6.0, 7.0, 8.0}


def test_memories_are_pure_in_class_and_leave_void_out():
    torch.manual_seed(0)
    method = CIRKD(TINY._replace(num_classes=3), TINY._replace(num_classes=3), **BRIEF)
    vectors = torch.tensor([E1, E2, (0.6, -0.8), (math.nan, math.nan)])  # of the classes, and of void
    for _ in range(3):
        labels = random_ids(2, 6, 8)
        features = 5 * vectors[labels.long().clamp(max=3)].permute(0, 3, 1, 2)
        output = random_output(TINY._replace(num_classes=3), 2, 6, 8)
        method(output, output._replace(taps={"head": features}), Labels(labels))
        for memory in method.memories.values():
            for k in range(3):
                filled = memory.vectors[k, : memory.written[k]]
                torch.testing.assert_close(filled, vectors[k].expand_as(filled))


def test_what_enters_a_memory_by_hand():
    method = CIRKD(TINY, TINY, **BRIEF)
    labels = torch.zeros(2, 5, 8, dtype=torch.uint8)
    labels[0, 0], labels[1, 0, :3], labels[1, 1:] = 1, 1, 255  # of class 1: 8 and 3 cells; of class 0: 32 and 5
    output = random_output(TINY, 2, 5, 8)
    teacher = random_output(TINY, 2, 5, 8)
    teacher.taps["head"][:] = torch.tensor([3.0, 0.0])[:, None, None]
    teacher.taps["head"][1, :, 0, 0] = torch.tensor([0.0, 0.1])
    method(output, teacher, Labels(labels))
    assert method.memories["cirkd_pixel"].written.tolist() == [16 + 5, 8 + 3]
    regions = method.memories["cirkd_region"]
    assert regions.written.tolist() == [2, 2]
    # The mean of (0, 1), (1, 0), (1, 0) in the second image: of unit vectors, then of unit length.
    second = torch.tensor([2.0, 1.0]) / math.sqrt(5)
    torch.testing.assert_close(regions.vectors[1, :2], torch.stack([torch.tensor(E1), second]))
    state = {name: value.clone() for name, value in method.state_dict().items()}
    method.eval()(output, teacher, Labels(labels))
    assert all(torch.equal(value, state[name]) for name, value in method.state_dict().items())


def test_a_resumed_method_goes_on_bit_for_bit():
    def steps(method, numbers):
        for step in numbers:
            torch.manual_seed(step)
            outputs = [random_output(network, 2, 6, 8) for network in (SMALL, LARGE)]
            terms = method(*outputs, random_labels(2, 6, 8))
        return terms

    method, resumed = CIRKD(SMALL, LARGE, **BRIEF), CIRKD(SMALL, LARGE, **BRIEF)
    steps(method, range(3))
    resumed.load_state_dict({name: value.clone() for name, value in method.state_dict().items()})
    assert steps(method, range(3, 6)) == steps(resumed, range(3, 6))
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in method.state_dict().items())


def _remember_on_one_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    method = CIRKD(SMALL, LARGE, **BRIEF)
    torch.manual_seed(rank)
    seen = torch.zeros(3)
    for _ in range(3):
        labels = random_ids(2, 6, 8, void=0.9)
        method(random_output(SMALL, 2, 6, 8), random_output(LARGE, 2, 6, 8), Labels(labels))
        seen += torch.stack([(labels == k).flatten(1).sum(1).clamp(max=16).sum() for k in range(3)])
    torch.save((seen, method.memories.state_dict()), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_hold_the_same_memories_of_all_their_images(tmp_path):
    mp.spawn(_remember_on_one_rank, (str(tmp_path),), nprocs=2)
    (seen0, first), (seen1, second) = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["cirkd_pixel.written"].tolist() == (seen0 + seen1).tolist()
    assert not torch.equal(seen0, seen1)


# What must hold of any pair, batch and precision


def test_nothing_is_lost_where_the_student_is_the_teacher():
    method, _, teacher, labels = small_case()
    method.project = nn.Identity()
    assert {name: term.item() for name, term in method(teacher, teacher, Labels(labels)).items()} == dict.fromkeys(
        TERMS, 0.0
    )


def test_gradients_are_those_of_finite_differences():
    method, student, teacher, labels = small_case(B=2, batch_cells=24)  # pooled 2 x 2
    method(student, teacher, Labels(labels))
    method.double().eval()
    teacher = SegOutput(teacher.logits.double(), {"head": teacher.taps["head"].double()}, None)
    corner = (slice(None), slice(None), slice(4), slice(3))

    def terms(logits, head):
        torch.manual_seed(0)
        output = SegOutput(student.logits.double(), {"head": student.taps["head"].double()}, None)
        output.logits[corner], output.taps["head"][corner] = logits, head
        return tuple(method(output, teacher, Labels(labels)).values())

    leaf = (x[corner].double().requires_grad_() for x in leaves(student))
    assert gradcheck(terms, tuple(leaf))


def test_counts_make_split_batches_equal_the_whole_one():
    method, student, teacher, labels = small_case(B=4)
    method(student, teacher, Labels(labels))
    method.eval()
    labels[0], labels[1, :3] = 255, 255

    def terms(index):
        torch.manual_seed(0)  # the same keys
        values = method(part(student, index), part(teacher, index), Labels(labels[index]))
        counts = method.counts(Labels(labels[index]))
        return {name: values[name] * counts[name] for name in TERMS if name != "cirkd_batch"}

    pieces = [terms([i]) for i in range(4)]
    torch.testing.assert_close({name: sum(p[name] for p in pieces) for name in pieces[0]}, terms([0, 1, 2, 3]))


def test_batch_term_of_two_equal_halves_is_that_of_one():
    method, student, teacher, labels = small_case(pixel=0.0, region=0.0)
    once = method(student, teacher, Labels(labels))
    twice = method(part(student, [0, 1, 0, 1]), part(teacher, [0, 1, 0, 1]), Labels(labels[[0, 1, 0, 1]]))
    torch.testing.assert_close(twice, once)


def test_large_grids_are_averaged():
    assert [pool_factor(size, 8192) for size in ((64, 128), (65, 128), (128, 256), (256, 512))] == [1, 2, 2, 4]
    valid = torch.tensor([[[1, 0, 0], [0, 0, 0], [0, 0, 1]]], dtype=torch.bool)
    assert pool_valid(valid, 2).tolist() == [[[True, False], [False, True]]]
    method = CIRKD(TINY, TINY, kd=0.0, pixel=0.0, region=0.0, batch_cells=2)
    labels = torch.zeros(1, 1, 4, dtype=torch.uint8)
    labels[0, 0, 3] = 255
    student, teacher = strips([E1, E2, (3.0, 4.0), (9.0, 9.0)]), strips([E2, (2.0, 0.0), E2, E1])
    pooled = method(student, teacher, Labels(labels))
    by_hand = method(strips([(0.5, 0.5), (3.0, 4.0)]), strips([(1.0, 0.5), E2]), Labels(labels[..., :2]))
    torch.testing.assert_close(pooled, by_hand)


def test_lengths_and_a_turn_of_the_feature_space_do_not_matter():
    method, student, teacher, labels = small_case(pixel=0.0, region=0.0)
    turn, _ = torch.linalg.qr(torch.randn(4, 4))
    head = torch.einsum("cd,bdhw->bchw", turn, student.taps["head"]) * (0.1 + torch.rand(2, 1, 6, 8))
    torch.testing.assert_close(
        method(student._replace(taps={"head": head}), teacher, Labels(labels)), method(student, teacher, Labels(labels))
    )


def test_names_of_classes_do_not_matter():
    permutation = torch.tensor([2, 0, 1])

    def terms(permute):
        options = {"pixel_queue": 1, "region_queue": 1}  # one key of each class: nothing is left to chance
        method, student, teacher, labels = small_case(**options)
        if permute:
            labels = torch.cat([permutation, torch.full((253,), 255)])[labels.long()].byte()
            student, teacher = (x._replace(logits=x.logits[:, permutation.argsort()]) for x in (student, teacher))
        torch.manual_seed(1)
        return method(student, teacher, Labels(labels))

    torch.testing.assert_close(terms(permute=True), terms(permute=False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pixel": -0.1}, "none may be negative"),
        ({"kd": 0.0, "batch": 0.0, "pixel": 0.0, "region": 0.0}, "one at least must be positive"),
        ({"tau": 0.0}, "tau 0.0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"region_queue": 0}, "region_queue is 0"),
        ({"batch_cells": 0}, "batch_cells is 0"),
        ({"pair": ("head", "stage9")}, "student tap in pair 'stage9'"),
        ({"pair": ("haed", "head")}, "teacher tap in pair 'haed'; did you mean 'head'"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CIRKD(SMALL, LARGE, **options)


def test_terms_of_weight_zero_are_not_built():
    method = CIRKD(SMALL, LARGE, region=0.0, **BRIEF)
    assert list(method.memories) == ["cirkd_pixel"]
    assert method.weights == {"cirkd_kd": 1.0, "cirkd_batch": 1.0, "cirkd_pixel": 0.1}
