"""Data sets as LightningDataModules of private batches, each in three disjoint splits."""

from gibench.data.arrays import Arrays
from gibench.data.base import ImageDataModule
from gibench.data.cifar10 import CIFAR10
from gibench.data.mnist import MNIST
from gibench.data.photographs import Photographs
from gibench.data.splits import Split, SplitName

__all__ = ["CIFAR10", "MNIST", "Arrays", "ImageDataModule", "Photographs", "Split", "SplitName"]
