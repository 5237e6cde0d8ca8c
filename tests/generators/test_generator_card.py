"""Files of generators: what is written is read, and nothing else is."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from generator_table import inputs
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from generators import DCGAN, VAEDecoder, card, load_generator
from generators.card import METADATA, Card, open_generator, save_generator
from gibench.data import Photographs
from gibench.errors import WeightsError
from gibench.search.generator import Generator
from gibench.victims.offline import read_cost

SETTINGS: dict[str, dict[str, Any]] = {
    "dcgan": {"image_shape": [3, 8, 8], "width": 4, "latent": 5},
    "vae": {"image_shape": [1, 8, 8], "widths": [4, 8], "latent": 5},
}


def written(path: Path, model: str = "dcgan", **storage: Any) -> tuple[Card, Generator]:
    torch.manual_seed(0)
    generator = {"dcgan": DCGAN, "vae": VAEDecoder}[model](**SETTINGS[model]).eval()
    note = Card(
        model=model,
        settings=SETTINGS[model],
        data="shrunk",
        origin="out_of_distribution",
        image_ids_sha256="0" * 64,
        training={"steps": 3, "tune_psnr": 20.5},
    )
    save_generator(note, generator, path, **storage)
    return note, generator


@pytest.mark.parametrize("model", SETTINGS)
@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_a_round_trip(tmp_path: Path, model: str, storage: Any) -> None:
    path = tmp_path / "own.safetensors"
    note, generator = written(path, model, storage=storage)
    found_note, found = open_generator(path)
    assert found_note == note
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert all(value.dtype in (torch.float32, torch.int64) for value in found.state_dict().values())
    latents = inputs(generator)[0].float()
    atol = 0 if storage == "float32" else 2e-3
    torch.testing.assert_close(found(latents), generator(latents), rtol=0, atol=atol)
    assert (found(latents) == generator(latents)).all() == (storage == "float32")
    again = load_generator(path)
    assert (again.name, again.origin, again.weights_sha256) == (
        "own",
        "out_of_distribution",
        hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def rewritten(path: Path, change: Any) -> Path:
    """The file with other tensors, or another card."""
    with safe_open(path, framework="pt") as file:
        note = json.loads(file.metadata()[METADATA])
    tensors = load_file(path)
    change(tensors, note)
    save_file(tensors, path, metadata={METADATA: json.dumps(note)})
    return path


def bad(name: str) -> Any:
    def change(tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
        weight = tensors["main.0.weight"]
        if name == "name":
            tensors["main.0.weights"] = tensors.pop("main.0.weight")
        elif name == "missing":
            del tensors["main.0.weight"]
        elif name == "more":
            tensors["extra"] = weight.clone()
        elif name == "shape":
            tensors["main.0.weight"] = weight[:-1].contiguous()
        elif name == "type":
            tensors["main.0.weight"] = weight.long()
        elif name == "nan":
            weight[0] = torch.nan
        elif name == "model":
            note["model"] = "biggan"
        elif name == "setting":
            note["settings"]["depth"] = 3
        elif name == "huge":
            note["settings"]["width"] = 10**7
        elif name == "large":
            note["settings"]["width"] = 60000  # terabytes, if it were made
        elif name == "image":
            note["settings"]["image_shape"] = [3, 9, 9]
        elif name == "field":
            note["code"] = "import os"
        elif name == "hash":
            note["image_ids_sha256"] = "short"

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("name", "does not fit"),
        ("missing", "does not fit"),
        ("more", "extra"),
        ("shape", "main.0.weight"),
        ("type", "main.0.weight"),
        ("nan", "NaN"),
        ("model", "no generator 'biggan'"),
        ("setting", "depth"),
        ("huge", "settings.width"),
        ("large", "does not fit"),
        ("image", "9"),
        ("field", "code"),
        ("hash", "image_ids_sha256"),
    ],
)
def test_a_file_that_was_tampered_with(tmp_path: Path, change: str, words: str) -> None:
    written(tmp_path / "own.safetensors")
    path = rewritten(tmp_path / "own.safetensors", bad(change))
    with pytest.raises(WeightsError, match=words) as raised:
        load_generator(path)
    assert "\n" not in str(raised.value)
    assert "own.safetensors" in str(raised.value)


def test_what_is_no_file_of_a_generator(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no generator .*absent"):
        load_generator(tmp_path / "absent.safetensors")
    with pytest.raises(WeightsError, match="no generator"):
        load_generator(tmp_path)
    pickle, text, plain = tmp_path / "a.pt", tmp_path / "b.safetensors", tmp_path / "c.safetensors"
    torch.save({"main.0.weight": torch.zeros(1)}, pickle)
    with pytest.raises(WeightsError, match="a pickle is never read"):
        load_generator(pickle)
    text.write_text("hello")
    with pytest.raises(WeightsError, match="no generator in safetensors"):
        load_generator(text)
    save_file({"main.0.weight": torch.zeros(1)}, plain)
    with pytest.raises(WeightsError, match="no card"):
        load_generator(plain)


def test_weights_that_float16_does_not_hold(tmp_path: Path) -> None:
    note, generator = written(tmp_path / "own.safetensors")
    with torch.no_grad():
        next(generator.parameters()).mul_(1e8)
    save_generator(note, generator, tmp_path / "whole.safetensors")
    with pytest.raises(WeightsError, match="infinity"):
        save_generator(note, generator, tmp_path / "half.safetensors", storage="float16")
    assert not (tmp_path / "half.safetensors").exists()


def test_a_name_alone_is_that_of_a_file_that_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tmp_path / "package" / "weights"
    written(shipped / "shipped" / "shipped.safetensors")
    monkeypatch.setattr(card, "files", lambda _: tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    assert load_generator("shipped.safetensors").name == "shipped"
    with pytest.raises(WeightsError, match=r"shipped are: shipped\.safetensors"):
        load_generator("elsewhere/shipped.safetensors")
    written(tmp_path / "shipped.safetensors", "vae")  # a file at the path itself comes first
    assert isinstance(load_generator("shipped.safetensors"), VAEDecoder)


def test_what_ships_was_trained_on_the_prior_split() -> None:
    note, generator = open_generator("vae_photographs_tiny.safetensors")
    assert generator.name == "vae_photographs_tiny"
    assert note.data == "photographs"
    assert note.image_ids_sha256 == Photographs().split_hashes()["prior"]
    assert float(generator(inputs(generator)[0].float()).std()) > 0.1


@pytest.mark.parametrize("name", ["vae_cifar10", "vae_photographs_tiny"])
def test_what_ships_says_what_its_training_cost(name: str) -> None:
    note, generator = open_generator(f"{name}.safetensors")
    assert generator.weights_path is not None
    assert generator.weights_sha256 is not None
    cost = read_cost(generator.weights_path, generator.weights_sha256)
    assert cost is not None
    assert (cost.steps, cost.images) == (note.training["steps"], note.training["images"])
    assert cost.seconds > 0
