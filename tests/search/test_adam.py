"""Adam and its schedule."""

import pytest
import torch
from references import matching as reference
from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.search import Adam
from gibench.search.objective import Evaluation, Variables


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
