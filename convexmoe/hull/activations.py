"""The numbers that keep every layer at mean 0 and variance 1."""

# Mean and deviation of each activation at u ~ N(0, 1): their standardisation removes the mean shift that
# non-negative weights would add up. An affine map with positive slope keeps convexity.
STANDARD = {
    "softplus": (0.80605918334743978, 0.52107053438143932),
    "relu": (0.39894228040143268, 0.58381937010354895),
    "huber_relu": (0.46233010832811462, 0.55775834939574297),
}

# Share of a layer's variance that comes through its non-negative weights; the rest comes through its signed ones.
POSITIVE_SHARE = 0.5
