"""Entries as a run would give them, with scores drawn at random, and pictures that have those scores."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gibench.runs.configuration import digest
from leaderboard import pictures
from leaderboard.schema import Entry
from leaderboard.store import PRIVATE, dump, picture_folder, place

Tree = dict[str, Any]
FLOORS = {"mean image": 12.5, "class mean": 13.2, "random image": 9.5, "nearest image (oracle)": 16.0}


def number(*parts: object) -> int:
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:12], 16)


def scored(level: float, count: int, *seed: object) -> tuple[list[float], list[float]]:
    """PSNR about a level, and the MSE that belongs to it, both rounded as `add` does."""
    psnr = np.clip(np.random.default_rng(number(*seed)).normal(level, 2.0, count), 1, 100)
    mse = [float(f"{10 ** (-value / 10):.6g}") for value in psnr]
    return [round(-10 * float(np.log10(value)), 4) for value in mse], mse


def entry_tree(
    attack: str = "ig",
    *,
    level: float = 18.0,
    images: int = 12,
    scenario: str = "cifar10-lenet-b1",
    victim: str = "initial",
    family: str = "handcrafted",
    title: str | None = None,
    labels: str = "ordered",
    inferred: bool = False,
    control: bool = False,
    **changes: Any,
) -> Tree:
    """The tree of a valid entry; all entries of a scenario attack the same images, so that they agree."""
    where = (scenario, victim, labels)
    psnr, mse = scored(level, images, attack, *where)
    flags = {
        "victim": victim,
        "batch_norm": "absent",
        "labels": labels,
        "batch_size": "known",
        "prior_data": "none",
        "defense": "none",
        "defense_randomness": "unknown",
        "update": "gradient",
        "local_steps": "known",
        "server": "honest",
    }
    configuration = {
        "data": {"class_path": "gibench.data.CIFAR10", "init_args": {"batch_size": 1, "updates": images}},
        "client": {"class_path": "gibench.clients.FedSGD", "init_args": {"threat_model": flags, "seed": 0}},
        "attack": {"class_path": "gibench.attacks.inverting_gradients", "init_args": {"steps": 1000}},
    }
    machine = {
        "system": "Linux",
        "python": "3.11.7",
        "processor": "x86_64",
        "accelerator": None,
        "threads": 1,
        "device": "cpu",
        "processes": 1,
    }
    run = {
        "suite": "first",
        "size": "small",
        "command": "gibench run configs/suites/first.yaml",
        "configuration": configuration,
        "configuration_sha256": digest(configuration),
        "victim": {
            "architecture": "lenet",
            "parameters": 15826,
            "num_classes": 10,
            "weights_sha256": hashlib.sha256(repr(where).encode()).hexdigest(),
            "initialization": "U(-0.5, 0.5), seed 0",
            "training_steps": 0,
            "stage": "initial",
            "test_accuracy": None,
            "mean": "0, 0, 0",
            "std": "1, 1, 1",
            "dtype": "float32",
        },
        "weights": {},
        "precision": "32-true",
        "parity": "reference",
        "engine": None,
        "metrics": {"psnr": "available", "nearest image": "available"},
        "version": "0.1.0",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "packages": {"torch": "2.15.0"},
        "machine": machine,
        "cost": {
            "seconds": 12.5,
            "gradient_evaluations": 1000.0 * images,
            "peak_memory_bytes": 2**30,
            "offline_seconds": 0.0,
            "offline_what": None,
        },
        "started": "2026-01-01T10:00:00+00:00",
        "finished": "2026-01-01T11:00:00+00:00",
    }
    floors = {
        name: dict(zip(("psnr", "mse"), scored(low, images, name, *where), strict=True)) for name, low in FLOORS.items()
    }
    wrong = dict(zip(("psnr", "mse"), scored(9.5, images, attack, "wrong", *where), strict=True))
    tree = {
        "schema_version": 1,
        "revision": 1,
        "scenario": scenario,
        "data": {
            "name": "cifar10",
            "image_shape": [3, 8, 8],
            "num_classes": 10,
            "content_sha256": "a" * 64,
            "split_hashes": {"prior": "b" * 64, "tune": "c" * 64, "score": "d" * 64},
            "split": "score",
            "sampler": "natural",
            "k": None,
            "batch_size": 1,
            "seed": 0,
        },
        "threat_model": flags,
        "attack": {
            "name": attack,
            "title": title or f"Attack {attack}",
            "family": family,
            "fidelity": "unverified",
            "citation": {
                "title": "Inverting Gradients",
                "authors": ["Jonas Geiping", "Michael Moeller"],
                "year": 2020,
                "venue": "NeurIPS",
                "url": "https://example.org/paper",
            },
        },
        "success_psnr": 20.0,
        "submission": {"by": "A. Tester", "at": "2026-01-02T10:00:00+00:00", "note": None},
        "supersedes": None,
        "runs": [run],
        "pictures": [],
        "floors": floors,
        "controls": {"wrong update": wrong} if control else {},
        "images": [
            {
                "run": 0,
                "update_id": f"u{row:04d}",
                "position": 0,
                "image_id": f"cifar10/test/{row:05d}",
                "status": "ok",
                "psnr": psnr[row],
                "mse": mse[row],
                "ssim": 0.5,
                "lpips_alex": None,
                "lpips_vgg": None,
                "psnr_oracle": None,
                "label": row % 10,
                "label_inferred": row % 10 if inferred else None,
                "seed": number("seed", row) + 2**60,
                "gradient_evaluations": 1000.0,
                "seconds": 1.25,
            }
            for row in range(images)
        ],
    }
    return copy.deepcopy(tree | changes)


def private_image(key: object) -> torch.Tensor:
    """A smooth image of 8 x 8 pixels with room around its values, in steps of 8 bits."""
    generator = torch.Generator().manual_seed(number("private", key))
    small = 0.3 + 0.4 * torch.rand(3, 2, 2, generator=generator)
    image = torch.nn.functional.interpolate(small[None], size=(8, 8), mode="bilinear")[0]
    return (255 * image).round() / 255


def with_pictures(tree: Tree, *, side: int = 8) -> tuple[Tree, dict[str, tuple[bytes, bytes]]]:
    """The tree with its pictures, each as far from the private one as its MSE says."""
    files, shown = {}, []
    psnr = [image["psnr"] for image in tree["images"]]
    for row in pictures.chosen(psnr):
        image = tree["images"][row]
        truth = private_image((tree["scenario"], image["update_id"]))
        signs = torch.ones(3, side, side)
        signs.view(-1)[::2] = -1
        found = truth + signs * image["mse"] ** 0.5
        if found.min() < 0 or found.max() > 1:  # too far: a flat shift towards the middle would not do either
            continue
        name = f"{image['update_id']}-0.png"
        files[name] = pictures.encode(found), pictures.encode(truth)
        hashes = [pictures.digest(content) for content in files[name]]
        shown.append({"image": row, "file": name, "sha256": hashes[0], "private_sha256": hashes[1]})
    return tree | {"pictures": shown}, files


def write_entry(results: Path, tree: Tree) -> Path:
    """Write an entry with its pictures where it belongs."""
    tree, files = with_pictures(tree)
    content = Entry.model_validate_json(json.dumps(tree))
    file = results / place(content)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(dump(content))
    for name, (found, truth) in files.items():
        for folder, each in ((picture_folder(file), found), (file.parent / PRIVATE, truth)):
            folder.mkdir(exist_ok=True)
            (folder / name).write_bytes(each)
    return file
