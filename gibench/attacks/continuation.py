"""Continuation: attack softened copies of a victim with kinks, sharper from one to the next (ours)."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from gibench.attacks.base import Attack
from gibench.attacks.gradient_matching import GradientMatching
from gibench.attacks.posterior import white_box
from gibench.engine.gradient import LocalGradient
from gibench.errors import ConfigurationError, RefusalError
from gibench.progress import unwatched
from gibench.types import Observation, Reconstruction
from gibench.victims import Victim, softened


class Continuation(Attack):
    """Search the victim's softened copies one after the other, each from the answer of the one before.

    Where an activation has a kink, the update jumps as a pixel crosses it, and a least-squares search gets stuck. The
    attacker may put smooth functions in their place in its own copy of the victim (see `gibench.victims.softened`): the
    search is then easy, and its answer off by what the copy gets wrong. As the copy gets sharper, that error falls. The
    last search is on the victim itself.

    Only the first search starts as the attack says, or from its `initial` attack. Of several restarts, the first goes
    on from the best of the search before; the others start anew each time.

    Args:
        attack: what searches, on every copy.
        sharpness: of the copies, rising, relative to the pre-activations of each layer.

    Raises:
        ConfigurationError: for a sharpness that is not positive, or not above the one before.
        RefusalError: when the client does more than one gradient of the victim, or the victim cannot be softened.
    """

    differentiates = True

    def __init__(self, *, attack: GradientMatching, sharpness: Sequence[float] = (1.0, 3.0, 10.0, 30.0)) -> None:
        super().__init__()
        rising = all(low < high for low, high in pairwise(sharpness))
        if not sharpness or not rising or not sharpness[0] > 0 or math.isinf(sharpness[-1]):
            raise ConfigurationError(
                f"sharpness is {[*sharpness]}; name positive, finite numbers, each above the one before."
            )
        self.attack = attack
        self.sharpness = tuple(sharpness)
        self.needs = attack.needs
        self.engine = attack.engine
        self._softened: tuple[Victim, tuple[bool, float, int], list[LocalGradient]] | None = None

    def forward(self, observation: Observation) -> Reconstruction:
        """See `Attack`."""
        self.check(observation.threat_model)
        copies = self._copies(observation)
        soft = [observation.model_copy(update={"simulate": simulate, "victim": simulate.victim}) for simulate in copies]
        with unwatched():
            initial = self.attack.initial
            stages = [self.attack.onward(soft[0], initial(observation)) if initial else self.attack(soft[0])]
            for sharper in soft[1:]:
                stages.append(self.attack.onward(sharper, stages[-1]))
        last = self.attack.onward(observation, stages[-1])
        return last.model_copy(update={"remarks": self._remarks(stages, last)})

    def _remarks(self, stages: Sequence[Reconstruction], last: Reconstruction) -> tuple[str | None, ...] | None:
        """What the searches ran into, each with the sharpness of its copy."""
        told = [(f"sharpness {sharp:g}: ", stage) for sharp, stage in zip(self.sharpness, stages, strict=True)]
        found = [
            "; ".join(
                words + text for words, stage in [*told, ("", last)] if stage.remarks and (text := stage.remarks[row])
            )
            for row in range(len(last.images))
        ]
        return tuple(words or None for words in found) if any(found) else None

    def __getstate__(self) -> dict[str, Any]:
        """Copies of an attack soften for themselves."""
        return {**self.__dict__, "_softened": None}

    def _copies(self, observation: Observation) -> list[LocalGradient]:
        """The softened gradients, which are kept for the next updates of the same client."""
        simulate = observation.simulate
        if not isinstance(simulate, LocalGradient):
            raise RefusalError(
                "continuation softens the gradient of the victim, and this client computes something else; attack it "
                "without."
            )
        victim = white_box(observation)
        versions = sum(tensor._version for tensor in victim.state_dict().values())  # weights may change in place
        kept, key = self._softened, (victim.training, simulate.scale, versions)
        if kept is None or kept[0] is not victim or kept[1] != key:
            copies = [softened(victim, sharpness, relative=True) for sharpness in self.sharpness]
            kept = self._softened = victim, key, [LocalGradient(copy, scale=simulate.scale) for copy in copies]
        return kept[2]
