"""Generative priors: models that map a latent through features to an image, and their training."""

from generators.card import load_generator
from generators.dcgan import DCGAN
from generators.discriminators import DCGANDiscriminator
from generators.fitting import fit_generator
from generators.training import GANSettings, GANTraining, VAESettings, VAETraining
from generators.vae import VAEDecoder, VAEEncoder

__all__ = [
    "DCGAN",
    "DCGANDiscriminator",
    "GANSettings",
    "GANTraining",
    "VAEDecoder",
    "VAEEncoder",
    "VAESettings",
    "VAETraining",
    "fit_generator",
    "load_generator",
]
