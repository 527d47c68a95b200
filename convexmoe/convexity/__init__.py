"""The calculus of convexity, of a graph of operations that either framework makes.

The packages trace a program into a `Graph`, give the rules of their operations, and evaluate segments; what they share
is here.
"""

from . import (
    atoms,
    calculus,
    contraction,
    factors,
    facts,
    moves,
    order,
    problem,
    products,
    rules,
    scalars,
    search,
    walk,
)
from .atoms import Kind
from .certificate import Certificate, Output
from .certify import SEGMENTS, certify_problem
from .domain import read_domain
from .facts import Array, Value
from .graph import Graph, Operation
from .problem import Engine, NotTraced, Problem, Trace
from .segments import Candidates, Violation, between, chord_gaps
from .walk import Inputs, Rule, Walk

__all__ = [
    "SEGMENTS",
    "Array",
    "Candidates",
    "Certificate",
    "Engine",
    "Graph",
    "Inputs",
    "Kind",
    "NotTraced",
    "Operation",
    "Output",
    "Problem",
    "Rule",
    "Trace",
    "Value",
    "Violation",
    "Walk",
    "atoms",
    "between",
    "calculus",
    "certify_problem",
    "chord_gaps",
    "contraction",
    "factors",
    "facts",
    "moves",
    "order",
    "problem",
    "products",
    "read_domain",
    "rules",
    "scalars",
    "search",
    "walk",
]
