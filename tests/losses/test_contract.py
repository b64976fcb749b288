"""What must hold of every distillation method, over labelled pixels and over all pixels inside the image."""

import copy

import pytest
import torch

from losses import METHODS
from losses.functional import resize
from losses.labels import Labels
from models.base import SegOutput, Tap
from tests.losses.networks import (
    LARGE,
    MIT_B0,
    MIT_B4,
    RESNET18,
    RESNET101,
    SMALL,
    random_ids,
    random_labels,
    random_output,
    zero_labels,
)
from utils.names import OUTSIDE, VOID

# Small sizes, and every term on.
OPTIONS = {
    "self_training": {"threshold": 0.2},
    "afdcd": {"groups": 2, "patch": 2, "pool": 2},
    "cirkd": {"pixel_queue": 40, "region_queue": 5, "pixel_keys": 30, "region_keys": 12, "batch_cells": 24},
    "hmkd": {"relation": 1.0, "stage_logit": 1.0, "patch": 2},
    "hmkd_released": {"relation": 1.0, "stage_logit": 1.0, "patch": 2, "anchor": None},
    "hmkd_frame": {"target": "frame"},
}
VARIANTS = ("hmkd_released", "hmkd_frame")
# Options under which a method reads no logits of the teacher; methods that are not listed always read them.
FEATURES_ONLY = {
    "afdcd": {"kd": 0.0},
    "at": {},
    "cirkd": {"kd": 0.0},
    "cwd": {"logit": 0.0},
    "fitnet": {},
    "heteroakd": {"logit": 0.0},
    "hmkd": {"logit": 0.0, "stage_logit": 0.0},
    "hmkd_released": {"logit": 0.0, "stage_logit": 0.0},
    "hmkd_frame": {"logit": 0.0},
    "ifvd": {},
    "mgd": {},
    "skd": {"pixel": 0.0},
}
READS_CLASSES = {"cirkd", "heteroakd", "ifvd"}  # and so reads the teacher's logits where a pixel has no label
LEARNS_FROM_LABELS = {"anchor", "relation_anchor", "heteroakd_anchor"}
# What each term is a mean over, in one image of 6 x 8 pixels that all count: cells at stride 1 (48) or 2 (12), images
# (1), pooled cells (12), tokens of 2 x 2 cells (12), ordered pairs of the 4 regions (16).
ELEMENTS = {
    "afdcd_kd": 48, "afdcd_feature": 12, "afdcd_contrast": 4, "aicsd_relation": 1, "aicsd_pixel": 48, "at": 48,
    "cirkd_kd": 48, "cirkd_batch": 12, "cirkd_pixel": 48, "cirkd_region": 48, "cwd_feature": 1, "cwd_logit": 1,
    "dist_inter": 48, "dist_intra": 1, "dkd_target": 48, "dkd_nontarget": 48, "dtkd_dynamic": 48, "dtkd_kd": 48,
    "fitnet": 48, "heteroakd_feature": 12, "heteroakd_anchor": 12, "heteroakd_logit": 48, "feature": 12, "anchor": 12,
    "logit": 48, "relation": 12, "relation_anchor": 12, "stage_logit": 48, "ifvd": 48, "kd": 48, "mgd": 12,
    "ofa_stage": 48, "ofa_logit": 48, "self_training": 48, "skd_pixel": 48, "skd_pairwise": 16,
}  # fmt: skip

every_method = pytest.mark.parametrize("name", [*METHODS, *VARIANTS])
both_domains = pytest.mark.parametrize("pixels", ["labelled", "inside"])


def build(name, student=SMALL, teacher=LARGE, **options):
    """A method whose modules all do something from the start."""
    torch.manual_seed(0)
    kind = "hmkd" if name in VARIANTS else name
    method = METHODS[kind](student, teacher, **OPTIONS.get(name, {}) | options)
    method.calibrate(lambda: [(random_output(teacher, 2, 64, 64), zero_labels(2, 64, 64))])
    for parameter_name, parameter in method.named_parameters():
        if not parameter.any() and "norm" not in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    return method


def outputs(B=2, requires_grad=False, student=SMALL, teacher=LARGE, size=(6, 8)):
    torch.manual_seed(0)
    return [random_output(network, B, *size, requires_grad=requires_grad) for network in (student, teacher)]


def padded_ids(B=2):
    """Random labels with void in 6 x 8 pixels, of which the last two rows and columns are padding."""
    torch.manual_seed(0)
    ids = random_ids(B, 6, 8, void=0.4)
    ids[:, 4:], ids[:, :, 6:] = OUTSIDE, OUTSIDE
    return ids


