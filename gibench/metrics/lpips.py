"""The networks of LPIPS, made of weights that are there, or a reason why there is none; never a random backbone.

torchmetrics carries the linear heads in its package but downloads the backbone; here the backbone comes from a file.
Source of the metric: Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", CVPR 2018.
"""

import hashlib
import http.client
import os
import pickle
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal
from urllib.request import Request, urlopen

import torch
import torchvision
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _LPIPS

from gibench.errors import WeightsError

Net = Literal["alex", "vgg"]

SECONDS_WITHOUT_ANSWER = 5.0
PIXELS_AT_ONCE = 2**16


@dataclass(frozen=True)
class _Backbone:
    """Where a backbone lies, how small an image it takes (px per side), and its LPIPS on the pair of `_probe`."""

    architecture: str
    file: str
    sha256: str
    smallest_side: int
    probe: float


BACKBONES: dict[Net, _Backbone] = {
    "alex": _Backbone(
        architecture="alexnet",
        file="lpips_backbone_alexnet_features_fp16.safetensors",
        sha256="4b516eacf362463239b1182858c9ee8064c78e1d061c28b707fb0859ec60bd85",
        smallest_side=31,
        probe=0.5110,
    ),
    "vgg": _Backbone(
        architecture="vgg16",
        file="lpips_backbone_vgg16_features_fp16.safetensors",
        sha256="fa8663e4fa6fcbc3c539798e735197771922a94f77b2a398642f003ed7b86be1",
        smallest_side=16,
        probe=0.5170,
    ),
}


def load_network(net: Net, *, download: bool = True) -> nn.Module | str:
    """Return the LPIPS network `net` in evaluation mode on the CPU, or one line that says why it is not available.

    Looked for in this order: the folder GIBENCH_WEIGHTS, torchvision's cache, torchvision's download (where `download`;
    it is given up when nothing is heard for 5 s). Built once per process.

    Raises:
        WeightsError: for a file in GIBENCH_WEIGHTS that is not the recorded one, and for a network whose LPIPS on a
            fixed pair of images is not the recorded one (rule R9).
    """
    folder = os.environ.get("GIBENCH_WEIGHTS")
    return _load_network(net, Path(folder) if folder else None, Path(torch.hub.get_dir()), download)


def distance(network: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """LPIPS of each pair: images (N, 3, H, W) in [0, 1] -> (N,), float64, 0 for equal images, higher is worse.

    Computed in float32 whatever the caller's autocast, in chunks that bound the memory.
    """
    network = network.to(first.device)
    size = max(1, PIXELS_AT_ONCE // (first.shape[-2] * first.shape[-1]))
    with torch.no_grad(), torch.autocast(first.device.type, enabled=False):
        chunks = zip(torch.split(first.float(), size), torch.split(second.float(), size), strict=True)
        return torch.cat([network(one, two, normalize=True).flatten() for one, two in chunks]).double()


@cache
def _load_network(net: Net, folder: Path | None, hub: Path, download: bool) -> nn.Module | str:
    backbone = BACKBONES[net]
    features = _from_folder(backbone, folder) or _from_torchvision(backbone, hub, download)
    if isinstance(features, str):
        return features
    # torchvision draws a random backbone, which is overwritten below; that must not move the user's random state.
    with torch.random.fork_rng(devices=[]):
        network: nn.Module = _LPIPS(net=net, pnet_rand=True)
    slices = network.get_submodule("net")
    slices.load_state_dict({name: features["features." + name.split(".", 1)[1]] for name in slices.state_dict()})
    measured = distance(network, *_probe()).item()
    if abs(measured - backbone.probe) > 1e-3:
        raise WeightsError(
            f"LPIPS with {backbone.architecture} says {measured:.4f} instead of {backbone.probe:.4f} on its test pair; "
            f"its weights are damaged: delete {backbone.architecture}* in {hub / 'checkpoints'} or set GIBENCH_WEIGHTS."
        )
    return network


def _from_folder(backbone: _Backbone, folder: Path | None) -> dict[str, Tensor] | None:
    if folder is None or not (folder / backbone.file).is_file():
        return None
    content = (folder / backbone.file).read_bytes()
    if hashlib.sha256(content).hexdigest() != backbone.sha256:
        raise WeightsError(
            f"{folder / backbone.file} is not the recorded file (sha256 differs); copy it again or remove it."
        )
    return load_safetensors(content)


def _from_torchvision(backbone: _Backbone, hub: Path, download: bool) -> dict[str, Tensor] | str:
    url = torchvision.models.get_model_weights(backbone.architecture).DEFAULT.url
    to_do = f"put {backbone.file} into the folder GIBENCH_WEIGHTS, or run once with a network"
    if not download and not (hub / "checkpoints" / url.rsplit("/", 1)[1]).is_file():
        return f"no {backbone.architecture} weights and downloads are off: {to_do}."
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS_WITHOUT_ANSWER)  # torch.hub itself would wait for ever
    try:
        if not (hub / "checkpoints" / url.rsplit("/", 1)[1]).is_file():
            # Asked first, because torch.hub announces a download on the terminal before it knows of a network.
            urlopen(Request(url, method="HEAD"), timeout=SECONDS_WITHOUT_ANSWER).close()  # noqa: S310 - torchvision's https
        state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
            url, model_dir=str(hub / "checkpoints"), map_location="cpu", check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, http.client.HTTPException) as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        return f"no {backbone.architecture} weights ({cause}): {to_do}."
    finally:
        socket.setdefaulttimeout(timeout)
    return state


def _probe() -> tuple[Tensor, Tensor]:
    """A horizontal and a vertical ramp from black to white, (1, 3, 64, 64) each."""
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    return ramp, ramp.transpose(2, 3)
