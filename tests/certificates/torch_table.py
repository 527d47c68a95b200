"""Functions of PyTorch's own operators with their verdicts, beside the table that both frameworks share."""

from typing import Any, NamedTuple

import torch
from convexity_table import PSD, W
from torch.nn import functional as F

A = torch.as_tensor(W).float()
S = torch.as_tensor(PSD).float()
ABOVE = torch.tensor([0.5, 1.0, 2.0])
SIGNS = torch.tensor([1.0, -1.0, 1.0])
ENDS = torch.tensor([0, 2])
ORDER = torch.tensor([1, 0])
MASK = torch.tensor([True, False, True])
KERNEL = torch.tensor([[[1.0, 2.0]]])


class TorchRow(NamedTuple):
    """A function of the table."""

    name: str
    verdict: str
    curvature: str
    function: Any


def mixed(x):
    """Convex at both ends, concave in the middle."""
    return torch.abs(x) * SIGNS


def in_place(x):
    y = x.clone()
    y[0] = x[1] * x[1]
    y[1:].mul_(2.0)
    return torch.abs(y)


def changed_behind_a_view(x):
    """The view is taken first and sees what is added later."""
    y = x * 1.0
    view = y[:2]
    y.sub_(x**2)
    return view.sum()


def without_gradient(x):
    with torch.no_grad():
        return torch.exp(x) + torch.abs(x)


def put(value):
    def function(x):
        return mixed(x).index_put((torch.tensor([1]),), value(x))

    return function


P, R, U = "proved", "refuted", "unknown"
CONVEX, AFFINE, CONCAVE, NONE, CONSTANT = "convex", "affine", "concave", "unknown", "constant"

