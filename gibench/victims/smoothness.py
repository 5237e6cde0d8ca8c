"""Which parts of a victim are not smooth, and the attacker's own copy in which they are.

Where an activation has a kink, the update, which holds the activation's derivative, jumps as a pixel crosses it: no
step of Gauss-Newton kind foresees that. An attacker may smooth its own copy of the network and sharpen it again as the
search comes closer.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from gibench.errors import ConfigurationError, RefusalError
from gibench.seeding import uniform_rows
from gibench.victims.base import Victim
from gibench.victims.soft_functions import SOFT

_COMPARISONS = "eq ne gt ge lt le"
_STEPS = "round floor ceil trunc frac fmod remainder sign sgn heaviside argmax argmin floor_divide"
_CHOICES = "max min amax amin aminmax maximum minimum fmax fmin sort topk kthvalue median nanmedian mode cummax cummin"
_BENT = "relu leaky_relu hardtanh hardswish hardsigmoid hardshrink softshrink threshold prelu abs clamp"
_RENAMED = {
    "_prelu_kernel": "prelu",
    "rrelu_with_noise": "rrelu",
    "clamp_min": "clamp",
    "clamp_max": "clamp",
    "max_pool2d_with_indices": "max_pool2d",
    "max_pool3d_with_indices": "max_pool3d",
    "mkldnn_max_pool2d": "max_pool2d",
    "mkldnn_max_pool3d": "max_pool3d",
}
_POOLS = "max_pool1d max_pool2d max_pool3d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d"
_ROUGH = frozenset(f"{_BENT} {_CHOICES} {_STEPS} {_COMPARISONS} {_POOLS} rrelu fractional_max_pool3d".split())


def rough_parts(victim: Victim) -> list[str]:
    """Find what is not continuously differentiable in the image, in the order of a forward pass.

    One image runs through the victim, gray with noise, while each operation is read, so that functional calls are
    found as well as layers: activations with a kink, max pooling, clamps, absolute values, maxima, sorting, rounding
    and comparisons of what depends on the image. Scripted modules, which cannot be read, are reported as such.

    What depends on the weights alone does not count: it is the same for every image. Smooth are the usual activations
    without a kink, ELU and CELU too, whose second derivative jumps, and normalizations. Softsign, which is smooth, is
    reported for its absolute value. The first call in a process takes seconds, in which PyTorch loads its dispatcher.

    Args:
        victim: in the mode in which the client runs it; its buffers and the global random state stay as they are.

    Returns:
        One line for each module and operation: "network.act1 (relu)", "network.layer1.0 (relu)" for a call in the
        forward of a module that has others inside. Empty for a smooth victim.
    """
    reference = victim.mean
    image = _noisy_gray(victim).requires_grad_()
    names = {id(module): name for name, module in reversed(list(victim.named_modules()))}
    running: list[str] = [""]

    def enter(module: nn.Module, _inputs: object) -> None:
        running.append(names.get(id(module), running[-1]))

    def leave(_module: nn.Module, _inputs: object, _output: object) -> None:
        running.pop()

    recorder = _Recorder(running)
    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    devices = [reference.device] if reference.is_cuda else []
    try:
        with torch.random.fork_rng(devices=devices), torch.enable_grad(), recorder:
            functional_call(victim, _state(victim), (image,))
    finally:
        for hook in hooks:
            hook.remove()
    scripted = [name for name, module in victim.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    outermost = [name for name in scripted if name.rpartition(".")[0] not in scripted]
    return [part for part in recorder.found if part.split(" ")[0] not in scripted] + [
        f"{name} (scripted)" for name in outermost
    ]


def _noisy_gray(victim: Victim) -> Tensor:
    return 0.25 + 0.5 * uniform_rows(victim.image_shape, (0,), "smoothness").to(victim.mean)


def _state(victim: Victim) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights without a graph, and buffers of one's own."""
    weights = {name: value.detach() for name, value in victim.named_parameters()}
    return weights, {name: value.clone() for name, value in victim.named_buffers()}


