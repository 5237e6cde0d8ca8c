"""Adam, its schedule, and rows that finish early."""

from typing import Any, NamedTuple

import pytest
import torch
from helpers import batch_of, small_victim
from references import matching as reference
from torch import Tensor

from gibench.clients import FedSGD
from gibench.engine.backends import GenericBackend
from gibench.errors import ConfigurationError
from gibench.likelihoods import Flat
from gibench.priors import Prior
from gibench.progress import watching
from gibench.search import Adam, Objective
from gibench.search.evaluation import Evaluation, Guess, Variables
from gibench.types import Observation


class Boxed:
    """sum_i c_i (x_i - t_i)^2 for every row, over [0, 1]; keeps the iterates."""

    capture = False

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets
        self.visited: list[Tensor] = []

    def __call__(self, variables: Variables, rows: Tensor | None = None) -> Evaluation:
        self.visited.append(variables["x"].clone())
        point = variables["x"].clone().requires_grad_()
        values = torch.stack([well(x, target) for x, target in zip(point, self.targets, strict=True)])
        return Evaluation(values.detach(), {"x": torch.autograd.grad(values.sum(), point)[0]})

    @staticmethod
    def project(variables: Variables) -> Variables:
        return {name: value.clamp(0, 1) for name, value in variables.items()}


def well(x: Tensor, target: Tensor) -> Tensor:
    return (torch.arange(1, len(x) + 1, dtype=x.dtype) * (x - target).square()).sum()


@pytest.mark.parametrize("signed", [True, False])
def test_each_row_follows_torch_alone_with_the_published_schedule(signed: bool) -> None:
    """A target is outside the box, and one row turns NaN on the way without touching the others."""
    source = torch.Generator().manual_seed(2)
    targets = 1.4 * torch.rand(3, 6, generator=source, dtype=torch.float64) - 0.2
    targets[1, 0] = torch.nan
    start = torch.rand(3, 6, generator=source, dtype=torch.float64)
    objective = Boxed(targets)
    Adam(steps=40, rate=0.1, signed=signed)(objective, {"x": start})  # type: ignore[arg-type]
    for row in (0, 2):
        alone = reference.boxed_adam(
            lambda x, t=targets[row]: well(x, t), start[row], steps=40, rate=0.1, signed=signed
        )
        torch.testing.assert_close(torch.stack(objective.visited)[:, row], alone)


@pytest.mark.parametrize(("steps", "milestones"), [(4800, (1799, 2999, 4203)), (24000, (8998, 14999, 21015))])
def test_step_schedule_drops_where_the_published_code_does(steps: int, milestones: tuple[int, ...]) -> None:
    """T // 2.667, T // 1.6, T // 1.142 in floating point, where 24000 // 1.6 is 14999."""
    search = Adam(steps=steps)
    for drops, milestone in enumerate(milestones):
        assert search.factor(milestone - 1) == pytest.approx(0.1**drops)
        assert search.factor(milestone) == pytest.approx(0.1 ** (drops + 1))


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigurationError):
        Adam(steps=0)
    with pytest.raises(ConfigurationError):
        Adam(steps=1, rate=-1.0)


class Middle(Prior):
    """The mean square distance of the pixels from 1/2."""

    def forward(self, images: Tensor, observation: Observation) -> Tensor:
        return (images - 0.5).square().flatten(1).mean(1)


class Stopped(NamedTuple):
    """An objective after a search, how many rows each evaluation had, and what was reported last."""

    objective: Objective
    sizes: list[int]
    values: Tensor


