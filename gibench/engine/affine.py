"""Normalizations with their weight applied apart, because PyTorch differentiates the two wrongly under `vmap`."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_NORMALIZATIONS = {F.layer_norm, F.instance_norm, F.batch_norm}


class SeparateAffine(TorchFunctionMode):
    """Within this context, normalizations run without weight and bias, which follow as a product and a sum.

    The same numbers. PyTorch 2.15's own double backward is wrong under `vmap` where a weight is differentiated:
    statistics count as constants there, and image derivatives are off by percents; plain autograd is right.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run `func`."""
        if func not in _NORMALIZATIONS:
            return func(*args, **(kwargs or {}))
        given = inspect.signature(func).bind(*args, **(kwargs or {})).arguments
        weight, bias = given.pop("weight", None), given.pop("bias", None)
        running = given.get("running_mean")
        if running is not None:  # vmap takes no mixed types
            given["input"] = given["input"].to(running.dtype)
        output: Tensor = func(**given)
        if func is not F.layer_norm:
            shape = (-1, *[1] * (output.ndim - 2))
            weight, bias = (None if values is None else values.reshape(shape) for values in (weight, bias))
        if weight is not None:
            output = output * weight
        return output if bias is None else output + bias
