"""How often JAX compiles, and how it compiles quickly."""

import jax

# Optimized code takes twice as long to compile as all the steps of a test take without.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}

COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **_: COMPILED.append(event) if event.endswith("backend_compile_duration") else None
)


def compilations(function):
    """How many programs are compiled while `function()` runs."""
    before = len(COMPILED)
    jax.block_until_ready(function())
    return len(COMPILED) - before
