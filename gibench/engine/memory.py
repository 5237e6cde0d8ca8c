"""How much memory one update costs, so that attacks can keep to a stated budget."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from gibench.victims import Victim

GIB = 2**30

BUDGET = 4 * GIB
"""Bytes that the simulation of the private updates keeps to; an attack states its own."""

# Tensors of the size of the parameters, and of the activations, alive at the peak of a simulated update and its
# derivative. Chosen above what the peak of resident memory shows for LeNet, the MLP and ResNet-18.
PARAMETER_COPIES = 8
ACTIVATION_COPIES = 16
COPIES_PER_FURTHER_GRADIENT = 3  # of both: the derivative goes back through every local step and every client

MEMINFO = Path("/proc/meminfo")


def bytes_per_update(victim: Victim, batch_size: int, *, gradients: int = 1) -> int:
    """Estimate the peak memory of simulating one update, made of so many `gradients`, and differentiating it."""
    parameters = sum(parameter.numel() for parameter in victim.parameters())
    activations = activations_per_image(victim) * batch_size
    further = COPIES_PER_FURTHER_GRADIENT * (gradients - 1)
    numbers = (PARAMETER_COPIES + further) * parameters + (ACTIVATION_COPIES + further) * activations
    return victim.mean.element_size() * numbers


def activations_per_image(victim: Victim) -> int:
    """Count the numbers that the victim's leaf modules put out for one image."""
    sizes: list[int] = []

    def count(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sizes.append(output.numel())

    leaves = [module for module in victim.modules() if not list(module.children())]
    handles = [leaf.register_forward_hook(count) for leaf in leaves]
    try:
        with torch.no_grad():
            victim(victim.mean.new_full((2, *victim.image_shape), 0.5))
    finally:
        for handle in handles:
            handle.remove()
    return sum(sizes) // 2


def free_bytes(device: torch.device) -> float:
    """Bytes that are free now: on the accelerator, or in memory; half of all memory where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    if MEMINFO.exists():
        for line in MEMINFO.read_text().splitlines():
            name, value = line.split(":")
            if name == "MemAvailable":
                return 1024.0 * int(value.split()[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed; a CPU says so in words alone."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
