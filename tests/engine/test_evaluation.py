from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from engine.evaluation import evaluate
from engine.metrics import ConfusionMatrix
from models import inference as evaluation
from models.inference import class_map, predict, resize, row_tiles, view_logits, window_starts

K = 4


class Output(NamedTuple):
    logits: Tensor


class PixelNet(nn.Module):
    """Logits from each pixel's own colour: what it says of a pixel cannot depend on the window around it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, K, 1)
        self.seen: list[tuple[int, ...]] = []
        nn.init.normal_(self.conv.weight, generator=torch.Generator().manual_seed(1))
        nn.init.zeros_(self.conv.bias)

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        return Output(self.conv(images.float() / 255 - 0.5))


class CoarseNet(PixelNet):
    """A network with context, an asymmetric kernel and logits at stride 4."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 5, stride=4, padding=2, bias=False)
        nn.init.normal_(self.stem.weight, generator=torch.Generator().manual_seed(2))

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        return Output(self.conv(self.stem(images.float() / 255 - 0.5)))


class Scenes:
    """``length`` random images of different sizes with random labels and some void."""

    num_classes = K

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        size = (9 + index, 12 + 2 * index)
        image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        label = torch.randint(0, K + 1, size, generator=generator, dtype=torch.uint8)
        label[label == K] = 255
        return {"image": image, "label": label, "name": f"scene{index}"}


