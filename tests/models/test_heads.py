from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from models import build_model, count_parameters
from models.base import Tap
from models.heads.deeplabv3 import DeepLabV3Head
from models.heads.fpn import STAGES, FPNHead
from models.heads.layers import GlobalContext, PooledBatchNorm2d
from models.heads.linear import LinearHead
from models.heads.pspnet import PSPHead
from models.heads.segformer import MMSegSegFormerHead, SegFormerHead
from scripts.benchmarks.published import concatenated
from tests.models.oracles import deeplabv3_as_torchvision, randomize, segformer_as_hugging_face

TAPS = {"stage1": Tap(8, 4), "stage2": Tap(12, 8), "stage3": Tap(16, 16), "stage4": Tap(20, 32)}


def random_stages(batch=2, grid=16):
    return {
        stage: torch.randn(batch, channels, grid * 4 // stride, grid * 4 // stride)
        for stage, (channels, stride) in TAPS.items()
    }


def test_deeplabv3_logits_equal_torchvision():
    model = randomize(build_model("resnet50", "deeplabv3", 5, aux=True, dropout=0.0))
    oracle = torchvision.models.segmentation.deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=5, aux_loss=True
    )
    oracle.load_state_dict(deeplabv3_as_torchvision(model.state_dict()))
    images = torch.randint(0, 256, (1, 3, 65, 97), dtype=torch.uint8)
    stages = {}
    oracle.eval(), model.eval()
    oracle.classifier.register_forward_hook(lambda module, inputs, output: stages.update(logits=output))
    oracle.aux_classifier.register_forward_hook(lambda module, inputs, output: stages.update(aux=output))
    with torch.no_grad():
        oracle(model.normalize(images))
        found = model(images)
        aux = model.aux_head(found.taps["stage3"])
    torch.testing.assert_close(found.logits, stages["logits"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(aux, stages["aux"], atol=1e-4, rtol=1e-4)
    assert found.logits.abs().max() > 0.1  # not two zeros


def test_segformer_logits_equal_hugging_face():
    model = randomize(build_model("mit_b0", "segformer", 7)).eval()
    oracle = SegformerForSemanticSegmentation(SegformerConfig(num_labels=7)).eval()
    oracle.load_state_dict(segformer_as_hugging_face(model.state_dict()))
    images = torch.randint(0, 256, (2, 3, 72, 104), dtype=torch.uint8)
    with torch.no_grad():
        expected = oracle(model.normalize(images)).logits
        found = model(images).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert found.abs().max() > 0.1


@pytest.mark.parametrize("head_class", [SegFormerHead, MMSegSegFormerHead])
@pytest.mark.parametrize("grid", [8, 9])
def test_segformer_fuses_stage_by_stage_what_the_release_concatenates(head_class, grid):
    """Features, logits and every gradient, those of the parameters too."""
    head = randomize(head_class(TAPS, 5, width=24, dropout=0.0)).double().train()
    stages = {
        name: torch.randn(2, channels, side, side, dtype=torch.float64).requires_grad_()
        for name, (channels, stride) in TAPS.items()
        for side in [-(-grid * 4 // stride)]
    }
    leaves = [*stages.values(), *head.parameters()]
    slopes, both = None, []
    for forward in (head, partial(concatenated, head)):
        outputs = forward(stages)
        slopes = slopes or [torch.randn_like(x) for x in outputs]
        both.append([*outputs, *torch.autograd.grad(outputs, leaves, slopes)])
    for found, expected in zip(*both, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
def test_deeplabv3_has_as_many_parameters_as_torchvision_s(backbone):
    with torch.device("meta"):
        build_oracle = getattr(torchvision.models.segmentation, f"deeplabv3_{backbone}")
        oracle = build_oracle(weights=None, weights_backbone=None, num_classes=19, aux_loss=True)
        model = build_model(backbone, "deeplabv3", 19, aux=True)
    assert count_parameters(model) == count_parameters(oracle)


@pytest.mark.parametrize(
    ("backbone", "width", "published"), [("mit_b0", 256, 3.7e6), ("mit_b4", 768, 64.1e6), ("mit_b5", 768, 84.7e6)]
)
def test_segformer_has_the_published_number_of_parameters(backbone, width, published):
    with torch.device("meta"):
        model = build_model(backbone, "segformer", 19, width=width)
    assert count_parameters(model) == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
    ("backbone", "depths", "channels", "width"),
    [("mit_b0", [2, 2, 2, 2], [32, 64, 160, 256], 256), ("mit_b4", [3, 8, 27, 3], [64, 128, 320, 512], 768)],
)
def test_segformer_has_as_many_parameters_as_hugging_face_s(backbone, depths, channels, width):
    config = SegformerConfig(depths=depths, hidden_sizes=channels, decoder_hidden_size=width, num_labels=19)
    with torch.device("meta"):
        oracle, model = SegformerForSemanticSegmentation(config), build_model(backbone, "segformer", 19, width=width)
    assert count_parameters(model) == count_parameters(oracle)


@pytest.mark.parametrize(("output_stride", "rates"), [(8, [12, 24, 36]), (16, [6, 12, 18]), (32, [3, 6, 9])])
def test_aspp_dilates_less_where_the_stride_is_larger(output_stride, rates):
    head = DeepLabV3Head({"stage4": Tap(20, output_stride)}, 3, width=8)
    convs = [branch[0] for branch in head.aspp.convs[1:4]]
    assert [conv.dilation for conv in convs] == [(rate, rate) for rate in rates]
    assert [conv.padding for conv in convs] == [(rate, rate) for rate in rates]


@pytest.mark.parametrize(
    ("head_class", "grid"),
    [(DeepLabV3Head, (2, 2)), (PSPHead, (2, 2)), (SegFormerHead, (16, 16)), (FPNHead, (16, 16))],
)
def test_head_declares_its_tap(head_class, grid):
    head = head_class(TAPS, num_classes=5, width=24)
    logits, features = head(random_stages())
    assert head.tap == Tap(24, 64 // grid[0] if grid == (16, 16) else 32)
    assert features.shape == (2, 24, *grid)
    assert logits.shape == (2, 5, *grid)


@pytest.mark.parametrize("head_class", [DeepLabV3Head, PSPHead, SegFormerHead, FPNHead])
def test_logits_are_the_classifier_of_the_tap(head_class):
    head = head_class(TAPS, num_classes=5, width=24).eval()
    logits, features = head(random_stages())
    torch.testing.assert_close(logits, head.classifier(features))
    assert (features >= 0).all()


def test_segformer_tap_is_before_dropout():
    head = SegFormerHead(TAPS, num_classes=5, width=24, dropout=0.5).train()
    stages = random_stages()
    (first, features), (second, again) = head(stages), head(stages)
    assert torch.equal(features, again)
    assert not torch.equal(first, second)


def test_psp_levels_are_region_means():
    head = PSPHead({"stage4": Tap(4, 8)}, num_classes=2, width=3).eval()
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer is not head.classifier:
            nn.init.constant_(layer.weight, 0.25)  # the mean over the four channels
    maps = torch.arange(36.0).reshape(1, 1, 6, 6).expand(1, 4, 6, 6)
    seen = []
    head.block.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    head({"stage4": maps})
    bn = 1 / (1 + 1e-5) ** 0.5  # a fresh BatchNorm in eval
    joined = seen[0][0] / torch.tensor([1.0] * 4 + [bn] * 4)[:, None, None]
    assert joined.shape == (8, 6, 6)
    torch.testing.assert_close(joined[:4], maps[0])  # the stage itself
    torch.testing.assert_close(joined[4], torch.full((6, 6), 17.5))  # mean of 0..35
    assert joined[5, 0, 0].item() == pytest.approx(7.0)  # rows 0-2, columns 0-2 of the grid
    assert joined[6, 0, 0].item() == pytest.approx(3.5)  # 0, 1, 6, 7
    torch.testing.assert_close(joined[7], maps[0, 0])  # six regions on a grid of six


@pytest.mark.parametrize("head_class", [DeepLabV3Head, PSPHead])
def test_one_image_per_batch_trains(head_class):
    head = head_class(TAPS, num_classes=5, width=8).train()
    stages = {"stage4": torch.randn(1, 20, 7, 7, requires_grad=True)}
    head(stages)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_pooled_norm_takes_running_statistics_for_a_single_value_only():
    norm, plain = PooledBatchNorm2d(2), nn.BatchNorm2d(2)
    for module in (norm, plain):
        module.running_mean.copy_(torch.tensor([1.0, 2.0]))
        module.running_var.copy_(torch.tensor([4.0, 9.0]) - 1e-5)
    one = torch.tensor([5.0, 8.0]).reshape(1, 2, 1, 1)
    torch.testing.assert_close(norm.train()(one).flatten(), torch.tensor([2.0, 2.0]))  # (5 - 1) / 2, (8 - 2) / 3
    assert norm.running_mean.tolist() == [1.0, 2.0]
    two = torch.randn(2, 2, 1, 1)
    assert torch.equal(norm(two), plain.train()(two))
    assert torch.equal(norm.running_mean, plain.running_mean)


def test_global_context_is_the_mean_everywhere():
    context = GlobalContext(1, 1).eval()
    nn.init.ones_(context.project[0].weight)
    found = context(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]))
    torch.testing.assert_close(found, torch.full((1, 1, 2, 2), 3.0), atol=1e-4, rtol=0)


def test_the_linear_head_is_a_linear_map_of_the_standardised_channels():
    head = randomize(LinearHead({"stage4": Tap(20, 14)}, num_classes=5, dropout=0.5)).eval()
    maps = torch.randn(2, 20, 3, 4)
    logits, features = head({"stage4": maps})
    assert head.tap == Tap(20, 14)
    norm, weight = head.norm, head.classifier.weight[:, :, 0, 0]
    standard = (maps.movedim(1, -1) - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(features, standard.movedim(-1, 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        logits, (standard @ weight.T + head.classifier.bias).movedim(-1, 1), atol=1e-5, rtol=1e-5
    )


def test_the_linear_head_has_no_width():
    with pytest.raises(ValueError, match="width is 64; head 'linear' has the channels of stage 4: set width=None"):
        build_model("resnet18", "linear", 5, width=64)


@pytest.mark.parametrize("grid", [16, 15])
def test_the_top_down_pathway_of_fpn_is_torchvisions(grid):
    head = randomize(FPNHead(TAPS, num_classes=5, width=24)).eval()
    oracle = torchvision.ops.FeaturePyramidNetwork([channels for channels, _ in TAPS.values()], 24)
    for inner, smooth, stage in zip(oracle.inner_blocks, oracle.layer_blocks, reversed(STAGES), strict=True):
        inner[0].load_state_dict(head.project[stage].state_dict())
        nn.init.dirac_(smooth[0].weight)  # the map itself
        nn.init.zeros_(smooth[0].bias)
    stages = {
        name: torch.randn(2, channels, *2 * [-(-4 * grid // stride)]) for name, (channels, stride) in TAPS.items()
    }
    logits, features = head(stages)
    torch.testing.assert_close(features, head.block(oracle(stages)["stage1"]))
    torch.testing.assert_close(logits, head.classifier(features))
    assert features.shape == (2, 24, grid, grid)


def test_fpn_smooths_by_a_separable_convolution():
    head = FPNHead(TAPS, num_classes=5, width=24)
    # 1x1 with bias from each stage; 3x3 of each channel and its norm; 1x1 and its norm; the classifier.
    assert count_parameters(head) == 24 * (8 + 12 + 16 + 20 + 4) + 24 * (9 + 2) + 24 * (24 + 2) + 5 * (24 + 1)
