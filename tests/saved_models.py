"""Models that the tests of the command save."""

import torch

import convexmoe_torch


def hull(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    units = convexmoe_torch.Normalization((1.0, 2.0, 3.0), (0.5, 2.0, 7.0), (100.0,), (30.0,))
    return convexmoe_torch.VectorHull(
        3, 5, out_dim=1, hidden_dim=7, temperature="learned", normalization=units, dtype=dtype
    )


def hierarchy(seed=0):
    torch.manual_seed(seed)
    levels = [
        convexmoe_torch.HierarchyLevelConfig(name, [convexmoe_torch.ExpertConfig(e) for e in experts])
        for name, experts in {"a": "x", "b": "xyz"}.items()
    ]

    def expert(level, name, metadata):
        if level == "a":
            return convexmoe_torch.HullExpert(convexmoe_torch.VectorHull(5, 3, hidden_dim=7))
        kind = {"x": convexmoe_torch.LinearExpert, "y": convexmoe_torch.LinearExpert}
        return kind[name](5) if name in kind else convexmoe_torch.MLPExpert(5, 11)

    return convexmoe_torch.HierarchicalCELMoE(convexmoe_torch.CELMoEConfig(5, levels), expert)


def stepped(model, steps=3):
    """Adam after a few steps with random gradients."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return optimizer
