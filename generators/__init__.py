"""Generative priors: models that map a latent through features to an image, and their training."""

from generators.card import load_generator
from generators.dcgan import DCGAN
from generators.discriminators import DCGANDiscriminator, ProjectionDiscriminator
from generators.fitting import fit_generator
from generators.foreign import Foreign
from generators.giml import fit_giml
from generators.pretrained import by_path, pretrained, pretrained_encoder
from generators.range_limit import RangeLimit
from generators.residual_gan import ResidualGAN
from generators.taef2 import TAEF2, TAEF2Encoder
from generators.training import GANSettings, GANTraining, VAESettings, VAETraining
from generators.vae import VAEDecoder, VAEEncoder

__all__ = [
    "DCGAN",
    "TAEF2",
    "DCGANDiscriminator",
    "Foreign",
    "GANSettings",
    "GANTraining",
    "ProjectionDiscriminator",
    "RangeLimit",
    "ResidualGAN",
    "TAEF2Encoder",
    "VAEDecoder",
    "VAEEncoder",
    "VAESettings",
    "VAETraining",
    "by_path",
    "fit_generator",
    "fit_giml",
    "load_generator",
    "pretrained",
    "pretrained_encoder",
]
