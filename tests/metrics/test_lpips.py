"""LPIPS says what the official one says, or says why it says nothing; a random backbone never gets through."""

from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from gibench.errors import WeightsError
from gibench.metrics import ImageQuality
from gibench.metrics.lpips import BACKBONES, Net, _load_network, _probe, distance, load_network

CACHED = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}


@pytest.fixture
def weights(weights_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for backbone in BACKBONES.values():
        if not (weights_root / backbone.file).is_file():
            pytest.skip(f"{backbone.file} is not in GIBENCH_WEIGHTS")
    monkeypatch.setenv("GIBENCH_WEIGHTS", str(weights_root))
    return weights_root


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Neither weights, nor a cache, nor a network; returns the folder of torch's cache."""

    def no_network(*_: object, **__: object) -> None:
        raise URLError("name resolution failed")

    monkeypatch.delenv("GIBENCH_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    monkeypatch.setattr("gibench.metrics.lpips.urlopen", no_network)
    yield tmp_path / "hub" / "checkpoints"
    _load_network.cache_clear()


def photograph(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize(("net", "far", "near"), [("alex", 0.722, 0.138), ("vgg", 0.569, 0.422)])
def test_the_official_values_on_the_official_examples(weights: Path, net: Net, far: float, near: float) -> None:
    folder = weights / "lpips_examples"
    if not folder.is_dir():
        pytest.skip("no folder lpips_examples in GIBENCH_WEIGHTS")
    truth, first, second = (photograph(folder / f"ex_{name}.png") for name in ("ref", "p0", "p1"))
    scores = ImageQuality(lpips=[net])(torch.cat([first, second]), torch.cat([truth, truth]))
    assert scores[f"lpips_{net}"].tolist() == pytest.approx([far, near], abs=6e-4)  # type: ignore[union-attr]


@pytest.mark.usefixtures("weights")
def test_identity_symmetry_gray_and_single_images() -> None:
    quality = ImageQuality()
    first, second = torch.rand(2, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for name in ("lpips_alex", "lpips_vgg"):
        assert quality.availability[name] == "available"
        there, back = quality(first, second)[name], quality(second, first)[name]
        colored = quality(first.expand(-1, 3, -1, -1), second.expand(-1, 3, -1, -1))[name]
        alone = quality(first[:1], second[:1])[name]
        assert there is not None
        assert back is not None
        assert colored is not None
        assert alone is not None
        assert there.dtype == torch.float64
        assert there.shape == (3,)
        assert (there > 0.01).all()
        torch.testing.assert_close(there, back)
        torch.testing.assert_close(there, colored)
        torch.testing.assert_close(there[:1], alone)
        assert quality(first, first)[name].tolist() == [0.0] * 3  # type: ignore[union-attr]


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_too_small_images_give_an_empty_column_with_the_reason(net: Net) -> None:
    quality, name = ImageQuality(lpips=[net]), f"lpips_{net}"
    side = BACKBONES[net].smallest_side
    assert quality(torch.zeros(1, 3, side, side + 5), torch.ones(1, 3, side, side + 5))[name] is not None
    assert quality(torch.zeros(1, 3, side - 1, side), torch.ones(1, 3, side - 1, side))[name] is None
    assert f"{side} px" in quality.availability_for((3, side - 1, side))[name]
    assert quality.availability_for((1, side, side))[name] == "available"
    assert quality(torch.zeros(1, 2, 40, 40), torch.ones(1, 2, 40, 40))[name] is None
    assert "2 channels" in quality.availability_for((2, 40, 40))[name]


@pytest.mark.usefixtures("weights")
def test_chunks_and_autocast_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    network = load_network("alex")
    assert not isinstance(network, str)
    first, second = torch.rand(2, 5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = distance(network, first, second)
    monkeypatch.setattr("gibench.metrics.lpips.PIXELS_AT_ONCE", 2 * 32 * 32)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(distance(network, first, second), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("weights")
def test_it_is_built_once_and_leaves_the_random_state_alone() -> None:
    _load_network.cache_clear()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = load_network("alex")
    assert torch.equal(torch.rand(1), expected)
    assert load_network("alex") is first


def test_without_weights_the_column_is_empty_and_says_what_to_do(bare_machine: Path) -> None:
    quality = ImageQuality()
    image = torch.rand(1, 3, 32, 32)
    scores = quality(image, image)
    assert not bare_machine.exists() or not list(bare_machine.iterdir())
    for net, backbone in BACKBONES.items():
        assert scores[f"lpips_{net}"] is None
        reason = quality.availability[f"lpips_{net}"]
        assert "name resolution failed" in reason
        assert "GIBENCH_WEIGHTS" in reason
        assert backbone.file in reason
        assert "\n" not in reason


@pytest.mark.usefixtures("bare_machine")
def test_downloads_can_be_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: pytest.fail("downloaded"))
    assert "downloads are off" in ImageQuality(download=False).availability["lpips_vgg"]


def test_a_damaged_cache_gives_an_empty_column(bare_machine: Path) -> None:
    bare_machine.mkdir(parents=True)
    (bare_machine / CACHED["alex"]).write_bytes(b"not a checkpoint")
    assert "no alexnet weights" in ImageQuality(lpips=["alex"]).availability["lpips_alex"]


def test_torchvisions_cache_is_used(weights_root: Path, bare_machine: Path) -> None:
    features = load_file(weights_root / BACKBONES["alex"].file)
    bare_machine.mkdir(parents=True)
    torch.save({**features, "classifier.1.weight": torch.zeros(2)}, bare_machine / CACHED["alex"])
    network = load_network("alex", download=False)
    assert not isinstance(network, str)
    assert distance(network, *_probe()).item() == pytest.approx(BACKBONES["alex"].probe, abs=1e-3)


def test_a_random_backbone_is_refused_wherever_it_comes_from(weights_root: Path, bare_machine: Path) -> None:
    shapes = load_file(weights_root / BACKBONES["alex"].file)
    generator = torch.Generator().manual_seed(0)
    noise = {name: 0.05 * torch.randn(tensor.shape, generator=generator) for name, tensor in shapes.items()}
    bare_machine.mkdir(parents=True)
    torch.save(noise, bare_machine / CACHED["alex"])
    with pytest.raises(WeightsError, match="damaged"):
        load_network("alex")


@pytest.mark.usefixtures("bare_machine")
def test_another_file_under_the_recorded_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / BACKBONES["vgg"].file)
    monkeypatch.setenv("GIBENCH_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError, match="sha256"):
        ImageQuality(lpips=["vgg"])
