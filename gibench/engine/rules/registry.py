"""Which rule serves which layer: by exact type, because a subclass may compute something else."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gibench.engine.rules.base import Rule, UnsupportedLayerError
from gibench.engine.rules.convolution import ConvolutionRule
from gibench.engine.rules.linear import LinearRule
from gibench.engine.rules.normalization import BatchNormRule, GroupNormRule, LayerNormRule

_RULES: dict[type[nn.Module], type[Rule[Any]]] = {
    nn.Linear: LinearRule,
    nn.Conv1d: ConvolutionRule,
    nn.Conv2d: ConvolutionRule,
    nn.Conv3d: ConvolutionRule,
    nn.BatchNorm1d: BatchNormRule,
    nn.BatchNorm2d: BatchNormRule,
    nn.BatchNorm3d: BatchNormRule,
    nn.GroupNorm: GroupNormRule,
    nn.LayerNorm: LayerNormRule,
}


def is_layer(module: nn.Module) -> bool:
    """Whether a module needs a rule: it has parameters of its own, or it mixes the samples of a batch."""
    return bool(list(module.parameters(recurse=False))) or isinstance(module, _BatchNorm)


def rule_of(name: str, module: nn.Module) -> Rule[Any]:
    """Return the rule of a layer.

    Raises:
        UnsupportedLayerError: naming the layer.
    """
    rule = _RULES.get(type(module))
    if rule is None:
        raise UnsupportedLayerError(f"{name} is {type(module).__name__}, which has no layer rule.")
    if "forward" in vars(module):
        raise UnsupportedLayerError(f"{name} has a forward of its own, which its layer rule does not know.")
    more = {parameter for parameter, _ in module.named_parameters()} - {"weight", "bias"}
    if more:
        raise UnsupportedLayerError(f"{name} has the parameter {min(more)}, which its layer rule does not know.")
    try:
        return rule(module)
    except UnsupportedLayerError as error:
        raise UnsupportedLayerError(f"{name}: {error}") from error
