import torch
from timm.layers import convert_sync_batchnorm

from models import build_model


def test_synchronised_norms_compute_the_same_network():
    """timm fuses activations into norms; PyTorch's own conversion would silently drop them."""
    torch.manual_seed(0)
    model = build_model("tf_efficientnet_lite0", "deeplabv3", 3, output_stride=32, width=8).eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        before = model(images).logits
        after = convert_sync_batchnorm(model)(images).logits
    assert sum(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules()) > 20
    assert torch.equal(before, after)
