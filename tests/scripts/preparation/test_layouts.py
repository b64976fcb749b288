from collections import Counter

import pytest

from scripts.preparation.layouts import segnet_split


def real_frames() -> list[str]:
    """The names of the 701 labelled frames of CamVid."""
    # 0016E5 is labelled once a second but for a gap and one frame that is late.
    seconds = [n for n in range(390, 8641, 30) if n <= 2400 or 4350 <= n <= 7920 or n >= 8190]
    names = [f"0001TP_{n:06d}" for n in range(6690, 10381, 30)]
    names += [f"0006R0_f{n:05d}" for n in range(930, 3931, 30)]
    names += [f"0016E5_{901 if n == 900 else n:05d}" for n in seconds]
    names += [f"0016E5_{n:05d}" for n in range(7959, 8160, 2)]
    return names + [f"Seq05VD_f{n:05d}" for n in range(0, 5101, 30)]


def test_segnets_split_has_its_published_counts():
    frames = real_frames()
    assert len(frames) == 701
    assert Counter(map(segnet_split, frames)) == {"train": 367, "val": 101, "test": 233}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("0001TP_006690", "train"),
        ("0001TP_008520", "train"),
        ("0001TP_008550", "test"),
        ("0001TP_010380", "test"),
        ("0006R0_f03930", "train"),
        ("0016E5_07920", "train"),
        ("0016E5_07959", "val"),
        ("0016E5_08159", "val"),
        ("0016E5_08190", "train"),
        ("Seq05VD_f00000", "test"),
        ("holiday_0001", None),
    ],
)
def test_segnets_split_at_its_borders(name, split):
    assert segnet_split(name) == split
