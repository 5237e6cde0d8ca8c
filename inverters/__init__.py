"""Learned attacks: networks that read images out of updates, and their training."""

from inverters.convolutional import Convolutional
from inverters.features import FeatureSettings, UpdateFeatures
from inverters.fitting import fit_inverter
from inverters.learning_to_invert import LearningToInvert
from inverters.mlp import MLP
from inverters.pairs import Pairs
from inverters.set_inverter import SetInverter
from inverters.training import InverterTraining

__all__ = [
    "MLP",
    "Convolutional",
    "FeatureSettings",
    "InverterTraining",
    "LearningToInvert",
    "Pairs",
    "SetInverter",
    "UpdateFeatures",
    "fit_inverter",
]
