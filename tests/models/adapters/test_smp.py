"""Networks of segmentation_models_pytorch, by folder and by architecture."""

import sys

import pytest
import torch

from models import build_wrapped
from tests.models.adapters.test_wrapped import PLAIN, images

SMP = [
    *(("FPN", "mit_b0"), ("DeepLabV3Plus", "tu-mobilenetv3_small_050")),
    *((architecture, "resnet18") for architecture in ("Unet", "Segformer", "UPerNet", "Linknet")),
]


@pytest.mark.parametrize(("architecture", "encoder"), SMP)
def test_networks_of_smp_give_what_smp_computes(architecture, encoder, tmp_path):
    smp = pytest.importorskip("segmentation_models_pytorch", reason='needs pip install ".[smp]"')
    torch.manual_seed(0)
    original = getattr(smp, architecture)(encoder_name=encoder, encoder_weights=None, classes=5).eval()
    original.save_pretrained(tmp_path)
    model, report = build_wrapped(f"smp:{tmp_path}", normalization=PLAIN)
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(model(x).logits, original(x / 255), atol=1e-5, rtol=1e-4)
        stages = original.encoder(x / 255)[-4:]
        found = model(x).taps
    assert report.loaded == len(original.state_dict())
    for i, stage in enumerate((stage for stage in stages if stage.shape[1]), 1):
        torch.testing.assert_close(found[f"stage{i}"], stage)
    assert "head" in found
    assert model.spec.family == ("transformer" if encoder == "mit_b0" else "cnn")
    # The same from its architecture and a file.
    torch.save(original.state_dict(), tmp_path / "weights.pt")
    arguments = {"encoder_name": encoder}
    again, _ = build_wrapped(f"smp:{architecture}", str(tmp_path / "weights.pt"), arguments, normalization=PLAIN)
    assert torch.equal(again(x).logits, model(x).logits)


def test_a_missing_extra_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ValueError, match=r'segmentation_models_pytorch cannot be imported.*pip install "\.\[smp\]"'):
        build_wrapped("smp:Unet")
