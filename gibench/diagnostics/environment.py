"""The doctor: what this machine has, what is missing and how to get it, and whether a model can be attacked."""

import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gibench.data import CIFAR10, MNIST, ImageDataModule, Photographs
from gibench.diagnostics.second_derivatives import probe_second_derivatives
from gibench.errors import GibenchError
from gibench.metrics.lpips import BACKBONES, Net, load_network
from gibench.victims.by_path import by_path

Level = Literal["ok", "missing", "warning", "error"]

STACK = ("torch", "torchvision", "lightning", "torchmetrics", "jsonargparse", "numpy", "scipy", "mmh3", "wandb")
COMPROMISED = {"lightning": ("2.6.2", "2.6.3")}
"""Releases that carried malicious code (GHSA-w37p-236h-pfx3)."""

_STYLE: dict[Level, str] = {"ok": "green", "missing": "yellow", "warning": "bold yellow", "error": "bold red"}


class Finding(NamedTuple):
    """One line of the doctor's report; only an "error" makes `gibench doctor` fail."""

    topic: str
    name: str
    value: str
    level: Level = "ok"


def doctor(model: str | None = None, *, image_size: int = 64) -> int:
    """Print what `environment_report` finds and return the exit code: 1 if the model cannot be attacked, else 0.

    Args:
        model: dotted path of a callable with an argument `num_classes` that returns a network, for example
            torchvision.models.resnet18.
        image_size: height and width (px) of the images with which the model is tried.
    """
    findings = list(environment_report(model, image_size=image_size))
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        level = Text(finding.level, style=_STYLE[finding.level])
        table.add_row(finding.topic, finding.name, level, Text(finding.value, overflow="fold"))
    Console().print(table)
    return int(any(finding.level == "error" for finding in findings))


def environment_report(model: str | None = None, *, image_size: int = 64) -> Iterator[Finding]:
    """Yield a finding per device, package, data set and set of weights, and one for `model` where it is given."""
    yield from _devices()
    yield from _packages()
    for data in (Photographs(), CIFAR10(), MNIST()):
        yield _data_set(data)
    for net in BACKBONES:
        yield _lpips(net)
    if model is not None:
        yield _model(model, (3, image_size, image_size))


def package_versions() -> dict[str, str]:
    """The stack's installed versions, "not installed" where a package is missing."""
    found = {}
    for package in STACK:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _devices() -> Iterator[Finding]:
    threads = f"{torch.get_num_threads()} threads on {os.cpu_count()} cores"
    yield Finding("device", "cpu", f"{threads}, {_memory()} of memory")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding("device", f"cuda:{index}", f"{properties.name}, {_gibibytes(properties.total_memory)} of memory")
    if torch.backends.mps.is_available():
        yield Finding("device", "mps", "Apple GPU")
    elif not torch.cuda.is_available():
        yield Finding("device", "gpu", "none; run suites with --size small", "missing")


def _packages() -> Iterator[Finding]:
    yield Finding("package", "python", f"{platform.python_version()} on {platform.platform()}")
    for package, installed in package_versions().items():
        if installed in COMPROMISED.get(package, ()):
            warning = (
                f"{installed} is a compromised release (GHSA-w37p-236h-pfx3): remove it and change your credentials"
            )
            yield Finding("package", package, warning, "warning")
        else:
            yield Finding("package", package, installed, "missing" if installed == "not installed" else "ok")


def _data_set(data: ImageDataModule) -> Finding:
    try:
        pools = data.collect().pools
    except GibenchError as error:
        return Finding("data", data.name, str(error), "missing")
    return Finding(
        "data", data.name, ", ".join(f"{len(pool.labels):,} {split}" for split, pool in pools.items()) + " images"
    )


def _lpips(net: Net) -> Finding:
    name = f"lpips_{net}"
    try:
        network = load_network(net, download=False)
    except GibenchError as error:
        return Finding("weights", name, str(error), "warning")
    if isinstance(network, str):
        return Finding("weights", name, network, "missing")
    return Finding("weights", name, "there, and right on the test pair")


def _model(path: str, image_shape: tuple[int, int, int]) -> Finding:
    name = path.rpartition(".")[2]
    device = "cuda" if torch.cuda.is_available() else "cpu"  # attention picks another kernel on each
    try:
        victim = by_path(path, image_shape=image_shape).to(device)
        probe_second_derivatives(victim, image_shape, victim.num_classes)
    except GibenchError as error:
        return Finding("model", name, str(error), "error")
    parameters = sum(parameter.numel() for parameter in victim.parameters())
    return Finding("model", name, f"{parameters:,} parameters; second derivatives at {image_shape} on {device}")


def _memory() -> str:
    if sys.platform == "win32":
        return "unknown size"
    return _gibibytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _gibibytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
