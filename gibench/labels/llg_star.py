"""LLG*: LLG that measures on dummy images (Wainakh et al., PoPETs 2022)."""

from typing import Literal, get_args

import torch
from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.labels.measured import Draw, MeasuringRule
from gibench.needs import Needs
from gibench.seeding import generator
from gibench.types import Observation

Dummy = Literal["zeros", "ones", "random"]


class LLGStar(MeasuringRule):
    """Count labels as `LLG` does, with the impact of an image and an offset of each class measured on dummy images.

    For every class, a batch of B dummy images with that label goes through the client's own simulation; `measure` has
    the formulas. As in the published code, whether a class is negative is asked of the sums as they are, and the offset
    is taken off before the others are counted. Labels are in ascending order.

    Dummies are pixels in [0, 1]: black, white, or drawn from U(0, 1), several times over; other code draws N(0, 1) in
    the units of a normalized image. Random ones depend on the class and the repetition alone, so that every update is
    measured alike. Black and white ones are one image where the update is a gradient: B copies have the same mean.

    Args:
        kind: of dummy images.
        repetitions: batches for each class, where they are random; 10 in the paper.

    Raises:
        RefusalError: when the victim has no linear head.
        ThreatModelError: when the batch size is hidden, or the local steps are, which it has to simulate.
    """

    needs = Needs(batch_size=("known",), local_steps=("known",))

    def __init__(self, *, kind: Dummy = "random", repetitions: int = 10) -> None:
        super().__init__()
        if kind not in get_args(Dummy):
            raise ConfigurationError(f"kind is {kind!r}; choose 'zeros', 'ones' or 'random'.")
        if repetitions < 1:
            raise ConfigurationError(f"repetitions is {repetitions}; measure at least once.")
        self.kind = kind
        self.repetitions = repetitions if kind == "random" else 1

    def images(self, observation: Observation, size: int) -> Draw:
        """See `MeasuringRule`."""

        def constant(_label: int, _repetition: int) -> Tensor:
            copies = 1 if observation.threat_model.update == "gradient" else size
            return torch.full((copies, *observation.image_shape), float(self.kind == "ones"))

        def random(label: int, repetition: int) -> Tensor:
            return torch.rand(size, *observation.image_shape, generator=generator("LLG*", label, repetition))

        return random if self.kind == "random" else constant
