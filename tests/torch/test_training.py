"""`train` of any module of PyTorch: what is given back is what was evaluated."""

from contextlib import nullcontext

import numpy as np
import torch
from torch import nn

from convexmoe_torch.training import engine as training


class Tied(nn.Module):
    """Two layers of one weight, and a frozen one."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.frozen = (nn.Linear(3, 3) for _ in range(3))
        self.second.weight = self.first.weight
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return self.frozen(self.second(torch.tanh(self.first(x))))


def test_tied_and_frozen_parameters_are_given_back_as_evaluated():
    torch.manual_seed(0)
    module = Tied()
    frozen = module.frozen.weight.clone()
    x = np.random.default_rng(0).normal(size=(200, 3))
    y = np.tanh(x[:, [1, 2, 0]])
    result = training.train(module, x[:150], y[:150], validation=(x[150:], y[150:]), steps=400, batch_size=31)
    with torch.no_grad():
        loss = float(training.mean_squared_error(module(torch.tensor(x[150:]).float()), torch.tensor(y[150:]).float()))
    assert np.isclose(loss, min(result.history.validation_loss), rtol=1e-5)
    assert module.second.weight is module.first.weight
    assert torch.equal(module.frozen.weight, frozen)


def normalizing(held):
    """A trained network with batch normalization, its result, and its running mean at each loss."""
    x = np.random.default_rng(1).normal(size=(150, 3))
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 1))
    module[2].eval()
    means = []
    result = training.train(
        module,
        x,
        x[:, :1],
        validation=(held, held[:, :1]),
        steps=40,
        batch_size=31,
        on_evaluation=lambda now: means.append(module[1].running_mean.clone()),
    )
    return module, result, means


NEAR = np.random.default_rng(2).normal(size=(50, 3))


def test_held_out_rows_are_judged_in_the_mode_of_evaluation_and_teach_nothing():
    module, result, means = normalizing(NEAR)
    assert [part.training for part in module] == [True, True, False, True]
    assert torch.equal(means[0], normalizing(NEAR + 30)[2][0])
    module.eval()
    with torch.no_grad():
        loss = float(training.mean_squared_error(module(torch.tensor(NEAR).float()), torch.tensor(NEAR[:, :1]).float()))
    assert np.isclose(loss, min(result.history.validation_loss), rtol=1e-5)


def test_control_judged_in_the_mode_of_training_they_teach(monkeypatch):
    monkeypatch.setattr(training, "evaluation_mode", lambda module: nullcontext())
    assert not torch.equal(normalizing(NEAR)[2][0], normalizing(NEAR + 30)[2][0])
