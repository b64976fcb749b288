"""What HMKD builds from its options, and what it refuses."""

import pytest
import torch

from losses import METHODS, build_method
from losses.hmkd import HMKD
from tests.losses.networks import LARGE, SMALL, random_labels, random_output


def test_default_terms_and_weights():
    assert HMKD(SMALL, LARGE).weights == {"feature": 1.0, "anchor": 1.0, "logit": 1.0}
    assert HMKD(SMALL, LARGE, feature=0.0, logit=2.0).weights == {"logit": 2.0}
    assert not list(HMKD(SMALL, LARGE, feature=0.0).parameters())


def test_one_temperature_for_both_logit_terms():
    method = HMKD(SMALL, LARGE, stage_logit=1.0, temperature=4.0)
    assert method.alignments["logit"].temperature == method.alignments["stage_logit"].align.temperature == 4.0


def test_several_pairs_share_the_weight():
    pairs = [("stage3", "stage3"), ["stage4", "head"]]
    method = HMKD(SMALL, LARGE, feature=3.0, logit=0.0, anchor_weight=0.5, feature_pairs=pairs)
    assert method.weights == {
        "feature/stage3-stage3": 1.5,
        "anchor/stage3-stage3": 0.25,
        "feature/stage4-head": 1.5,
        "anchor/stage4-head": 0.25,
    }
    terms = method(random_output(SMALL, 2, 6, 8), random_output(LARGE, 2, 6, 8), random_labels(2, 6, 8))
    assert list(terms) == list(method.weights)
    assert method.alignments["feature/stage4-head"].student == SMALL.taps["head"]
    assert method.alignments["feature/stage4-head"].teacher == LARGE.taps["stage4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"feature_pairs": [("stag3", "stage3")]},
            "unknown teacher tap in feature_pairs 'stag3'; did you mean 'stage3'",
        ),
        (
            {"relation": 1.0, "relation_pairs": [("stage1", "haed")]},
            "unknown student tap in relation_pairs 'haed'; did you mean 'head'",
        ),
        ({"feature_pairs": [("stage3", "stage3")] * 2}, "different"),
        ({"feature_pairs": ["stage3"]}, "feature_pairs is"),
        ({"feature_pairs": []}, "feature_pairs is"),
        ({"feature": 0.0, "logit": 0.0}, "one at least must be positive"),
        ({"feature": -1.0}, "none may be negative"),
        ({"anchor": "label"}, "unknown anchor 'label'; did you mean 'labels'"),
        ({"anchor_weight": 0.0}, "never learn"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"patch": 0}, "patch 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HMKD(SMALL, LARGE, **options)


def test_build_method():
    assert METHODS["hmkd"] is HMKD
    assert build_method("hmkd", SMALL, LARGE, feature=2.0).weights["feature"] == 2.0
    with pytest.raises(ValueError, match="unknown distillation method 'hmdk'; did you mean 'hmkd'"):
        build_method("hmdk", SMALL, LARGE)


@pytest.mark.parametrize("options", [{"target": "learned"}, {"target": "learned", "anchor": None}, {"target": "frame"}])
def test_the_feature_term_is_the_distance_from_the_last_step_of_its_target(options):
    torch.manual_seed(0)
    pairs = [("stage3", "stage3")]
    method = build_method("hmkd", SMALL, LARGE, logit=0.0, feature_pairs=pairs, pixels="labelled", **options)
    labels = random_labels(2, 6, 8)
    student, teacher = (random_output(network, 2, 6, 8) for network in (SMALL, LARGE))
    method.calibrate(lambda: [(teacher, labels)])
    *_, target = method.targets(student, teacher, labels)["feature"].values()
    align, maps = method.alignments["feature"], (student.taps["stage3"], teacher.taps["stage3"])
    distance = (align.sides(*maps, labels, "labelled")[0] - target).square().mean(1)[labels.at(2).labelled].mean()
    torch.testing.assert_close(method(student, teacher, labels)["feature"], distance)
