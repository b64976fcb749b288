import itertools

import pytest
import torch

from models import HEADS, Normalization, build_model, count_parameters
from tests.models.oracles import randomize

# Dilated, transformer, patchify, NHWC, SAME-padded; the other families of students.
BACKBONES = {
    "resnet18": 16,
    "mit_b0": 32,
    "convnext_atto": 16,
    "swin_tiny_patch4_window7_224": 32,
    "tf_efficientnet_lite2": 16,
    "mobilenetv4_conv_small": 16,
    "repvit_m0_9": 32,
    "fastvit_t8": 32,
    "efficientvit_b0": 32,
    "vit_tiny_patch16_224": 32,
    "vit_small_patch14_dinov2": 32,
}


def random_images(*size, batch=2):
    return torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8)


@pytest.fixture(scope="module", params=[("resnet18", "deeplabv3", 8), ("mit_b0", "segformer", 32)], ids=lambda p: p[0])
def model(request):
    backbone, head, output_stride = request.param
    return randomize(build_model(backbone, head, 5, output_stride, width=16)).eval()


@pytest.mark.parametrize(("backbone", "head"), list(itertools.product(BACKBONES, HEADS)))
def test_any_head_on_any_backbone(backbone, head):
    channels = None if head == "linear" else 16
    with torch.device("meta"):
        model = build_model(backbone, head, 5, BACKBONES[backbone], width=channels, aux=True)
    for size in ((65, 97), (128, 64)):
        assert_declared_is_real(model, *size)


