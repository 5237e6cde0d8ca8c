"""Generative priors: models that map a latent through features to an image, and their training."""
