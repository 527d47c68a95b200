"""A hull as an estimator of scikit-learn."""

from .. import is_installed

if not is_installed("sklearn"):
    raise ImportError('interop.sklearn needs scikit-learn; in a clone of convexmoe: pip install -e ".[sklearn]"')

from .regressor import ConvexRegressor

__all__ = ["ConvexRegressor"]
