import pytest
import torch
from torch import nn

from models import MappedModel, build_model
from models.base import ModelSpec, SegOutput, Tap


class Fixed(nn.Module):
    """A network of four classes that always gives these logits."""

    num_classes, tap_info = 4, {"head": Tap(2, 1)}
    spec = ModelSpec(tap_info, 4, "cnn")

    def forward(self, images):
        logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().view(1, 4, 1, 1).expand(len(images), 4, 2, 3)
        return SegOutput(logits, {"head": images}, None)


def test_probabilities_are_summed():
    """Probabilities .1 .2 .3 .4, of which the first and last become class 1 and the second class 0; .3 is left out."""
    model, images = MappedModel(Fixed(), (1, 0, None, 1), 2), torch.zeros(5, 3, 2, 3)
    output = model(images)
    assert output.logits.shape == (5, 2, 2, 3)
    torch.testing.assert_close(output.logits.exp()[0, :, 0, 0], torch.tensor([0.2, 0.5]))
    torch.testing.assert_close(output.logits.softmax(1)[0, :, 0, 0], torch.tensor([2 / 7, 5 / 7]))
    assert output.taps["head"] is images
    assert model.spec == ModelSpec({"head": Tap(2, 1)}, 2, "cnn")


def test_one_to_one_is_a_permutation():
    model = build_model("test_resnet", "deeplabv3", 3, output_stride=16, width=8).eval()
    images = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(MappedModel(model, (2, 0, 1), 3)(images).logits, model(images).logits[:, [1, 2, 0]])


@pytest.mark.parametrize(
    ("class_map", "message"),
    [
        ((0, 1, 1), "class_map has 3 entries; expected one for each of 4 classes"),
        ((0, 1, 1, 2), r"class_map has the entries \[2\]; expected None or 0\.\.1"),
        ((0, 0, None, 0), r"class_map maps no class of the network to the classes \[1\]"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(class_map, message):
    with pytest.raises(ValueError, match=message):
        MappedModel(Fixed(), class_map, 2)