class _Recorder(TorchDispatchMode):
    """Notes each rough operation on a tensor that depends on the image.

    Args:
        running: names of the modules that run at present, the innermost last.
    """

    def __init__(self, running: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running = running
        self.found: dict[str, None] = {}

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - an operator overload
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run `func`."""
        name = func.overloadpacket.__name__
        name = _RENAMED.get(name.removesuffix("_"), name.removesuffix("_"))
        if (name in _ROUGH or (name == "elu" and _has_kink(*args[1:]))) and any(
            isinstance(value, Tensor) and value.requires_grad for value in pytree.tree_leaves((args, kwargs))
        ):
            self.found[f"{self.running[-1] or 'the victim'} ({name})"] = None
        return func(*args, **(kwargs or {}))


def _has_kink(alpha: float = 1.0, _scale: float = 1.0, input_scale: float = 1.0) -> bool:
    """Whether scale * (x for x > 0, alpha * (e^(input_scale * x) - 1) else) has one; CELU and SELU are such, too."""
    return not math.isclose(alpha * input_scale, 1.0, rel_tol=1e-9)


def softened(victim: Victim, sharpness: float, *, relative: bool = False) -> Victim:
    r"""Return the victim with smooth functions in place of those with a kink: the attacker's own copy.

    With :math:`s(x) = \log(1 + e^{\beta x}) / \beta` for sharpness :math:`\beta`, in layers and functional calls alike:

    ======================================  ==========================================  =======================
    published                               softened                                    off by at most
    ======================================  ==========================================  =======================
    ReLU                                    s(x)                                        log(2) / beta
    LeakyReLU, PReLU of slope a             a x + (1 - a) s(x)                          \|1 - a\| log(2) / beta
    ReLU6, hardtanh, clamp to a number      a + s(x - a) - s(x - b)                     log(2) / beta
    max pooling over k pixels (2d)          log(sum exp(beta x)) / beta                 log(k) / beta
    ======================================  ==========================================  =======================

    Each lies above what it replaces (clamping from above, below), so that the errors of deep networks add up.

    Args:
        victim: the weights, their names and the buffers stay what they are, and are shared with the copy.
        sharpness: beta > 0, in units of one over a pre-activation; infinity returns the victim itself, and so does a
            victim that is smooth already.
        relative: whether it is in units of one over the root mean square of what each of these functions takes, layer
            by layer, when the victim sees a gray image with noise: pre-activations are 0.02 in one victim and 100 in
            another, and grow tenfold within one.

    Raises:
        ConfigurationError: for a sharpness that is not positive.
        RefusalError: naming what remains rough, such as adaptive max pooling, absolute values or sorting.
    """
    if not sharpness > 0:
        raise ConfigurationError(f"sharpness is {sharpness}; make it positive, or infinite for the victim itself.")
    if math.isinf(sharpness) or not rough_parts(victim):
        return victim
    soft = Softened(victim, sharpness, scales=_scales(victim) if relative else None)
    if left := rough_parts(soft):
        raise RefusalError(
            f"{victim.architecture} cannot be softened: {', '.join(left[:3])}{', ...' if len(left) > 3 else ''}; "
            "choose a victim without it, or attack this one as it is."
        )
    return soft


class Softened(Victim):
    """What `softened` returns: modules are copied, parameters and buffers are the victim's own.

    Args:
        victim: to soften.
        sharpness: positive and finite.
        scales: by which it is divided, one for each call of a function in the order of a forward pass; None is 1.
    """

    def __init__(self, victim: Victim, sharpness: float, *, scales: Sequence[float] | None = None) -> None:
        shared: dict[int, Any] = {id(tensor): tensor for tensor in [*victim.parameters(), *victim.buffers()]}
        super().__init__(
            copy.deepcopy(victim.network, shared),
            architecture=f"{victim.architecture}, softened at {sharpness:g}",
            image_shape=victim.image_shape,
            num_classes=victim.num_classes,
            initialization=victim.initialization,
            training_steps=victim.training_steps,
            stage=victim.stage,
        )
        self.mean, self.std = victim.mean, victim.std
        self.training = victim.training
        self.sharpness = sharpness
        self.scales = None if scales is None else tuple(scales)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images in [0, 1]."""
        with _Soften(self.sharpness, self.scales):
            return super().forward(images)


class _Soften(TorchFunctionMode):
    """Within this context, functions with a kink run as their smooth counterparts."""

    def __init__(self, sharpness: float, scales: Sequence[float] | None) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.scales = None if scales is None else iter(scales)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run `func` or its counterpart."""
        kwargs = kwargs or {}
        soft = SOFT.get(func)
        if soft is None:
            return func(*args, **kwargs)
        scale = 1.0 if self.scales is None else next(self.scales)
        found = soft(self.sharpness / scale, *args, **kwargs)
        return func(*args, **kwargs) if found is None else found


def _scales(victim: Victim) -> list[float]:
    """The root mean square of what each softened function takes, in the order of a forward pass of one image."""
    measure = _Measure()
    devices = [victim.mean.device] if victim.mean.is_cuda else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), measure:
        functional_call(victim, _state(victim), (_noisy_gray(victim),))
    return measure.found


class _Measure(TorchFunctionMode):
    """Within this context, the scale of what functions with a kink take is noted, and nothing changed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[float] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run `func`."""
        kwargs = kwargs or {}
        if func in SOFT:
            taken = args[0] if args else kwargs["input"]
            size = float(taken.double().square().mean().sqrt())
            self.found.append(size if 0 < size < math.inf else 1.0)
        return func(*args, **kwargs)
