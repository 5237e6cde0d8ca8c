"""What all tests share: real data and weights where they are, deterministic property tests, few threads."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("gibench", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("gibench")
torch.set_num_threads(min(2, torch.get_num_threads()))  # the tests' tensors are small: more threads make them slower


@pytest.fixture(scope="session")
def cifar10_root() -> Path:
    """The folder that holds cifar10.npz."""
    root = os.environ.get("GIBENCH_DATA")
    if root is None or not (Path(root) / "cifar10.npz").is_file():
        pytest.skip("needs CIFAR-10: set GIBENCH_DATA to a folder with cifar10.npz (train_images, ..., uint8 NHWC).")
    return Path(root)


@pytest.fixture(scope="session")
def flowers17() -> Path:
    """The file flowers17.npz."""
    root = os.environ.get("GIBENCH_DATA")
    if root is None or not (Path(root) / "flowers17.npz").is_file():
        pytest.skip("needs Flowers-17: set GIBENCH_DATA to a folder with flowers17.npz (images, labels, uint8 NHWC).")
    return Path(root) / "flowers17.npz"


@pytest.fixture(scope="session")
def weights_root() -> Path:
    """The folder that holds the LPIPS backbones and other real weights."""
    root = os.environ.get("GIBENCH_WEIGHTS")
    if root is None or not Path(root).is_dir():
        pytest.skip("needs real weights: set GIBENCH_WEIGHTS to the folder of the safetensors files.")
    return Path(root)
