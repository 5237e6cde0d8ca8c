"""Victims: one architecture per file, each a function that returns a `Victim`; `training` trains them."""

from gibench.victims.activations import Activation, activation_layer
from gibench.victims.base import Stage, Victim, seeded
from gibench.victims.by_path import by_path
from gibench.victims.cnn import cnn
from gibench.victims.cnn6 import BinaryLogits, cnn6, fcn3
from gibench.victims.convbig import convbig
from gibench.victims.convnet import convnet64
from gibench.victims.lenet import lenet
from gibench.victims.mlp import mlp
from gibench.victims.precode import VariationalBottleneck, divergence, find_bottleneck, precode_lenet, precode_mlp
from gibench.victims.resnet import lti_resnet20, resnet18, resnet20, resnet20_4
from gibench.victims.smoothness import rough_parts, softened
from gibench.victims.weights import load_weights, save_weights

__all__ = [
    "Activation",
    "BinaryLogits",
    "Stage",
    "VariationalBottleneck",
    "Victim",
    "activation_layer",
    "by_path",
    "cnn",
    "cnn6",
    "convbig",
    "convnet64",
    "divergence",
    "fcn3",
    "find_bottleneck",
    "lenet",
    "load_weights",
    "lti_resnet20",
    "mlp",
    "precode_lenet",
    "precode_mlp",
    "resnet18",
    "resnet20",
    "resnet20_4",
    "rough_parts",
    "save_weights",
    "seeded",
    "softened",
]
