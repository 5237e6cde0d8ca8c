"""Weights from elsewhere: real files, checked, and networks of a user's own."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from generators import DCGAN, TAEF2, ResidualGAN, by_path, pretrained
from generators.foreign import Foreign
from generators.range_limit import RangeLimit
from gibench.errors import ConfigurationError, WeightsError
from gibench.metrics import Limit

SHA256 = "86d9fd80c8ed4a4095e0fecd09fe474c554cbebb1b8ba45df2087880409bc9c0"


class Chain(nn.Module):
    """Three links; the second takes classes."""

    def __init__(self, *, width: int = 6, classes: int = 3) -> None:
        super().__init__()
        self.read = nn.Linear(5, width)
        self.links = nn.ModuleList([Mixed(width, classes), nn.Sequential(nn.Linear(width, 12), nn.Tanh())])
        self.fold = nn.Unflatten(1, (3, 2, 2))

    def forward(self, latents: Tensor, classes: Tensor) -> Tensor:
        drawn: Tensor = self.fold(self.links[1](self.links[0](self.read(latents), classes)))
        return drawn


class Mixed(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.shift = nn.Linear(classes, width)

    def forward(self, features: Tensor, classes: Tensor) -> Tensor:
        return torch.relu(features + self.shift(classes))


CHAIN: dict[str, Any] = {
    "path": f"{__name__}.Chain",
    "latent_shape": [5],
    "image_shape": [3, 2, 2],
    "num_classes": 3,
    "stages": ["read", "links.0", "links.1", "fold"],
    "conditioned": ["links.0"],
}


@pytest.fixture
def face_file(weights_root: Path) -> Path:
    file = weights_root / "dcgan64_digiface_generator.safetensors"
    if not file.is_file():
        pytest.skip(f"needs {file.name} in GIBENCH_WEIGHTS.")
    return file


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    """A DCGAN of 16 pixels in the names of the published one."""
    torch.manual_seed(0)
    file = tmp_path / "small.safetensors"
    save_file(DCGAN(**SMALL).state_dict(), file)
    return file


SMALL: dict[str, Any] = {"image_shape": [3, 16, 16], "latent": 4, "width": 2}


def test_the_face_generator_draws_what_plain_layers_draw(face_file: Path) -> None:
    generator = pretrained(path=face_file.name, model="dcgan", sha256=SHA256)
    assert (generator.latent_shape, generator.image_shape, generator.depth) == ((100,), (3, 64, 64), 5)
    assert generator.weights_sha256 == SHA256
    assert not any(weight.requires_grad for weight in generator.parameters())
    weights, latents = load_file(face_file), torch.randn(8, 100, generator=torch.Generator().manual_seed(0))
    maps = latents[:, :, None, None]
    for layer in (0, 3, 6, 9, 12):
        maps = F.conv_transpose2d(maps, weights[f"main.{layer}.weight"], None, 2 if layer else 1, 1 if layer else 0)
        if layer != 12:
            norm = {name: weights[f"main.{layer + 1}.{name}"] for name in ("running_mean", "running_var")}
            scale, shift = (weights[f"main.{layer + 1}.{name}"] for name in ("weight", "bias"))
            maps = F.batch_norm(maps, **norm, weight=scale, bias=shift).relu()
    drawn = generator(latents)
    torch.testing.assert_close(drawn, (maps.tanh() + 1) / 2, atol=1e-5, rtol=0)
    assert drawn.flatten(1).std(0).mean() > 0.05  # different faces


def test_the_face_generator_is_closer_to_its_own_faces_than_to_other_images(
    face_file: Path, cifar10_root: Path
) -> None:
    generator = pretrained(path=face_file, model="dcgan")
    faces = generator(torch.randn(2, 100, generator=torch.Generator().manual_seed(7)))
    faces = F.interpolate(faces, size=32, mode="area")
    with np.load(cifar10_root / "cifar10.npz") as file:
        other = torch.from_numpy(file["test_images"][:2]).permute(0, 3, 1, 2).float() / 255
    images = torch.stack([faces, other])
    found = RangeLimit(generator, steps=25, restarts=1, resample=True)(images)
    errors = (found - images).square().flatten(1).mean(1)
    assert errors[0] < errors[1] / 2


def test_a_file_in_the_published_names_loads_and_its_hash_is_held(small_file: Path) -> None:
    digest = hashlib.sha256(small_file.read_bytes()).hexdigest()
    found = pretrained(path=small_file, model="dcgan", settings=SMALL, sha256=digest.upper())
    torch.manual_seed(0)
    expected = DCGAN(**SMALL).eval()
    latents = torch.randn(2, 4)
    torch.testing.assert_close(found(latents), expected(latents))
    with pytest.raises(WeightsError, match=f"has the SHA-256 {digest}, not {'0' * 64}"):
        pretrained(path=small_file, model="dcgan", settings=SMALL, sha256="0" * 64)
    with pytest.raises(ConfigurationError, match="64 hexadecimal digits"):
        pretrained(path=small_file, model="dcgan", settings=SMALL, sha256="abc")


def test_half_precision_and_missing_counters_are_read(small_file: Path) -> None:
    tensors = {name: value.half() for name, value in load_file(small_file).items() if "num_batches" not in name}
    save_file(tensors, small_file)
    found = pretrained(path=small_file, model="dcgan", settings=SMALL)
    assert {value.dtype for value in found.state_dict().values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"main.0.weight": None}, r"1 missing \(main.0.weight\)"),
        ({"other": torch.zeros(2)}, r"1 unexpected \(other\)"),
        ({"main.0.weight": torch.zeros(4, 9, 4, 4)}, r"main.0.weight \(4, 9, 4, 4\) for \(4, 4, 4, 4\)"),
        ({"main.1.weight": torch.zeros(4, dtype=torch.int64)}, r"of another type \(main.1.weight\)"),
        ({"main.1.weight": torch.full((4,), torch.nan)}, "NaN or infinity in main.1.weight"),
    ],
)
def test_weights_that_do_not_fit_are_one_clear_line(
    change: dict[str, Tensor | None], message: str, small_file: Path
) -> None:
    tensors = {name: value for name, value in (load_file(small_file) | change).items() if value is not None}
    save_file(tensors, small_file)
    with pytest.raises(WeightsError, match=message):
        pretrained(path=small_file, model="dcgan", settings=SMALL)


def test_other_files_and_settings_are_one_clear_line(small_file: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "weights.pth"
    pickled.write_bytes(pickle.dumps({"main.0.weight": 1}))
    torch.save({"main.0.weight": torch.zeros(1)}, tmp_path / "zip.safetensors")
    for file in (pickled, tmp_path / "zip.safetensors"):
        with pytest.raises(WeightsError, match="a pickle is never read"):
            pretrained(path=file, model="dcgan")
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(small_file.read_bytes()[:-8])
    with pytest.raises(WeightsError, match="no safetensors file"):
        pretrained(path=torn, model="dcgan", settings=SMALL)
    with pytest.raises(WeightsError, match="there is no file"):
        pretrained(path=tmp_path / "absent.safetensors", model="dcgan")
    with pytest.raises(WeightsError, match="does not fit DCGAN"):
        pretrained(path=small_file, model="dcgan")
    with pytest.raises(ConfigurationError, match="no pretrained generator 'gan'"):
        pretrained(path=small_file, model="gan")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="depth"):
        pretrained(path=small_file, model="dcgan", settings={"depth": 3})
    with pytest.raises(ConfigurationError, match="multiples of 8"):
        pretrained(path=small_file, model="taef2", settings={"image_shape": [3, 20, 20]})


def test_a_network_of_another_package_gets_stages(tmp_path: Path) -> None:
    torch.manual_seed(3)
    other = Chain(width=7)
    save_file(other.state_dict(), tmp_path / "chain.safetensors")
    found = by_path(**CHAIN | {"arguments": {"width": 7}, "weights": tmp_path / "chain.safetensors"})
    assert (found.depth, found.num_classes) == (4, 3)
    assert [tuple(found.features_shape(stage)) for stage in range(5)] == [(5,), (7,), (7,), (12,), (3, 2, 2)]
    latents, classes = torch.randn(4, 5), torch.rand(4, 3).softmax(1)
    expected = (other(latents, classes) + 1) / 2
    torch.testing.assert_close(found(latents, classes), expected)
    torch.testing.assert_close(found(found(latents, classes, last=2), classes, first=2), expected)
    assert vars(found)["name"] == "chain"
    whole = by_path(**CHAIN | {"stages": [], "conditioned": []})
    assert whole.depth == 1
    assert whole(latents, classes).shape == (4, 3, 2, 2)


def flat() -> nn.Module:
    """Without classes, in [0, 1]."""
    return nn.Sequential(nn.Linear(5, 12), nn.Sigmoid(), nn.Unflatten(1, (3, 2, 2)))


def test_a_network_in_the_unit_range_and_without_classes() -> None:
    made = by_path(
        path=f"{__name__}.flat", latent_shape=[5], image_shape=[3, 2, 2], output="unit", stages=["0", "1", "2"]
    )
    assert isinstance(made, Foreign)
    latents = torch.randn(2, 5)
    torch.testing.assert_close(made(latents), made.network(latents))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "no.such.Thing"}, "there is no 'no.such.Thing' to import"),
        ({"path": f"{__name__}.Absent"}, "to import"),
        ({"path": f"{__name__}.SHA256"}, "does not take the arguments"),
        ({"path": "builtins.dict"}, "makes a dict"),
        ({"arguments": {"depth": 2}}, "does not take the arguments"),
        ({"stages": ["read", "absent"]}, "no submodule 'absent'"),
        ({"stages": ["read", "links.1", "fold"], "conditioned": []}, "do not draw what Chain draws|does not draw from"),
        ({"stages": ["read", "links.0", "links.1"]}, r"draws \(12,\), not \(3, 2, 2\)"),
        ({"conditioned": ["fold.x"]}, "is conditioned; name it in stages"),
        ({"num_classes": None, "conditioned": []}, "does not draw from latents"),
        ({"latent_shape": [6]}, "does not draw from latents"),
        ({"latent_shape": []}, "pass the shape of one latent"),
        ({"image_shape": [3, 4, 4]}, r"draws \(3, 2, 2\), not \(3, 4, 4\)"),
        ({"output": "unit"}, "set output, or wrap it"),
        ({"output": "gray"}, "choose one of tanh, unit"),
        ({"sha256": "0" * 64}, "name the file, too"),
    ],
)
def test_what_breaks_the_contract_of_a_foreign_network_is_one_clear_line(change: dict[str, Any], message: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ConfigurationError, match=message):
        by_path(**CHAIN | change)


def test_a_stage_that_does_not_exist() -> None:
    with pytest.raises(ConfigurationError, match="there is no stage 5"):
        by_path(**CHAIN).features_shape(5)


def test_configurations_name_them_by_class_path(small_file: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--limit", type=Limit)
    loads = {"class_path": "generators.pretrained", "init_args": {"path": str(small_file), "model": "dcgan"}}
    loads["init_args"]["settings"] = SMALL
    node = {"class_path": "generators.RangeLimit", "init_args": {"generator": loads, "steps": 3, "restarts": 1}}
    limit = parser.instantiate(parser.parse_object({"limit": node})).limit
    assert isinstance(limit.generator, DCGAN)
    limit.check((3, 16, 16), 10)
    with pytest.raises(ConfigurationError, match="16 x 16 pixels"):
        limit.check((3, 32, 32), 10)
    assert limit(torch.full((1, 1, 3, 16, 16), 0.4), torch.zeros(1, 1, dtype=torch.int64)).shape == (1, 1, 3, 16, 16)
    classes = RangeLimit(ResidualGAN(image_shape=[3, 16, 16], num_classes=2, latent=4, width=4))
    with pytest.raises(ConfigurationError, match="2 classes, the victim 10"):
        classes.check((3, 16, 16), 10)
    assert TAEF2().depth == 4
