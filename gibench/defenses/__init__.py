"""Defenses: what a client does to its update, as a conditional density, one file each."""

from gibench.defenses.ats import ATS
from gibench.defenses.base import Defense, Private, Release
from gibench.defenses.density import Density
from gibench.defenses.dp_sgd import DPSGD
from gibench.defenses.gaussian_noise import GaussianNoise
from gibench.defenses.instahide import InstaHide
from gibench.defenses.laplace_noise import LaplaceNoise
from gibench.defenses.magnitude_pruning import MagnitudePruning
from gibench.defenses.mixup import MixUp
from gibench.defenses.precode import Precode
from gibench.defenses.precode_code import CodeFromGradient
from gibench.defenses.quantization import Quantization
from gibench.defenses.random_pruning import RandomPruning
from gibench.defenses.sign_compression import SignCompression
from gibench.defenses.soteria import Soteria

__all__ = [
    "ATS",
    "DPSGD",
    "CodeFromGradient",
    "Defense",
    "Density",
    "GaussianNoise",
    "InstaHide",
    "LaplaceNoise",
    "MagnitudePruning",
    "MixUp",
    "Precode",
    "Private",
    "Quantization",
    "RandomPruning",
    "Release",
    "SignCompression",
    "Soteria",
]