@pytest.fixture
def images():
    return torch.randint(0, 256, (2, 3, 21, 30), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_window_starts_by_hand():
    assert window_starts(10, 4, 3) == [0, 3, 6]
    assert window_starts(11, 4, 3) == [0, 3, 6, 7]
    assert window_starts(4, 4, 3) == [0]
    assert window_starts(5, 4, 4) == [0, 1]


def test_whole_is_the_argmax_of_the_upsampled_logits(images):
    net = CoarseNet()
    with torch.no_grad():
        logits = F.interpolate(net(images).logits, (21, 30), mode="bilinear", align_corners=False)
    prediction = predict(net, images)
    assert prediction.dtype == torch.uint8
    assert torch.equal(prediction, logits.argmax(1).to(torch.uint8))
    assert len(prediction.unique()) == K


SIZES = [(12, 16), (24, 64), (37, 41), (7, 50), (30, 9), (5, 6), (1, 16), (12, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", SIZES)
def test_bands_together_are_the_resized_logits(monkeypatch, size, layout, dtype):
    monkeypatch.setattr(evaluation, "TILE", 2 * K * size[1] * 5)
    logits = torch.randn(2, K, 12, 16, generator=torch.Generator().manual_seed(0)).to(dtype, memory_format=layout)
    rows, tiles = zip(*row_tiles(logits, size), strict=True)
    assert [row for band in rows for row in range(band.start, band.stop)] == list(range(size[0]))
    assert max(tile.shape[2] for tile in tiles) == min(5, size[0])
    expected = resize(logits, size)
    torch.testing.assert_close(torch.cat(tiles, dim=2), expected)
    assert torch.equal(class_map(logits, size), expected.argmax(1).to(torch.uint8))


def test_the_first_of_equal_classes_wins():
    logits = torch.tensor([1.0, 3.0, 3.0, 2.0]).view(1, K, 1, 1).expand(1, K, 3, 5)
    assert class_map(logits, (9, 10)).unique().tolist() == [1]


def test_more_classes_than_bytes_are_refused():
    with pytest.raises(ValueError, match="256 classes; expected at most 255"):
        class_map(torch.zeros(1, 256, 2, 2), (4, 4))


@pytest.mark.parametrize("options", [{}, {"scales": (0.5, 1.5), "flip": True}, {"flip": True}])
@pytest.mark.parametrize("mode", [{}, {"mode": "slide", "crop_size": (8, 11), "stride": (5, 7)}])
def test_views_are_averaged_band_by_band_as_at_once(images, monkeypatch, options, mode):
    net, size = CoarseNet(), (21, 30)
    total = 0
    for scale in options.get("scales", (1.0,)):
        view = resize(images, (int(21 * scale + 0.5), int(30 * scale + 0.5)))
        for mirrored in (False, True) if options.get("flip") else (False,):
            with torch.no_grad():
                logits = resize(view_logits(net.eval(), view.flip(-1) if mirrored else view, **mode), size)
            total = total + (logits.flip(-1) if mirrored else logits).softmax(1)
    monkeypatch.setattr(evaluation, "TILE", 1)
    assert torch.equal(predict(net, images, **options, **mode), total.argmax(1).to(torch.uint8))


def test_a_single_image_is_a_batch_of_one(images):
    net = CoarseNet()
    assert torch.equal(predict(net, images[0]), predict(net, images)[:1])


@pytest.mark.parametrize(("crop_size", "stride"), [((8, 11), (5, 7)), ((21, 10), (4, 10)), ((64, 64), (32, 32))])
def test_slide_equals_whole_where_context_is_not_seen(images, crop_size, stride):
    net = PixelNet()
    whole = resize(view_logits(net, images), images.shape[-2:])
    net.seen.clear()
    slid = view_logits(net, images, mode="slide", crop_size=crop_size, stride=stride)
    torch.testing.assert_close(slid, whole)
    windows = {shape[2:] for shape in net.seen}
    assert windows == {(min(crop_size[0], 21), min(crop_size[1], 30))}


def test_slide_averages_the_logits_of_overlapping_windows():
    class Counter(nn.Module):
        calls = 0

        def forward(self, images):
            self.calls += 1
            return Output(torch.full((1, 1, *images.shape[2:]), float(self.calls)))

    logits = view_logits(Counter(), torch.zeros(1, 3, 1, 5), mode="slide", crop_size=(1, 3), stride=(1, 2))
    assert logits.flatten().tolist() == [1, 1, 1.5, 2, 2]


def test_flip_makes_the_prediction_symmetric(images):
    net = CoarseNet()
    mirrored = predict(net, images.flip(-1))
    assert not torch.equal(mirrored.flip(-1), predict(net, images))
    assert torch.equal(predict(net, images.flip(-1), flip=True).flip(-1), predict(net, images, flip=True))


def test_several_views_average_probabilities():
    class TwoMinds(nn.Module):
        """Very sure of class 0 in the first view, fairly sure of class 1 in the others."""

        calls = 0

        def forward(self, images):
            self.calls += 1
            scores = torch.tensor([40.0, 0.0] if self.calls == 1 else [0.0, 10.0])
            return Output(scores.view(1, 2, 1, 1).expand(1, 2, *images.shape[2:]))

    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    # Mean logits are 40/3 and 20/3, mean probabilities about 1/3 and 2/3.
    assert predict(TwoMinds(), image, scales=(1.0, 0.5, 2.0)).unique().tolist() == [1]
    assert predict(TwoMinds(), image).unique().tolist() == [0]


def test_scales_resize_the_image(images):
    net = CoarseNet()
    predict(net, images, scales=(0.5, 1.0, 1.75), flip=True)
    assert [shape[2:] for shape in net.seen] == [(11, 15)] * 2 + [(21, 30)] * 2 + [(37, 53)] * 2


def test_shrinking_is_low_pass_filtered():
    class Red(nn.Module):
        def forward(self, images):
            self.range = images[:, 0].min().item(), images[:, 0].max().item()
            return Output(images[:, :2].float())

    stripes = torch.zeros(3, 16, 16, dtype=torch.uint8)
    stripes[:, :, ::4] = 200
    net = Red()
    predict(net, stripes, scales=(0.25,))
    assert 30 < net.range[0] <= net.range[1] < 80  # plain bilinear sees 0 alone; the mean is 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "silde"}, "'silde'.*'whole', 'slide'"),
        ({"mode": "slide"}, "crop_size=None"),
        ({"mode": "slide", "crop_size": (4, 4), "stride": (4, 5)}, "stride <= crop_size"),
        ({"mode": "slide", "crop_size": (4, 4), "stride": (0, 4)}, "stride <= crop_size"),
        ({"scales": ()}, "scales are"),
        ({"scales": (1.0, -0.5)}, "scales are"),
        ({"scales": (1e9,)}, r"scales are \(1000000000.0,\); expected one or more factors above 0, at most 8"),
    ],
)
def test_bad_views_are_refused(images, options, message):
    with pytest.raises(ValueError, match=message):
        predict(PixelNet(), images, **options)


def test_every_modules_mode_is_restored_even_after_an_error(images):
    class Probe(PixelNet):
        def __init__(self):
            super().__init__()
            self.frozen = nn.BatchNorm2d(3).eval()
            self.modes = None

        def forward(self, images):
            self.modes = (self.training, self.conv.training, torch.is_inference_mode_enabled())
            return super().forward(images)

    net = Probe()
    predict(net, images)
    assert net.modes == (False, False, True)
    with pytest.raises(ValueError, match="mode is"):
        predict(net, images, mode="wrong")
    assert (net.training, net.conv.training, net.frozen.training) == (True, True, False)


def test_evaluate_counts_every_sample_once_and_reports_it():
    net, data, seen = CoarseNet(), Scenes(3), {}
    metrics = evaluate(net, data, device="cpu", on_sample=lambda name, *rest: seen.update({name: rest}))
    confusion = ConfusionMatrix(K)
    for i in range(3):
        confusion.update(predict(net, data[i]["image"])[0], data[i]["label"])
        image, prediction, label = seen[f"scene{i}"]
        assert torch.equal(image, data[i]["image"])
        assert torch.equal(prediction, predict(net, data[i]["image"])[0])
        assert torch.equal(label, data[i]["label"])
    assert metrics == confusion.compute()
    assert len(seen) == 3


def test_evaluate_passes_the_view_on():
    options = {"mode": "slide", "crop_size": (5, 6), "stride": (4, 4), "scales": (1.0, 1.5), "flip": True}
    net, data, seen = CoarseNet(), Scenes(1), []
    evaluate(net, data, device="cpu", on_sample=lambda *sample: seen.append(sample[2]), **options)
    assert torch.equal(seen[0], predict(net, data[0]["image"], **options)[0])
    assert not torch.equal(seen[0], predict(net, data[0]["image"])[0])


def test_workers_change_nothing_nor_does_evaluation_touch_the_random_state():
    net = CoarseNet()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    metrics = evaluate(net, Scenes(3), device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert evaluate(net, Scenes(3), device="cpu", workers=1) == metrics
    assert torch.equal(torch.get_rng_state(), before)


def test_autocast_reaches_the_network_and_stays_inside():
    class Probe(PixelNet):
        def forward(self, images):
            output = super().forward(images)
            self.dtype = output.logits.dtype
            return output

    net = Probe()
    evaluate(net, Scenes(1), device="cpu", autocast_dtype=torch.bfloat16)
    assert net.dtype == torch.bfloat16
    evaluate(net, Scenes(1), device="cpu")
    assert net.dtype == torch.float32


def test_logits_are_brought_to_float32_before_they_are_resized():
    class Half(CoarseNet):
        def forward(self, images):
            return Output(super().forward(images).logits.bfloat16())

    images = torch.rand(1, 3, 8, 8) * 255
    coarse = Half()(images).logits.float()
    expected = F.interpolate(coarse, (8, 8), mode="bilinear", align_corners=False)
    assert torch.equal(resize(view_logits(Half(), images), (8, 8)), expected)


def test_no_bar_where_there_is_no_terminal(capsys):
    evaluate(PixelNet(), Scenes(2), device="cpu", description="validating")
    assert capsys.readouterr().err == ""


def test_wrong_sizes_and_empty_data_are_refused():
    class Crooked(Scenes):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return sample | {"label": sample["label"][1:]}

    with pytest.raises(ValueError, match="empty"):
        evaluate(PixelNet(), Scenes(0), device="cpu")
    with pytest.raises(ValueError, match=r"scene0: label is \(8, 12\), image \(9, 12\)"):
        evaluate(PixelNet(), Crooked(1), device="cpu")


def _evaluate_on_one_rank(rank, folder, length):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    names = []
    metrics = evaluate(CoarseNet(), Scenes(length), device="cpu", on_sample=lambda name, *_: names.append(name))
    torch.save((names, metrics.to_dict()), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_see_each_sample_once_and_agree_with_one(tmp_path):
    length = 5
    mp.spawn(_evaluate_on_one_rank, (str(tmp_path), length), nprocs=2)
    (names0, metrics0), (names1, metrics1) = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert sorted(names0 + names1) == [f"scene{i}" for i in range(length)]
    assert abs(len(names0) - len(names1)) == 1
    alone = evaluate(CoarseNet(), Scenes(length), device="cpu").to_dict()
    assert metrics0 == metrics1 == alone