TORCH_TABLE = [
    # numbers of a function beside its input
    TorchRow("sharp softplus", P, CONVEX, lambda x: F.softplus(x, beta=3.0)),
    TorchRow("softplus with a visible step", U, NONE, lambda x: F.softplus(x, threshold=10.0)),
    TorchRow("softplus of negative beta", R, CONCAVE, lambda x: -F.softplus(x)),
    TorchRow("elu of small alpha", P, CONVEX, lambda x: F.elu(x, alpha=0.5)),
    TorchRow("elu of large alpha", R, NONE, lambda x: F.elu(x, alpha=1.5)),
    TorchRow("selu", R, NONE, lambda x: F.selu(x)),
    TorchRow("celu", P, CONVEX, lambda x: F.celu(x, alpha=3.0)),
    TorchRow("leaky relu", P, CONVEX, lambda x: F.leaky_relu(x, 0.2)),
    TorchRow("leaky relu that turns", P, CONVEX, lambda x: F.leaky_relu(x, -0.5)),
    TorchRow("leaky relu, steeper on the left", R, CONCAVE, lambda x: F.leaky_relu(x, 2.0)),
    TorchRow("hard tanh", R, NONE, lambda x: F.hardtanh(x)),
    TorchRow("relu6", R, NONE, lambda x: F.relu6(5.0 * x)),
    TorchRow("log-sigmoid", R, CONCAVE, lambda x: F.logsigmoid(x)),
    TorchRow("negative log-sigmoid", P, CONVEX, lambda x: -F.logsigmoid(x)),
    TorchRow("clamp from below", P, CONVEX, lambda x: torch.clamp(x, min=-1.0)),
    TorchRow("clamp from above", R, CONCAVE, lambda x: torch.clamp(x, max=1.0)),
    TorchRow("clamp by tensors", P, CONVEX, lambda x: torch.clamp(torch.abs(x), min=ABOVE)),
    TorchRow("one minus", P, AFFINE, lambda x: 1.0 - x),
    TorchRow("difference with a factor", P, CONVEX, lambda x: torch.sub(x, torch.abs(x), alpha=-3)),
    TorchRow("reversed difference with a factor", R, CONCAVE, lambda x: torch.rsub(torch.abs(x), x, alpha=3)),
    TorchRow("sum with a negative factor", R, CONCAVE, lambda x: torch.add(x, torch.abs(x), alpha=-2)),
    TorchRow("powers of two", P, CONVEX, lambda x: torch.exp2(x) + 2.0**x + torch.pow(0.5, x)),
    TorchRow("logarithm to the base 2", R, CONCAVE, lambda x: torch.log2(torch.sigmoid(x))),
    TorchRow("logarithm to the base 10", R, CONCAVE, lambda x: torch.log10(torch.sigmoid(x))),
    TorchRow("logarithms of exponentials", P, CONVEX, lambda x: torch.log10(torch.exp(x) + 1.0)),
    TorchRow("reciprocal of a positive", P, CONVEX, lambda x: torch.reciprocal(torch.exp(-torch.abs(x)))),
    TorchRow("root of a reciprocal", P, CONVEX, lambda x: torch.rsqrt(torch.exp(-torch.abs(x)))),
    TorchRow("float power", P, CONVEX, lambda x: torch.float_power(torch.abs(x), 1.5)),
    TorchRow("square", P, CONVEX, lambda x: torch.square(x - 2.0)),
    TorchRow("floor of a quotient", R, NONE, lambda x: torch.div(x, 2.0, rounding_mode="floor")),
    TorchRow("masked fill", P, CONVEX, lambda x: mixed(x).masked_fill(~MASK, 1.0)),
    TorchRow("masked fill of the other places", R, CONCAVE, lambda x: mixed(x).masked_fill(MASK, 1.0)),
    TorchRow("entropy of what is above 1", P, CONVEX, lambda x: torch.xlogy(1.0 + x * x, 1.0 + x * x)),
    TorchRow("entropy of a sigmoid", R, NONE, lambda x: torch.special.entr(torch.sigmoid(x))),
    # losses
    TorchRow("cross entropy", P, CONVEX, lambda x: F.cross_entropy(x[None], torch.tensor([1]))),
    TorchRow("cross entropy of the negative logits", R, CONCAVE, lambda x: -F.cross_entropy(-x[None], ENDS[:1])),
    TorchRow("binary cross entropy", P, CONVEX, lambda x: F.binary_cross_entropy_with_logits(x, ABOVE / 4)),
    TorchRow("mean squared error", P, CONVEX, lambda x: F.mse_loss(A @ x, torch.ones(4))),
    TorchRow("mean absolute error", P, CONVEX, lambda x: F.l1_loss(x, ABOVE)),
    TorchRow("huber loss", P, CONVEX, lambda x: F.huber_loss(A @ x, torch.ones(4), delta=0.3)),
    TorchRow("smooth l1 loss", P, CONVEX, lambda x: F.smooth_l1_loss(x, ABOVE, beta=0.5, reduction="sum")),
    TorchRow("huber loss of a square", R, NONE, lambda x: F.huber_loss(x * x, ABOVE)),
    # along axes
    TorchRow("variance", P, CONVEX, lambda x: torch.var(x)),
    TorchRow("deviation", P, CONVEX, lambda x: torch.std(x, correction=0)),
    TorchRow("norms", P, CONVEX, lambda x: torch.linalg.vector_norm(x, 1) + torch.linalg.vector_norm(x, torch.inf)),
    TorchRow("norm of rows", P, CONVEX, lambda x: torch.linalg.vector_norm(torch.outer(ABOVE, x), dim=1)),
    TorchRow("norm of rows of squares less 1", R, NONE, lambda x: torch.linalg.vector_norm(x * x - 1.0)),
    TorchRow("mean of rows", P, CONVEX, lambda x: torch.abs(x).expand(2, 3).mean(dim=1, keepdim=True)),
    TorchRow("log-sum-exp of rows", P, CONVEX, lambda x: torch.logsumexp(A * x, (1,), keepdim=True)),
    TorchRow("log-softmax", R, CONCAVE, lambda x: torch.log_softmax(A * x, 1)),
    TorchRow("largest with its place", P, CONVEX, lambda x: torch.max(A * x, dim=1).values),
    TorchRow("smallest with its place", R, CONCAVE, lambda x: torch.min(A * x, dim=1).values),
    TorchRow("place of the largest", R, NONE, lambda x: torch.argmax(x).float()),
    TorchRow("sum of the two smallest", R, CONCAVE, lambda x: torch.topk(x, 2, largest=False).values.sum()),
    TorchRow("sorted, falling", P, CONVEX, lambda x: torch.sort(x, descending=True).values @ ABOVE.flip(0)),
    TorchRow("sorted, falling, rising weights", R, CONCAVE, lambda x: torch.sort(x, descending=True).values @ ABOVE),
    TorchRow("running maximum of what is concave", R, NONE, lambda x: torch.cummax(-torch.abs(x), 0).values),
    TorchRow("running minimum", R, CONCAVE, lambda x: torch.cummin(x, 0).values),
    TorchRow("running log-sum-exp", P, CONVEX, lambda x: torch.logcumsumexp(torch.abs(x), 0)),
    TorchRow("whether any is not 1", R, NONE, lambda x: torch.any(x - 1.0).float() + torch.all(torch.relu(x)).float()),
    # products
    TorchRow("products of rows", P, CONVEX, lambda x: torch.bmm(A.abs()[None], torch.relu(x)[None, :, None])),
    TorchRow("products of rows with a sign", R, NONE, lambda x: torch.bmm(A[None], torch.relu(x)[None, :, None])),
    TorchRow("product and sum", P, CONVEX, lambda x: torch.addmm(x, x[None], S, beta=-2, alpha=3).abs()),
    TorchRow(
        "product and sum with negative factors",
        R,
        CONCAVE,
        lambda x: torch.addmm(torch.abs(x), torch.abs(x)[None], S, beta=-2, alpha=-3),
    ),
    TorchRow("product and negative sum", R, CONCAVE, lambda x: torch.addmv(-torch.abs(A @ x), A, x)),
    TorchRow("product with a negative factor", R, CONCAVE, lambda x: torch.addmv(x, S, torch.abs(x), alpha=-1)),
    TorchRow("linear layer", P, CONVEX, lambda x: F.relu(F.linear(x, A, torch.ones(4)))),
    TorchRow("einsum", P, CONVEX, lambda x: torch.einsum("ij,kj->ki", A.abs(), torch.relu(torch.outer(ABOVE, x)))),
    TorchRow("einsum with a sign", R, NONE, lambda x: torch.einsum("ij,j->i", A, torch.relu(x))),
    TorchRow("outer product with itself", R, NONE, lambda x: torch.outer(x, x)),
    TorchRow("convolution", P, CONVEX, lambda x: F.conv1d(torch.relu(x)[None, None], KERNEL, torch.ones(1))),
    TorchRow("convolution with a sign", R, NONE, lambda x: F.conv1d(torch.relu(x)[None, None], KERNEL - 1.5)),
    TorchRow(
        "frozen statistics",
        P,
        CONVEX,
        lambda x: torch.abs(F.batch_norm(x[None], SIGNS, ABOVE, weight=SIGNS, bias=ABOVE)),
    ),
    TorchRow(
        "frozen statistics with a sign", R, NONE, lambda x: F.batch_norm(torch.abs(x)[None], SIGNS, ABOVE, weight=SIGNS)
    ),
    TorchRow(
        "statistics of the batch",
        R,
        NONE,
        lambda x: torch.abs(F.batch_norm(torch.outer(ABOVE, x), None, None, training=True)),
    ),
    # elements that move
    TorchRow("embedding", P, CONVEX, lambda x: F.embedding(ENDS, mixed(x)[:, None])),
    TorchRow("embedding of another row", R, NONE, lambda x: F.embedding(ORDER, mixed(x)[:, None])),
    TorchRow("known places", P, CONVEX, lambda x: mixed(x)[ENDS]),
    TorchRow("known places, the middle too", R, NONE, lambda x: mixed(x)[ENDS - 1]),
    TorchRow("places along an axis", P, CONVEX, lambda x: mixed(x).index_select(0, ENDS)),
    TorchRow("gathered places", P, CONVEX, lambda x: torch.gather(mixed(x), 0, ENDS)),
    TorchRow("places that depend on x", R, NONE, lambda x: (torch.abs(x) * ABOVE)[torch.argmin(x)]),
    TorchRow("put a constant", P, CONVEX, put(lambda x: torch.ones(1))),
    TorchRow("put what is concave", R, NONE, put(lambda x: -(x[:1] ** 2))),
    TorchRow("scattered", P, CONVEX, lambda x: mixed(x).scatter(0, torch.tensor([1]), torch.abs(x[:1]))),
    TorchRow("scattered number", P, CONVEX, lambda x: mixed(x).scatter(0, torch.tensor([1]), 2.0)),
    TorchRow("filled places", P, CONVEX, lambda x: mixed(x).index_fill(0, torch.tensor([1]), 2.0)),
    TorchRow("filled other places", R, NONE, lambda x: mixed(x).index_fill(0, torch.tensor([2]), 2.0)),
    TorchRow("split and joined", P, CONVEX, lambda x: torch.cat([mixed(x).split(1)[0], mixed(x).chunk(3)[2]])),
    TorchRow("unbound and stacked", R, NONE, lambda x: torch.stack(mixed(x).unbind()[:2])),
    TorchRow("padded", P, CONVEX, lambda x: F.pad(torch.abs(x), (1, 2), value=-3.0)),
    TorchRow("repeated and tiled", P, CONVEX, lambda x: torch.abs(x).repeat(2, 1).tile(2)),
    TorchRow("every other", P, CONVEX, lambda x: mixed(x)[::2]),
    TorchRow("lower triangle", P, CONVEX, lambda x: torch.tril(torch.abs(torch.outer(SIGNS, x)))),
    TorchRow("diagonal of an outer product", P, CONVEX, lambda x: torch.diagonal(torch.outer(x, x))),
    TorchRow("transposed", P, CONVEX, lambda x: torch.abs(torch.outer(ABOVE, x)).mT.permute(1, 0).reshape(9)[1:]),
    # elements in their order: turned back by their signs they are convex
    TorchRow("places in order", P, CONVEX, lambda x: mixed(x)[torch.tensor([1, 0])] * SIGNS[[1, 0]]),
    TorchRow("places along an axis, in order", P, CONVEX, lambda x: mixed(x).index_select(0, ORDER) * SIGNS[[1, 0]]),
    TorchRow("gathered places, in order", P, CONVEX, lambda x: torch.gather(mixed(x), 0, ORDER) * SIGNS[[1, 0]]),
    TorchRow("joined in order", P, CONVEX, lambda x: torch.cat([mixed(x)[1:2], mixed(x)[:1]]) * SIGNS[[1, 0]]),
    TorchRow("sliced in order", P, CONVEX, lambda x: mixed(x)[1:] * SIGNS[1:]),
    TorchRow("transposed in order", P, CONVEX, lambda x: torch.outer(ABOVE, mixed(x))[:, :2].T * SIGNS[:2, None]),
    # choices by the input
    TorchRow("choice by less", R, CONCAVE, lambda x: torch.where(x < 0, 3.0 * x, 2.0 * x)),
    TorchRow("choice by at most", R, CONCAVE, lambda x: torch.where(x <= 0, 3.0 * x, 2.0 * x)),
    TorchRow("choice by equality", U, NONE, lambda x: torch.where(x == 1.0, 3.0 * x, 2.0 * x)),
    TorchRow("choice by inequality", U, NONE, lambda x: torch.where(x != 1.0, 3.0 * x, 2.0 * x)),
    TorchRow("choice by both", R, NONE, lambda x: torch.where((x > 0) & (x < 1), 3.0 * x, 2.0 * x)),
    TorchRow("choice by and", R, NONE, lambda x: torch.where(torch.logical_and(x > 0, x < 1), 3.0 * x, 2.0 * x)),
    TorchRow("choice by or", R, NONE, lambda x: torch.where(torch.logical_or(x < 0, x > 1), 3.0 * x, 2.0 * x)),
    # programs
    TorchRow("changed in place", P, CONVEX, in_place),
    TorchRow("changed behind a view", R, CONCAVE, changed_behind_a_view),
    TorchRow("without gradient", P, CONVEX, without_gradient),
    TorchRow("detached", R, NONE, lambda x: x - (x * x).detach() + torch.abs(x)),
    TorchRow("wider", P, CONVEX, lambda x: torch.abs(x).double().to(torch.float32)),
    TorchRow("cut to integers", R, NONE, lambda x: x.int().float()),
    TorchRow("random", U, NONE, lambda x: torch.abs(x) + 0.0 * torch.rand(3)),
    TorchRow("positive weights by softmax", P, CONVEX, lambda x: torch.softmax(SIGNS, 0) @ torch.abs(x)),
]
