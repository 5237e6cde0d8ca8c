"""PSNR, SSIM, MSE and LPIPS of each reconstructed image against its private one (rules R9 and R18)."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from gibench.errors import ConfigurationError, NonFiniteError, ShapeError
from gibench.metrics.lpips import BACKBONES, Net, distance, load_network
from gibench.types import check_images

PSNR_CEILING = 100.0
AVAILABLE = "available"
NOT_REQUESTED = "not requested."
_SSIM_SMALLEST_SIDE = 6  # half of the 11-px window is mirrored at the border
_SSIM_PIXELS_AT_ONCE = 2**12


class ImageQuality:
    r"""The scores of N images, one number per image and metric; nothing is pooled over images.

    .. math:: MSE = \frac{1}{CHW}\lVert x - \hat x \rVert_2^2, \qquad PSNR = \min(100, -10 \log_{10} MSE)

    `psnr`: dB at data range 1, at most 100 (exact recoveries would be infinite), higher is better.
    `ssim`: Wang et al. 2004 as torchmetrics computes it, Gaussian window of 11 px with sigma 1.5, k1 = 0.01, k2 = 0.03,
    range 1, averaged over channels and ALL pixels, the border mirrored; in [-1, 1], higher is better. Implementations
    that leave out a border of 5 px, like scikit-image, say 0.13 of CIFAR-10's mean image where this one says 0.19.
    `mse`: in [0, 1], lower is better.
    `lpips_alex`, `lpips_vgg`: version 0.1, float32, on images as they are (no resizing; gray is repeated to three
    channels), lower is better. AlexNet takes at least 31 px per side and VGG16 at least 16.

    A metric that is not available is None for all images, never a guess; `availability` says why.

    Args:
        lpips: the LPIPS networks wanted.
        ssim: whether SSIM is wanted; it costs as much as all else on 32 px.
        download: whether torchvision may download a backbone that is neither in GIBENCH_WEIGHTS nor in its cache.

    Raises:
        WeightsError: when a backbone is there but is not the right one.
        ConfigurationError: for a network that is neither "alex" nor "vgg".
    """

    def __init__(self, *, lpips: Sequence[Net] = ("alex", "vgg"), ssim: bool = True, download: bool = True) -> None:
        if unknown := set(lpips) - set(BACKBONES):
            raise ConfigurationError(f"unknown LPIPS networks {sorted(unknown)}; choose among {list(BACKBONES)}.")
        self._networks: dict[Net, nn.Module | str] = {
            net: load_network(net, download=download) if net in lpips else NOT_REQUESTED for net in BACKBONES
        }
        self._ssim = ssim

    @property
    def availability(self) -> dict[str, str]:
        """Name of each metric -> "available" or the reason why its column is empty, for images of sufficient size."""
        reasons = {f"lpips_{net}": found for net, found in self._networks.items() if isinstance(found, str)}
        reasons |= {} if self._ssim else {"ssim": NOT_REQUESTED}
        return {name: reasons.get(name, AVAILABLE) for name in ("psnr", "ssim", "mse", "lpips_alex", "lpips_vgg")}

    def availability_for(self, image_shape: Sequence[int]) -> dict[str, str]:
        """Like `availability`, for images of shape (C, H, W)."""
        channels, side = image_shape[0], min(image_shape[1:])
        obstacles = {}
        if side < _SSIM_SMALLEST_SIDE:
            obstacles["ssim"] = f"images of {side} px are too small; SSIM needs {_SSIM_SMALLEST_SIDE} px per side."
        for net, backbone in BACKBONES.items():
            needed = backbone.smallest_side
            if channels not in (1, 3):
                obstacles[f"lpips_{net}"] = f"images have {channels} channels; LPIPS takes 1 or 3."
            elif side < needed:
                obstacles[f"lpips_{net}"] = (
                    f"images of {side} px are too small; lpips_{net} needs {needed} px per side."
                )
        return {name: obstacles.get(name, why) if why == AVAILABLE else why for name, why in self.availability.items()}

    @torch.no_grad()
    def __call__(self, reconstructed: Tensor, private: Tensor) -> dict[str, Tensor | None]:
        """Score images (N, C, H, W) in [0, 1] -> name -> (N,), float64, on the CPU, or None where not available.

        LPIPS runs on the device of the images, the others on the CPU.

        Raises:
            ShapeError, ImageRangeError, NonFiniteError: for images that break the line above. Score a failed
                reconstruction as the mean-image floor instead (rule R7).
        """
        _check("reconstructed", reconstructed)
        _check("private", private)
        if reconstructed.shape != private.shape:
            shapes = f"{tuple(reconstructed.shape)} and {tuple(private.shape)}"
            raise ShapeError(f"reconstructed and private images have shapes {shapes}; pass the same (N, C, H, W).")
        usable = {name for name, why in self.availability_for(private.shape[1:]).items() if why == AVAILABLE}
        first, second = reconstructed.cpu().double(), private.cpu().double()  # on any device the same numbers
        scores: dict[str, Tensor | None] = {
            "psnr": psnr(first, second),
            "ssim": _ssim(first, second) if "ssim" in usable else None,
            "mse": (first - second).square().mean((1, 2, 3)),
            "lpips_alex": None,
            "lpips_vgg": None,
        }
        for net, network in self._networks.items():
            if not isinstance(network, str) and f"lpips_{net}" in usable:
                scores[f"lpips_{net}"] = distance(network, _to_rgb(reconstructed), _to_rgb(private)).cpu()
        return scores


def psnr(reconstructed: Tensor, private: Tensor) -> Tensor:
    """PSNR in dB of each pair of images (N, C, H, W) in [0, 1] -> (N,), float64, on the CPU, at most 100; NaN stays."""
    value = peak_signal_noise_ratio(
        reconstructed.cpu().double(), private.cpu().double(), data_range=1.0, dim=(1, 2, 3), reduction="none"
    )
    return value.clamp(max=PSNR_CEILING)


def _ssim(first: Tensor, second: Tensor) -> Tensor:
    # float32 is within 1e-6 of float64 and 15 times as fast; small chunks stay in the processor's cache.
    size = max(1, _SSIM_PIXELS_AT_ONCE // (first.shape[-2] * first.shape[-1]))
    pairs = zip(torch.split(first.float(), size), torch.split(second.float(), size), strict=True)
    with torch.autocast("cpu", enabled=False):
        chunks = [structural_similarity_index_measure(*pair, data_range=1.0, reduction="none") for pair in pairs]
    return torch.cat(cast(list[Tensor], chunks)).double()  # cast: they are tuples only where the whole map is asked for


def _to_rgb(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1)


def _check(name: str, images: Tensor) -> None:
    if images.ndim != 4:
        raise ShapeError(f"{name} images have shape {tuple(images.shape)}; pass (N, C, H, W).")
    if not torch.isfinite(images).all():
        raise NonFiniteError(
            f"{name} images hold NaN or infinity; score a failed reconstruction as the mean-image floor."
        )
    check_images(images[None])
