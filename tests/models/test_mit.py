import pytest
import torch
from segmentation_models_pytorch.encoders import get_encoder
from transformers import SegformerConfig, SegformerModel

from models import count_parameters
from models.mit import HEADS, REDUCTIONS, VARIANTS, Block, MixTransformer
from tests.models.oracles import mit_as_hugging_face, randomize

SIZES = [(64, 64), (72, 104), (65, 97)]


@pytest.fixture(scope="module")
def encoder():
    return randomize(MixTransformer(*VARIANTS["mit_b0"])).eval()


@pytest.mark.parametrize("size", SIZES)
def test_stages_equal_hugging_face(encoder, size):
    oracle = SegformerModel(SegformerConfig()).eval()  # its defaults are B0
    oracle.load_state_dict(mit_as_hugging_face(encoder.state_dict()))
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = oracle(images, output_hidden_states=True).hidden_states
        found = encoder(images)
    for stage, maps in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(stage, maps, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_stages_equal_segmentation_models_pytorch(encoder, size):
    oracle = get_encoder("mit_b0", weights=None).eval()
    oracle.load_state_dict(encoder.state_dict())  # the same names: those of the release
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = oracle(images)[-4:]
        found = encoder(images)
    for stage, maps in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(stage, maps, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("mit_b0", 3.4), ("mit_b1", 13.1), ("mit_b2", 24.2), ("mit_b3", 44.0), ("mit_b4", 60.8), ("mit_b5", 81.4)],
)
def test_every_variant_has_the_published_number_of_parameters(name, millions):
    with torch.device("meta"):
        encoder = MixTransformer(*VARIANTS[name])
    assert count_parameters(encoder) / 1e6 == pytest.approx(millions, abs=0.1)  # table 1, to its last digit


def test_stochastic_depth_grows_linearly_from_zero():
    with torch.device("meta"):
        encoder = MixTransformer(*VARIANTS["mit_b0"], drop_path=0.7)
    rates = [block.drop_path.drop_prob for block in encoder.modules() if isinstance(block, Block)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])


def test_stochastic_depth_drops_in_training_only():
    encoder = MixTransformer(*VARIANTS["mit_b0"], drop_path=0.5)
    images = torch.randn(1, 3, 32, 32)
    first, second = encoder.train()(images)["stage4"], encoder(images)["stage4"]
    assert not torch.equal(first, second)
    encoder.eval()
    assert torch.equal(encoder(images)["stage4"], encoder(images)["stage4"])


def test_initialisation_is_the_paper_s():
    encoder = MixTransformer(*VARIANTS["mit_b0"])
    block = encoder.block4[0]
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.mlp.dwconv.dwconv.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)  # fan-out 9 per group
    assert encoder.patch_embed4.proj.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.05)
    assert not any(parameter.any() for name, parameter in encoder.named_parameters() if name.endswith("bias"))


def test_constants_are_the_paper_s():
    assert HEADS == (1, 2, 5, 8)
    assert REDUCTIONS == (8, 4, 2, 1)


def test_smallest_image():
    with torch.device("meta"):
        encoder = MixTransformer(*VARIANTS["mit_b0"])
    assert encoder(torch.empty(1, 3, 29, 29, device="meta"))["stage1"].shape[2:] == (8, 8)
    with pytest.raises(ValueError, match=r"the image is \(64, 28\).*needs at least 29 pixels"):
        encoder(torch.empty(1, 3, 64, 28, device="meta"))
