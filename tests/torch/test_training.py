"""`train` of any module of PyTorch: what is given back is what was evaluated."""

import numpy as np
import torch
from torch import nn

from convexmoe_torch.training import mean_squared_error, train


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
    result = train(module, x[:150], y[:150], validation=(x[150:], y[150:]), steps=400, batch_size=31)
    with torch.no_grad():
        loss = float(mean_squared_error(module(torch.tensor(x[150:]).float()), torch.tensor(y[150:]).float()))
    assert np.isclose(loss, min(result.history.validation_loss), rtol=1e-5)
    assert module.second.weight is module.first.weight
    assert torch.equal(module.frozen.weight, frozen)