def descend(search: Adam, offsets: list[float], monkeypatch: pytest.MonkeyPatch) -> Stopped:
    """Search rows that start so far from the middle and come nearer by about `rate` in each step."""
    observation = FedSGD(small_victim()).double()(batch_of(len(offsets), 1).to(torch.float64))
    objective = Objective(
        observation,
        range(len(offsets)),
        backend=GenericBackend(observation.simulate),
        likelihood=Flat(),
        priors=[Middle()],
        decode=lambda variables, _: Guess(variables["pixels"], torch.zeros(len(variables["pixels"]), 1)),
        project=lambda variables: variables,
        labels=None,
    )
    start = 0.5 + torch.tensor(offsets, dtype=torch.float64).reshape(-1, 1, 1, 1, 1).expand(-1, 1, 3, 8, 8)
    sizes, reports, real = [], [], Objective.evaluate

    def evaluate(objective: Objective, variables: Variables, *rest: Any) -> Any:
        sizes.append(len(variables["pixels"]))
        return real(objective, variables, *rest)

    with monkeypatch.context() as patch, watching(reports.append):
        patch.setattr(Objective, "evaluate", evaluate)
        search(objective, {"pixels": start.clone()})
    return Stopped(objective, sizes, reports[-1].objective)


def adam(**stops: Any) -> Adam:
    return Adam(steps=220, rate=0.01, schedule="constant", **stops)


def test_rows_below_the_target_are_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other: seven of eight rows stay together, six are moved together."""
    offsets = [0.3, 0.55, *[9.0] * 6]
    found = descend(adam(target=1e-4), offsets, monkeypatch)
    assert found.objective.evaluations.tolist() == [50, 100, *[220] * 6]
    assert found.sizes == 100 * [8] + 120 * [6]
    for row, steps in ((0, 50), (1, 100), (7, 220)):
        alone = descend(Adam(steps=steps, rate=0.01, schedule="constant"), [offsets[row]], monkeypatch)
        assert found.objective.value[row] == alone.objective.value[0]
        assert found.values[row] == alone.values[0]
        assert torch.equal(found.objective.best["pixels"][row], alone.objective.best["pixels"][0])


@pytest.mark.parametrize(("patience", "waited"), [(49, 50), (50, 100), (99, 100), (100, 150)])
def test_rows_that_find_nothing_better_are_finished(
    patience: int, waited: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first row starts where nothing is better, which it learns in its first evaluation."""
    found = descend(adam(patience=patience), [0.0, 9.0, 9.0], monkeypatch)
    assert found.objective.evaluations.tolist() == [waited, 220, 220]
    assert found.objective.improved.tolist() == [1, 220, 220]
    assert found.sizes == waited * [3] + (220 - waited) * [2]


def test_a_lost_row_runs_out_of_patience_and_keeps_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    found = descend(adam(patience=50), [torch.nan, 9.0], monkeypatch)
    assert found.objective.evaluations.tolist() == [50, 220]
    assert found.objective.best["pixels"][0].isnan().all()
    assert found.objective.value[0].isinf()


def test_the_search_ends_with_its_last_row(monkeypatch: pytest.MonkeyPatch) -> None:
    assert descend(adam(target=1e-4), [0.3, 0.55], monkeypatch).sizes == 50 * [2] + 50 * [1]
    assert descend(adam(target=1e-4, patience=60), [0.3, 0.0, 0.2], monkeypatch).sizes == 50 * [3]


def test_without_a_target_all_rows_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert descend(adam(), [0.0, 0.3], monkeypatch).sizes == 220 * [2]


def test_bad_patience_is_named() -> None:
    with pytest.raises(ConfigurationError, match="patience is 0; wait at least 1 step"):
        Adam(steps=1, patience=0)


def test_a_gradient_of_another_layout_is_the_same_gradient() -> None:
    """As `vmap` gives it for batches of two: the fused kernel of PyTorch reads memory, whatever the strides."""
    target = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    class Turned:
        capture = False

        def __call__(self, variables: Variables, rows: Tensor | None = None) -> Evaluation:
            difference = variables["x"] - target
            gradient = difference.transpose(1, 2).contiguous().transpose(1, 2)
            assert not gradient.is_contiguous()
            self.last = variables["x"].clone()
            return Evaluation(difference.square().flatten(1).sum(1), {"x": gradient})

        @staticmethod
        def project(variables: Variables) -> Variables:
            return variables

    objective = Turned()
    Adam(steps=400, rate=0.02, schedule="constant")(objective, {"x": torch.zeros_like(target)})  # type: ignore[arg-type]
    torch.testing.assert_close(objective.last, target, rtol=0, atol=1e-3)