def run(method, student, teacher, ids):
    """The terms from the method's present state and one seed; the state does not change."""
    method = copy.deepcopy(method)
    torch.manual_seed(1)
    return method(student, teacher, Labels(ids))


def leaves(output):
    return [output.logits, *output.taps.values()]


def part(output, i):
    return SegOutput(output.logits[i], {name: x[i] for name, x in output.taps.items()}, None)


def gradients(terms, tensors):
    return torch.autograd.grad(sum(terms.values()), tensors, allow_unused=True, materialize_grads=True)


def distillation(terms):
    return {name: value for name, value in terms.items() if name not in LEARNS_FROM_LABELS}


def overwrite(outputs, labels, mask, value):
    """Sets what both networks give in the cells of ``mask`` (Grid -> B h w bool)."""
    with torch.no_grad():
        for output in outputs:
            for x in leaves(output):
                cells = mask(labels.at(8 // x.shape[-1]))
                x[cells[:, None].expand_as(x)] = value


@every_method
def test_targets_follow_the_teacher_on_a_grid_of_the_student(name):
    method, labels = build(name), Labels(padded_ids())
    student, teacher = outputs()
    found, other = (
        copy.deepcopy(method).targets(student, each, labels) for each in (teacher, random_output(LARGE, 2, 6, 8))
    )
    assert found
    for term, steps in found.items():
        for step, x in steps.items():
            assert x.shape[0] == 2
            assert x.shape[-2:] in {(6, 8), (3, 4)}
            assert x.isfinite().all()
            assert not torch.equal(x, other[term][step])


@every_method
@both_domains
def test_terms_weights_and_counts_have_the_same_names(name, pixels):
    method = build(name, pixels=pixels)
    terms = method(*outputs(), Labels(padded_ids()))
    assert list(terms) == list(method.weights)
    assert set(method.counts(Labels(padded_ids()))) == set(terms)
    assert all(term.ndim == 0 and term.dtype == torch.float32 for term in terms.values())


@every_method
def test_counts_are_elements_of_the_domain(name):
    ids = torch.zeros(3, 6, 8, dtype=torch.uint8)
    ids[0], ids[1] = OUTSIDE, VOID  # so one image is labelled and two are inside
    for pixels, images in (("labelled", 1), ("inside", 2)):
        counts = build(name, pixels=pixels).counts(Labels(ids))
        assert {term: count.item() for term, count in counts.items()} == {
            term: ELEMENTS[term] * (1 if term in LEARNS_FROM_LABELS else images) for term in counts
        }
        assert all(count.dtype == torch.float32 for count in counts.values())


@every_method
@both_domains
def test_counts_make_split_batches_equal_the_whole_one(name, pixels):
    # In eval mode, where normalisation does not tie the samples of a batch together; without masks, which are drawn
    # for a batch, and without the term that compares the images of a batch.
    free = {"mgd": {"mask_ratio": 0.0}, "afdcd": {"mask_ratio": 0.0}, "cirkd": {"batch": 0.0}}
    method, (student, teacher), ids = (
        build(name, pixels=pixels, **free.get(name, {})).eval(),
        outputs(B=4),
        padded_ids(4),
    )
    ids[0, :4, :6], ids[1] = VOID, OUTSIDE
    whole, counts = method(student, teacher, Labels(ids)), method.counts(Labels(ids))
    sums = dict.fromkeys(whole, 0.0)
    for i in range(4):
        one = slice(i, i + 1)
        terms, share = method(part(student, one), part(teacher, one), Labels(ids[one])), method.counts(Labels(ids[one]))
        for term, value in terms.items():
            sums[term] += value * share[term] / counts[term]
    torch.testing.assert_close(sums, whole)


@every_method
@pytest.mark.parametrize(("pixels", "kind"), [("labelled", VOID), ("labelled", OUTSIDE), ("inside", OUTSIDE)])
def test_nothing_to_compare_is_zero_with_zero_gradient(name, pixels, kind):
    method, (student, teacher) = build(name, pixels=pixels), outputs(requires_grad=True)
    labels = Labels(torch.full((2, 6, 8), kind, dtype=torch.uint8))
    terms = method(student, teacher, labels)
    assert {term: value.item() for term, value in terms.items()} == dict.fromkeys(terms, 0.0)
    assert all(count.item() == 0 for count in method.counts(labels).values())
    assert not any(gradient.any() for gradient in gradients(terms, [*leaves(student), *method.parameters()]))


@every_method
@both_domains
def test_cells_outside_the_domain_change_neither_value_nor_gradient(name, pixels):
    method, both, ids = build(name, pixels=pixels), outputs(requires_grad=True), padded_ids()
    terms = run(method, *both, ids)
    before = gradients(terms, leaves(both[0]))
    overwrite(both, Labels(ids), lambda cells: ~cells.mask(pixels), torch.nan)
    again = run(method, *both, ids)
    assert again == terms
    after = gradients(again, leaves(both[0]))
    assert all(map(torch.equal, after, before))
    for gradient in after:
        cells = ~Labels(ids).at(8 // gradient.shape[-1]).mask(pixels)
        assert not gradient[cells[:, None].expand_as(gradient)].any()


@every_method
def test_cells_without_a_label_count_if_the_domain_is_the_inside(name):
    method, both, ids = build(name, pixels="inside"), outputs(), padded_ids()
    before = run(method, *both, ids)
    overwrite(both, Labels(ids), lambda cells: cells.inside & ~cells.labelled, 3.0)
    after = run(method, *both, ids)
    assert distillation(after)
    assert [term for term, value in distillation(after).items() if value == before[term]] == []


@every_method
def test_where_every_pixel_has_a_label_the_domains_are_one(name):
    both, ids = outputs(), padded_ids()
    ids[ids == VOID] = 1
    found = [run(build(name, pixels=pixels), *both, ids) for pixels in ("labelled", "inside")]
    assert found[0] == found[1]
    counts = [build(name, pixels=pixels).counts(Labels(ids)) for pixels in ("labelled", "inside")]
    assert counts[0] == counts[1]


@every_method
def test_a_missing_label_is_the_teachers_most_probable_class(name):
    options = {"heteroakd": {"pairs": [("head", "head")]}}.get(name, {})  # on the grid of the logits
    method, (student, teacher) = build(name, pixels="inside", **options), outputs()
    guess = teacher.logits.argmax(1).to(torch.uint8)
    with_labels, without = run(method, student, teacher, guess), run(method, student, teacher, guess * 0 + VOID)
    assert distillation(without) == distillation(with_labels)
    assert all(value == 0 for term, value in without.items() if term in LEARNS_FROM_LABELS)
    if name in READS_CLASSES | {"dkd", "ofa"}:
        others = run(method, student, teacher, guess.flip(2))
        assert distillation(others) != distillation(without)


@every_method
@pytest.mark.parametrize(("student", "teacher"), [(RESNET18, MIT_B4), (MIT_B0, RESNET101)], ids=["B4->R18", "R101->B0"])
def test_networks_of_other_grids_and_widths_and_no_gradient_into_the_teacher(name, student, teacher):
    method = build(name, student, teacher)
    s, t = outputs(requires_grad=True, student=student, teacher=teacher, size=(40, 56))
    terms = method(s, t, random_labels(2, 40, 56, num_classes=19))
    for term, value in terms.items():
        assert value > 0, term
        grads = torch.autograd.grad(value, leaves(s), retain_graph=True, allow_unused=True)
        assert any(grad is not None and grad.any() for grad in grads) == (term not in LEARNS_FROM_LABELS), term
    sum(terms.values()).backward()
    assert all(x.grad is None for x in leaves(t))
    assert all(parameter.grad is not None for parameter in method.parameters())  # DDP would wait for it


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_at_extreme_values(name, dtype):
    method, networks = build(name), []
    for output in outputs():
        taps = {tap: (1e4 * x).to(dtype) for tap, x in output.taps.items()}
        for x in taps.values():
            x[:, :, 0] = 0  # vectors without a direction
        networks.append(SegOutput((1e4 * output.logits.sign()).to(dtype), taps, None))
    tensors = [*(x.requires_grad_() for x in leaves(networks[0])), *method.parameters()]
    with torch.autocast("cpu", dtype=dtype):
        terms = run(method, *networks, padded_ids())
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())
    assert all(gradient.isfinite().all() for gradient in gradients(terms, tensors))


@pytest.mark.slow
@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_is_finite_at_the_size_of_real_crops(name, dtype):
    """Maps of standard deviation 30, as networks give: their squares, summed over channels, overflow float16."""
    method, networks = build(name, MIT_B0, RESNET18), outputs(1, student=MIT_B0, teacher=RESNET18, size=(512, 512))
    for i, output in enumerate(networks):
        halves = {tap: (30 * x).to(dtype) for tap, x in output.taps.items()}
        networks[i] = SegOutput((30 * output.logits).to(dtype), halves, None)
    tensors = [*(x.requires_grad_() for x in leaves(networks[0])), *method.parameters()]
    with torch.autocast("cpu", dtype=dtype):
        terms = method(*networks, random_labels(1, 512, 512, num_classes=19))
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())
    assert all(gradient.isfinite().all() for gradient in gradients(terms, tensors))


@every_method
def test_autocast_changes_no_value_but_that_of_convolutions_in_half_precision(name):
    method, both, ids = build(name), outputs(), padded_ids()
    expected = run(method, *both, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(method, *both, ids)
    rounded = {"hmkd": {"feature", "anchor"}, "hmkd_released": {"feature"}, "hmkd_frame": {"feature"}}.get(
        name, set()
    )  # tested in test_hmkd.py
    assert {term for term in found if found[term] != expected[term]} == rounded


@every_method
def test_a_teacher_without_logits_is_refused_by_name_or_accepted(name):
    teacher, (student_output, teacher_output) = LARGE._replace(num_classes=None), outputs()
    said = "hmkd" if name in VARIANTS else name.replace("_", "")
    if FEATURES_ONLY.get(name) != {}:
        with pytest.raises(ValueError, match=rf"(?i)^{said} compares logits, and the teacher gives none: \w+"):
            build(name, teacher=teacher)
        with pytest.raises(ValueError, match=rf"(?i)^{said} compares .* student has 3 classes and the teacher 7: map"):
            build(name, teacher=LARGE._replace(num_classes=7))
    if name in FEATURES_ONLY:
        method = build(name, teacher=teacher, **FEATURES_ONLY[name])
        terms = method(student_output, teacher_output._replace(logits=None), Labels(padded_ids()))
        assert terms.keys() == method.weights.keys()
        if name in READS_CLASSES:
            with pytest.raises(ValueError, match=rf"(?i)^{said} with pixels='inside' reads .* teacher gives none"):
                build(name, teacher=teacher, pixels="inside", **FEATURES_ONLY[name])
        else:
            build(name, teacher=teacher, pixels="inside", **FEATURES_ONLY[name])


@every_method
def test_a_domain_that_does_not_exist_is_refused(name):
    with pytest.raises(
        ValueError, match="unknown pixels 'labeled'; did you mean 'labelled'. choices: inside, labelled"
    ):
        build(name, pixels="labeled")


@every_method
def test_the_teachers_map_may_have_any_grid_and_the_students_only_the_declared_one(name):
    method, (student, teacher), ids = build(name), outputs(), padded_ids()
    coarse = [x[..., :-1, :-2] for x in leaves(teacher)]
    other = SegOutput(coarse[0], dict(zip(teacher.taps, coarse[1:], strict=True)), None)
    assert all(value.isfinite() for value in run(method, student, other, ids).values())
    wrong = SegOutput(student.logits[..., :-1], {tap: x[..., :-1] for tap, x in student.taps.items()}, None)
    with pytest.raises(
        ValueError, match=r"the student's (map|logits) is \(2, \d, \d, \d\); expected \(2, \d, \d, \d\)"
    ):
        run(method, wrong, teacher, ids)
    wrong = SegOutput(teacher.logits[:, :-1], {tap: x[:, :-1] for tap, x in teacher.taps.items()}, None)
    with pytest.raises(ValueError, match=r"the teacher's (map|logits) is \(2, \d+, \d, \d\); expected 2 x \d+ x h x w"):
        run(method, student, wrong, ids)


@every_method
@both_domains
def test_a_teacher_that_sees_the_images_resized_has_fractional_strides(name, pixels):
    taps = {tap: Tap(channels, stride / 0.75) for tap, (channels, stride) in LARGE.taps.items()}
    method, (student, teacher), ids = (
        build(name, teacher=LARGE._replace(taps=taps), pixels=pixels),
        outputs(),
        padded_ids(),
    )
    small = [resize(x, (5, 6)) for x in leaves(teacher)]  # ceil(4.5) x 6 at stride 1; others need not be as declared
    terms = run(method, student, SegOutput(small[0], dict(zip(taps, small[1:], strict=True)), None), ids)
    assert all(value.isfinite() for value in terms.values())
    assert method.counts(Labels(ids)).keys() == terms.keys()
