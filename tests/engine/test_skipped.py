"""What is said and counted of skipped samples."""

import pytest

from engine.log import SkippedSamples


def test_each_sample_is_said_once_and_each_replacement_counted(capsys):
    skipped = SkippedSamples(total=5, active=True)
    skipped.note([{"skipped": ["a: empty\nb: cut off", ""]}, {"skipped": ["a: empty"]}])
    assert skipped.report() == 2  # of the four samples, whatever was tried for each
    assert capsys.readouterr().out.splitlines() == [
        "skipped (1 of 5 samples so far): a: empty",
        "skipped (2 of 5 samples so far): b: cut off",
    ]
    skipped.note([{"skipped": ["b: cut off", ""]}])
    assert (skipped.report(), skipped.report()) == (1, 0)
    assert capsys.readouterr().out == ""


def test_more_than_half_of_a_data_set_is_too_much():
    skipped = SkippedSamples(total=4, active=False)
    skipped.note([{"skipped": ["a: empty\nb: empty"]}])
    assert skipped.report() == 1
    skipped.note([{"skipped": ["c: empty"]}])
    with pytest.raises(ValueError, match="3 of the 4 training samples cannot be read, more than half.*c: empty"):
        skipped.report()