def assert_declared_is_real(model, height, width):
    output = model(torch.empty(2, 3, height, width, device="meta"))
    assert output.taps.keys() == model.tap_info.keys() == {"stage1", "stage2", "stage3", "stage4", "head"}
    for name, (channels, stride) in model.tap_info.items():
        assert output.taps[name].shape == (2, channels, -(-height // stride), -(-width // stride))
    assert output.logits.shape == (2, 5, *output.taps["head"].shape[2:])
    assert output.aux.shape == (2, 5, *output.taps["stage3"].shape[2:])


@pytest.mark.parametrize(
    ("head", "stride"), [("deeplabv3", 8), ("pspnet", 8), ("segformer", 32), ("linear", 32), ("fpn", 32)]
)
def test_the_head_chooses_the_output_stride_unless_told(head, stride):
    with torch.device("meta"):
        assert build_model("resnet18", head, 5).tap_info["stage4"].stride == stride
        assert build_model("resnet18", head, 5, output_stride=16).tap_info["stage4"].stride == 16


@pytest.mark.parametrize("head", ["deeplabv3", "pspnet"])
def test_no_silent_stride_on_a_backbone_that_cannot_dilate(head):
    with pytest.raises(ValueError, match="mit_b0.*output_stride=8.*set output_stride=32"):
        build_model("mit_b0", head, 5)


def test_width_and_dropout_reach_the_head():
    with torch.device("meta"):
        model = build_model("resnet18", "segformer", 5, width=48, aux=True, dropout=0.3)
        assert build_model("resnet18", "deeplabv3", 5).tap_info["head"].channels == 256
        assert build_model("resnet18", "pspnet", 5).tap_info["head"].channels == 512
    assert model.tap_info["head"].channels == 48
    assert model.head.dropout.p == model.aux_head.dropout.p == 0.3


def test_spec_says_all_a_method_may_know():
    with torch.device("meta"):
        spec = build_model("mit_b0", "segformer", 5).spec
    assert (spec.num_classes, spec.family, spec.taps["stage3"]) == (5, "transformer", (160, 16))


def test_aux_runs_in_training_only():
    model = build_model("resnet18", "deeplabv3", 3, width=8, aux=True)
    assert model.train()(random_images(32, 32)).aux.shape == (2, 3, 4, 4)
    assert model.eval()(random_images(32, 32)).aux is None


def test_imagenet_normalisation():
    model = build_model("mit_b0", "segformer", 3)
    pixel = torch.tensor([0, 128, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    expected = [(0 - 123.675) / 58.395, (128 - 116.28) / 57.12, (255 - 103.53) / 57.375]
    assert model.normalize(pixel).flatten().tolist() == pytest.approx(expected)


def test_bgr_normalisation_puts_blue_first():
    model = build_model("mit_b0", "segformer", 3, normalization="caffe_bgr")
    pixel = torch.tensor([10, 20, 30], dtype=torch.uint8).reshape(1, 3, 1, 1)  # R, G, B
    expected = [30 - 104.00699, 20 - 116.66877, 10 - 122.67892]  # B, G, R, each minus its own mean
    assert model.normalize(pixel).flatten().tolist() == pytest.approx(expected)


def test_a_normalisation_of_one_s_own():
    model = build_model("mit_b0", "segformer", 3, normalization=Normalization((1.0, 2.0, 3.0), (2.0, 2.0, 4.0)))
    pixel = torch.tensor([3.0, 2.0, 7.0]).reshape(1, 3, 1, 1)
    assert model.normalize(pixel).flatten().tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 8, 3)])
def test_images_of_another_shape_are_refused(shape):
    model = build_model("mit_b0", "segformer", 3)
    with pytest.raises(ValueError, match="expected B x 3 x H x W"):
        model(torch.zeros(shape))


def test_uint8_and_float_images_are_the_same(model):
    images = random_images(64, 64)
    with torch.no_grad():
        assert torch.equal(model(images).logits, model(images.float()).logits)


def test_images_do_not_see_each_other(model):
    images = random_images(40, 56, batch=3)
    with torch.no_grad():
        together, alone = model(images), model(images[1:2])
    torch.testing.assert_close(together.logits[1:2], alone.logits, atol=1e-4, rtol=1e-4)
    for name, maps in alone.taps.items():
        torch.testing.assert_close(together.taps[name][1:2], maps, atol=1e-4, rtol=1e-4)


def test_channels_last_gives_the_same(model):
    images = random_images(40, 56)
    with torch.no_grad():
        expected = model(images)
        model.to(memory_format=torch.channels_last)
        found = model(images.to(memory_format=torch.channels_last))
        model.to(memory_format=torch.contiguous_format)
    for name, maps in expected.taps.items():
        torch.testing.assert_close(found.taps[name], maps, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "head"), [("resnet18", "deeplabv3"), ("mit_b0", "segformer"), ("resnet18", "pspnet")]
)
def test_bf16_autocast_is_finite_forward_and_backward(backbone, head):
    model = build_model(backbone, head, 5, output_stride=32, width=16, aux=True).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(random_images(64, 64))
        loss = output.logits.float().square().mean() + output.aux.float().square().mean()
    loss.backward()
    assert output.logits.dtype == torch.bfloat16
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)
    assert all(parameter.grad is not None for parameter in model.head.parameters())
    assert all(torch.isfinite(maps).all() for maps in output.taps.values())


def test_a_model_is_built_and_counted_on_meta():
    with torch.device("meta"):
        model = build_model("resnet18", "deeplabv3", 19)
    assert model.mean.is_meta
    assert count_parameters(model) == count_parameters(build_model("resnet18", "deeplabv3", 19))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "deeplab"}, "unknown head 'deeplab'; did you mean 'deeplabv3'"),
        ({"head": "xyz"}, "unknown head 'xyz'; choices: deeplabv3, deeplabv3_mmseg, fpn, linear, pspnet, segformer"),
        ({"backbone": "resnet-18"}, "unknown backbone 'resnet-18'; did you mean 'resnet18'"),
        ({"normalization": "imagnet"}, "unknown normalization 'imagnet'; did you mean 'imagenet'"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"output_stride": 4}, "output_stride is 4"),
    ],
)
def test_wrong_arguments_are_refused_by_name(change, message):
    arguments = {"backbone": "resnet18", "head": "deeplabv3", "num_classes": 5, **change}
    with pytest.raises(ValueError, match=message):
        build_model(**arguments)
