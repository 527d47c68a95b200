"""Pictures of hulls and hierarchies of either framework: matplotlib axes in, axes out.

A hull is asked for predictions as numpy arrays. Colors are those of Okabe and Ito, which are told apart under the
common color-vision deficiencies; lines, markers and hatches differ as well, for a print in grey. A value far from
all others is marked at the edge and counted: it shrinks nothing. matplotlib is imported when something is drawn.
"""

from .fits import plot_history, plot_residuals
from .groups import plot_groups
from .hierarchies import plot_losses, plot_routes
from .slices import plot_slices

__all__ = ["plot_groups", "plot_history", "plot_losses", "plot_residuals", "plot_routes", "plot_slices"]
