"""What learns a generator from a stream of updates, round by round: the stream, the search, and the outer step."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from generators.fitting import Steps
from generators.sample_grids import latents_for, publish_grid
from gibench.attacks import GradientMatching
from gibench.attacks.stages import search_stages
from gibench.clients import Client
from gibench.data.groups import update_id
from gibench.data.splits import Split
from gibench.engine.choice import Choice
from gibench.errors import NonFiniteError
from gibench.search.generator import Generator
from gibench.types import Batch, Observation

SAMPLES = 64


class Sent(NamedTuple):
    """What a round hands to the attacker. seeds: U, one for each update. observation: of the updates."""

    seeds: tuple[int, ...]
    observation: Observation


class Moves(NamedTuple):
    """What the searches of U updates found.

    weights: w' - w, (U, B, P), in the order of the generator's parameters. match: (U,), infinite where a search failed.
    evaluations: gradient evaluations, of all.
    """

    weights: Tensor
    match: Tensor
    evaluations: int


class Stream(LightningDataModule):
    """Rounds of federated learning: each round some clients send an update, and the attacker sees the observation.

    The images behind the updates come from endless permutations of `private`; images that come again are sent as
    another update, for which defenses and searches draw anew. All of it follows from the seeds and the round alone.

    Args:
        client: makes the updates.
        private: images, which end here.
        rounds: in all; each is an epoch of Lightning's.
        together: U, updates in a round.
        batch_size: B, images behind an update.
        seed: of the order.
    """

    def __init__(
        self, client: Client, private: Split, *, rounds: int, together: int, batch_size: int, seed: int
    ) -> None:
        super().__init__()
        self.client, self.private, self.batch_size = client, private, batch_size
        self.order = Steps(len(private.ids), size=together * batch_size, steps=rounds, every=1, seed=seed)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Images, labels and places of a round."""
        images, labels, ids = self.private
        places = torch.arange(len(ids))
        return DataLoader(TensorDataset(images, labels, places), sampler=self.order, batch_size=None)

    def on_after_batch_transfer(self, batch: list[Tensor], _: int) -> Sent:
        """Let the clients compute their updates where the training runs."""
        images, labels, places = batch
        size, number = self.batch_size, self.order.epoch
        names = [tuple(self.private.ids[place] for place in each) for each in places.view(-1, size).tolist()]
        observation = self.client.to(images.device)(
            Batch(
                images=images.unflatten(0, (-1, size)),
                labels=labels.view(-1, size),
                image_ids=tuple(names),
                update_ids=tuple(f"round {number}, {place}/{update_id(each)}" for place, each in enumerate(names)),
            )
        )
        return Sent(observation.seeds, observation)


def search_weights(attack: GradientMatching, observation: Observation) -> Moves:
    """Search updates by an attack whose last stage is a generator's weights, and return these instead of images.

    Of several restarts that counts whose last stage matches best.
    """
    attack.check(observation.threat_model)
    prepared, posterior = attack.prepare(observation), attack.posterior(observation)
    size = attack.rows_at_once(observation, prepared)
    found, matches, evaluations = [], [], 0
    for first in range(0, len(posterior.rows), size):
        for objective in search_stages(attack, posterior, posterior.rows[first : first + size], prepared):
            evaluations += int(objective.evaluations.sum())
        found.append(objective.best["pixels"])
        matches.append(objective.match)
    attack.release()
    weights, match = (torch.cat(parts).unflatten(0, (-1, attack.restarts)) for parts in (found, matches))
    update, chosen = torch.arange(len(match), device=match.device), match.argmin(1)
    evaluations += observation.updates * posterior.simulations
    return Moves(weights[update, chosen], match[update, chosen], evaluations)


class GIMLTraining(LightningModule):
    """The outer loop of GIML, a round at a step; see `generators.fit_giml`.

    Args:
        generator: G_w, is trained in place; its buffers stay.
        attack: makes the search of a generator's latent, then its weights. It is made anew in each round, so that
            nothing compiled for the weights of an earlier round is used; the engine's choice is kept, and saved, so
            that a training that was killed computes on in the same way.
        meta_rate: of the outer Adam.
        rounds: in all.
        every: rounds between pictures.
        out: folder of the pictures.
        seed: of the latents on the pictures.
    """

    def __init__(
        self,
        generator: Generator,
        attack: Callable[[Generator], GradientMatching],
        *,
        meta_rate: float,
        rounds: int,
        every: int,
        out: Path,
        seed: int,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.attack = generator, attack
        self.meta_rate, self.rounds, self.every, self.out, self.seed = meta_rate, rounds, every, out, seed
        self.done = self.evaluations = 0
        self.choice: dict[str, Any] | None = None

    def training_step(self, sent: Sent, _: int) -> None:
        """Search the updates of a round, and step towards the weights found."""
        attack = self.attack(self.generator)
        if self.choice is not None:
            attack.engine.recall(Choice(**self.choice))
        found = search_weights(attack, sent.observation)
        self.choice = None if attack.engine.choice is None else asdict(attack.engine.choice)
        finite = found.match.isfinite()
        if not finite.any():
            raise NonFiniteError(
                f"no search of round {self.done} was finite; lower latent_rate, weight_rate or meta_rate."
            )
        self.step_towards(found.weights[finite].flatten(0, 1).mean(0))
        self.done += 1
        self.evaluations += found.evaluations
        told: dict[str, Tensor | float] = {
            "match": found.match[finite].mean(),
            "failed": (~finite).sum().float(),
            "round": float(self.done),
        }
        self.log_dict(told, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(sent.seeds))

    def step_towards(self, move: Tensor) -> None:
        """One step of the outer Adam, whose gradient is w - w', minus the mean move (P,)."""
        weights = [*self.generator.parameters()]
        for weight, part in zip(weights, move.split([each.numel() for each in weights]), strict=True):
            weight.grad = -part.view_as(weight)
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)  # noqa: S101 - there is one
        optimizer.step()
        optimizer.zero_grad()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam for the weights."""
        return torch.optim.Adam(self.generator.parameters(), lr=self.meta_rate)

    @torch.no_grad()
    def show(self) -> None:
        """Draw fixed latents."""
        drawn = self.generator.eval()(*latents_for(self.generator, SAMPLES, "samples", self.seed))
        publish_grid(drawn, self.out / "samples" / f"round_{self.done:05d}.png", self.logger)

    def on_train_start(self) -> None:
        """The generator as it starts, for comparison."""
        if not self.done:
            self.show()

    def on_train_epoch_end(self) -> None:
        """An epoch here is a round."""
        if self.done % self.every == 0 or self.done == self.rounds:
            self.show()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the counts and the engine's choice with the state."""
        checkpoint["giml"] = {"done": self.done, "evaluations": self.evaluations, "choice": self.choice}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them from the state."""
        kept = checkpoint["giml"]
        self.done, self.evaluations, self.choice = kept["done"], kept["evaluations"], kept["choice"]
