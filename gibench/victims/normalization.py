"""Means and standard deviations per channel with which published networks normalize pixels in [0, 1]."""

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
"""Over CIFAR-10's train images: the constants of "Inverting Gradients"."""
CIFAR10_STD = (0.2470, 0.2435, 0.2616)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Over ImageNet's train images: the constants that torchvision's weights expect."""
IMAGENET_STD = (0.229, 0.224, 0.225)
