import json

import pytest

from scripts.diagnose_method import main


def run(tmp_path, *arguments):
    main([*map(str, arguments), "--json", str(tmp_path / "found.json")])
    return json.loads((tmp_path / "found.json").read_text())["methods"]


@pytest.fixture
def methods(tmp_path):
    """Configs of a method alone, as configs/_base_/methods holds them."""
    learned = "type='hmkd', logit=0.0, target='learned', feature_pairs=[('stage3', 'stage3')]"
    files = {
        "logits": "distill = dict(type='hmkd', feature=0.0, logit=2.0)",
        "anchored": f"distill = dict({learned})",
        "released": f"distill = dict({learned}, anchor=None)",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    return [tmp_path / f"{name}.py" for name in files]


def test_only_what_its_own_modules_can_lower_falls(experiments, methods, tmp_path, capsys):
    found = run(tmp_path, experiments["hmkd"], "--steps", 40, "--methods", *methods)
    logits, anchored, released = (found[str(file)]["terms"] for file in methods)
    # Without modules nothing changes, on any features; and the logits of both networks teach the student.
    for kind in ("real", "random"):
        assert logits["logit"][f"{kind}_after"] == logits["logit"][f"{kind}_before"] > 0
    assert logits["logit"]["weight"] == 2
    assert logits["logit"]["grad_norm"] > 0

    assert released["feature"]["random_after"] < 0.8 * released["feature"]["random_before"]
    assert anchored["feature"]["random_after"] == pytest.approx(anchored["feature"]["random_before"], rel=0.2)
    assert anchored["anchor"]["grad_norm"] == 0 < anchored["feature"]["grad_norm"]

    lines = capsys.readouterr().out.splitlines()
    marked = [line.split()[:2] for line in lines if line.count("->") == 2 and " ! " in line]
    assert marked == [["released", "feature"]]

    # What learns drifts; the teacher's own map and its probabilities do not.
    for file, term in zip(methods, ("logit", "feature", "feature"), strict=True):
        first, *later = found[str(file)]["targets"][term].values()
        assert first["cka"] == pytest.approx(1)
        assert first["spatial_kept_before"] == 1
        assert all(step["cka"] < 0.99 for step in later)
    steps = {"project", "context", "refine", "warp"}
    assert found[str(methods[2])]["targets"]["feature"].keys() - {"stage3"} == steps
    assert found[str(methods[1])]["targets"]["feature"].keys() - {"stage3"} == steps | {"standardize"}


def test_options_apply_to_every_method_and_hidden_labels_leave_what_reads_all_pixels(experiments, methods, tmp_path):
    arguments = experiments["hmkd"], "--steps", 1, "--methods", methods[0], "--cfg-options"
    labelled, inside = (
        run(tmp_path, *arguments, f"distill.pixels={pixels}")[str(methods[0])]["terms"]["logit"]
        for pixels in ("labelled", "inside")
    )
    assert labelled["cosine_unlabelled"] is None
    assert -1 <= inside["cosine_unlabelled"] <= 1
    assert -1 <= labelled["cosine"] <= 1


def test_the_configs_own_method(experiments, tmp_path):
    found = run(tmp_path, experiments["hmkd"], "--steps", 1)
    terms = {"feature", "anchor", "relation", "relation_anchor", "logit", "stage_logit"}
    assert found.keys() == {experiments["hmkd"]}
    assert found[experiments["hmkd"]]["terms"].keys() == terms
    assert found[experiments["hmkd"]]["targets"].keys() == {"feature", "relation"}


def test_errors_name_the_file(experiments, tmp_path):
    with pytest.raises(SystemExit, match=r"error: .*alone\.py: distill is None: there is no method to diagnose"):
        main([experiments["alone"]])
    (tmp_path / "empty.py").write_text("student = dict()")
    with pytest.raises(SystemExit, match=r"error: .*empty\.py: has no distill = dict\(\.\.\.\); it has student"):
        main([experiments["hmkd"], "--methods", str(tmp_path / "empty.py")])
    (tmp_path / "typo.py").write_text("distill = dict(type='hmkd', featur=1.0)")
    with pytest.raises(SystemExit, match=r"typo\.py: .*distill\.featur: unknown key; did you mean 'feature'"):
        main([experiments["hmkd"], "--methods", str(tmp_path / "typo.py")])
