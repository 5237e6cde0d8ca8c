"""ATS: the client transforms its images by a searched policy (Gao et al., CVPR 2021)."""

from itertools import product
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from gibench.defenses.base import Defense, Private, Release
from gibench.defenses.transformations import OPERATIONS, Operation, apply
from gibench.errors import ConfigurationError
from gibench.likelihoods import Hypothesis, Likelihood
from gibench.seeding import uniform_rows
from gibench.types import Observation, Update
from gibench.victims import Victim

T = TypeVar("T")

LONGEST = 3
"""Operations in a policy, at most."""


class Outcome(NamedTuple):
    """What may be drawn for one image, in the terms of `ATS.draw`, and how probable it is."""

    policy: int
    applied: tuple[bool, bool, bool]
    sign: tuple[int, int, int]
    probability: float


class ATS(Defense):
    """g = g(tau(x)): each image is transformed by up to three operations in a row before the update is computed.

    tau is drawn for each image: one of the policies, and for each of its operations the sign of the magnitude. So
    p(g | x) is a mixture of finitely many Diracs. Policies are applied here, not searched for. The authors' pipeline
    crops and flips images at random besides; here that is no part of the update.

    The list carries a probability for each operation, which the authors' code (github.com/gaow0007/ATSPrivacy, MIT)
    never reads: there every operation of the policy is applied, and so it is in evaluations built on that code. Lost
    borders are black there, and gray after a rotation. We do not round to 8 bits after each operation, as Pillow does.

    Args:
        policy: numbers in `OPERATIONS`, joined by "-"; several policies joined by "+" are a hybrid, of which each image
            gets one, all equally probable.
        target: which images reconstructions are scored against, the "original" or the "transformed" ones, which are
            what the update is of.
        probabilities: "ignored" applies every operation, "listed" applies each with its listed probability.
    """

    def __init__(
        self,
        *,
        policy: str = "7-4-15",
        target: Literal["original", "transformed"] = "original",
        probabilities: Literal["ignored", "listed"] = "ignored",
    ) -> None:
        super().__init__()
        if target not in ("original", "transformed"):
            raise ConfigurationError(f"target is {target!r}; choose 'original' or 'transformed'.")
        if probabilities not in ("ignored", "listed"):
            raise ConfigurationError(f"probabilities is {probabilities!r}; choose 'ignored' or 'listed'.")
        self._policies = tuple(_parse(part, policy) for part in policy.split("+"))
        self._target = target
        self.policy = policy
        self.probabilities: Literal["ignored", "listed"] = probabilities

    def sample(self, private: Private) -> Release:
        """See `Defense`; the randomness is that of `draw`."""
        randomness = self._drawn(private)
        update = private.simulate(self.transform(private.images, randomness), private.labels)
        return Release(update, randomness)

    def assume(self, observation: Observation, distance: Likelihood) -> Hypothesis:
        """See `Defense`.

        Known randomness makes the transformation a part of the simulated update. Without it, the images that explain
        the update are the transformed ones, and nothing is simulated of the defense; `UndoTransformation` goes on.
        """
        if observation.randomness is None:
            return Hypothesis(distance, observation)

        undefended = observation.simulate  # and nothing else of the observation, which is large

        def simulate(images: Tensor, labels: Tensor, **randomness: Tensor) -> Update:
            return undefended(self.transform(images, randomness), labels)

        known = observation.randomness
        return Hypothesis(distance, observation.model_copy(update={"simulate": simulate}), known)

    def check(self, victim: Victim, update: str) -> None:
        """See `Defense`."""
        if victim.image_shape[0] not in (1, 3):
            raise ConfigurationError(
                f"ATS transforms images of 1 or 3 channels, the victim takes {victim.image_shape[0]}; choose another."
            )

    def target(self, private: Private) -> Tensor:
        """See `Defense`."""
        return private.images if self._target == "original" else self.transform(private.images, self._drawn(private))

    def settings(self) -> dict[str, Any]:
        """See `Defense`."""
        return {**super().settings(), "target": self._target}

    def draw(self, images: int, seeds: tuple[int, ...]) -> dict[str, Tensor]:
        """Draw the transformations of `images` images for each of U seeds.

        Returns:
            policy: (U, B), int64, which of the policies. applied: (U, B, 3), bool, which of its operations.
            sign: (U, B, 3), int64, 1 or -1; 1 where an operation has no sign or is not applied.
        """
        uniform = uniform_rows((images, 1 + 2 * LONGEST), seeds, "transformation")
        policy = (uniform[..., 0] * len(self._policies)).long()
        chance = torch.tensor([self._chances(each) for each in self._policies], dtype=uniform.dtype)
        signed = torch.tensor([[step.signed for step in each] + _padding(each, False) for each in self._policies])
        applied = uniform[..., 1 : 1 + LONGEST] < chance[policy]
        minus = applied & signed[policy] & (uniform[..., 1 + LONGEST :] < 0.5)
        return {"policy": policy, "applied": applied, "sign": 1 - 2 * minus.long()}

    def transform(self, images: Tensor, randomness: dict[str, Tensor]) -> Tensor:
        """Transform images (U, B, C, H, W) by what `draw` says; no decision is taken on its values."""
        transformed = images
        for number, policy in enumerate(self._policies):
            changed = images
            for step, operation in enumerate(policy):
                moved = apply(operation, changed, 1)
                if operation.signed:
                    plus = _each(randomness["sign"][..., step] > 0)
                    moved = torch.where(plus, moved, apply(operation, changed, -1))
                changed = torch.where(_each(randomness["applied"][..., step]), moved, changed)
            transformed = torch.where(_each(randomness["policy"] == number), changed, transformed)
        return transformed

    def outcomes(self) -> list[Outcome]:
        """All that can be drawn for one image; the probabilities add up to 1."""
        found = []
        for number, policy in enumerate(self._policies):
            chances = self._chances(policy)
            choices = [
                [(True, sign, chance / 2 if step.signed else chance) for sign in ((1, -1) if step.signed else (1,))]
                + [(False, 1, 1 - chance)]
                for step, chance in zip(policy, chances, strict=False)
            ]
            choices += [[(False, 1, 1.0)]] * (LONGEST - len(policy))
            for first, second, third in product(*choices):
                probability = first[2] * second[2] * third[2] / len(self._policies)
                applied, sign = (first[0], second[0], third[0]), (first[1], second[1], third[1])
                found.append(Outcome(number, applied, sign, probability))
        return [outcome for outcome in found if outcome.probability > 0]

    def agrees(self, randomness: dict[str, Tensor], outcome: Outcome) -> Tensor:
        """Say where `outcome` is what was drawn: (U, B), bool; true for exactly one of `outcomes()`."""
        policy, applied, sign = (randomness[name] for name in ("policy", "applied", "sign"))
        return (
            (policy == outcome.policy)
            & (applied == applied.new_tensor(outcome.applied)).all(-1)
            & (sign == sign.new_tensor(outcome.sign)).all(-1)
        )

    def steps(self, outcome: Outcome) -> list[tuple[Operation, int]]:
        """The operations of an outcome with their signs, in the order in which they are applied."""
        drawn = zip(self._policies[outcome.policy], outcome.applied, outcome.sign, strict=False)
        return [(operation, sign) for operation, applied, sign in drawn if applied]

    def _drawn(self, private: Private) -> dict[str, Tensor]:
        drawn = self.draw(private.images.shape[1], private.seeds)
        return {name: value.to(private.images.device) for name, value in drawn.items()}

    def _chances(self, policy: tuple[Operation, ...]) -> list[float]:
        listed = [step.probability if self.probabilities == "listed" else 1.0 for step in policy]
        return listed + _padding(policy, 0.0)


def _parse(part: str, policy: str) -> tuple[Operation, ...]:
    numbers = part.split("-")
    known = all(number.isdecimal() and int(number) < len(OPERATIONS) for number in numbers)
    if not known or len(numbers) > LONGEST:
        raise ConfigurationError(
            f"policy is {policy!r}; join 1 to {LONGEST} numbers below {len(OPERATIONS)} by '-', and policies by '+', "
            "as in '21-13-3+7-4-15'; for no transformation leave the defense out."
        )
    return tuple(OPERATIONS[int(number)] for number in numbers)


def _padding(policy: tuple[Operation, ...], value: T) -> list[T]:
    return [value] * (LONGEST - len(policy))


def _each(choice: Tensor) -> Tensor:
    """(U, B) -> (U, B, 1, 1, 1)."""
    return choice[..., None, None, None]
