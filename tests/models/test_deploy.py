"""What is exported computes what the network and models.inference compute."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import build_model
from models.deploy import Deployable, RegionAverage
from models.inference import predict

RESNET = {"backbone": "test_resnet", "output_stride": 16, "width": 8}
NETWORKS = {
    "deeplabv3": {**RESNET, "head": "deeplabv3"},
    "pspnet": {**RESNET, "head": "pspnet"},
    "segformer": {"backbone": "mit_b0", "head": "segformer", "width": 16},
    "bgr": {**RESNET, "head": "deeplabv3", "normalization": "caffe_bgr"},
    "aux": {**RESNET, "head": "deeplabv3", "aux": True},
}


@pytest.fixture
def images():
    return torch.randint(0, 256, (2, 3, 50, 77), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def network(name="deeplabv3", classes=5):
    torch.manual_seed(0)
    return build_model(num_classes=classes, **NETWORKS[name])


@pytest.mark.parametrize("name", NETWORKS)
def test_classes_and_upsampled_logits_of_the_network(name, images):
    model = network(name)
    deployed = Deployable(model, ("logits", "classes"))
    with torch.inference_mode():
        logits, classes = deployed(images)
        expected = F.interpolate(model.eval()(images).logits, (50, 77), mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits, expected)
    assert logits.shape == (2, 5, 50, 77)
    assert logits.dtype == torch.float32
    assert classes.dtype == torch.uint8
    assert torch.equal(classes.long(), logits.argmax(1))


@pytest.mark.parametrize("scale", [0.5, 0.3, 1.5])
def test_a_scale_is_that_of_the_evaluation(images, scale):
    model = network()
    (classes,) = Deployable(model, scale=scale)(images)
    assert torch.equal(classes, predict(model, images, scales=(scale,)))


def test_only_the_outputs_asked_for_in_their_order(images):
    model = network()
    (classes,) = Deployable(model)(images)
    (logits,) = Deployable(model, ["logits"])(images)
    assert classes.shape == (2, 50, 77)
    assert logits.shape == (2, 5, 50, 77)


def test_the_network_itself_is_left_alone(images):
    model = network("pspnet").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Deployable(model, half=True)(images)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert sum(isinstance(module, nn.AdaptiveAvgPool2d) for module in model.modules()) == 3
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("name", ["deeplabv3", "pspnet", "segformer"])
def test_half_precision_inside_alone(name, images):
    model = network(name)
    deployed = Deployable(model, ("classes", "logits"), half=True)
    weights = [parameter for parameter in deployed.parameters() if parameter.is_floating_point()]
    assert {parameter.dtype for parameter in weights} == {torch.float16}
    with torch.inference_mode():
        classes, logits = deployed(images)
        expected = Deployable(model, ("logits",))(images)[0]
    assert logits.dtype == torch.float32
    assert classes.dtype == torch.uint8
    spread = expected.std()
    assert 0 < (logits - expected).abs().max() < 0.05 * spread  # float16 keeps three digits


@pytest.mark.parametrize("bins", [1, 2, 3, 6, (2, 5)])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (6, 12), (7, 13), (45, 60)])
def test_region_average_is_adaptive_pooling(bins, size):
    maps = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(RegionAverage(bins)(maps), F.adaptive_avg_pool2d(maps, bins))


def test_region_average_by_hand():
    """Five positions in two regions: 0..2 and 2..4 overlap in the middle one."""
    maps = torch.tensor([[[[1.0, 2.0, 3.0, 4.0, 8.0]]]])
    assert RegionAverage((1, 2))(maps).tolist() == [[[[2.0, 5.0]]]]


@pytest.mark.parametrize("outputs", [(), ("labels",), ("classes", "classes")])
def test_wrong_outputs_are_refused(outputs):
    with pytest.raises(ValueError, match="expected one or both of classes, logits, once each"):
        Deployable(network(), outputs)


def test_more_classes_than_uint8_holds_are_refused():
    with pytest.raises(ValueError, match="256 classes; expected at most 255"):
        Deployable(network(classes=256))
