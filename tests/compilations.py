"""How often JAX compiles."""

import jax

COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **_: COMPILED.append(event) if event.endswith("backend_compile_duration") else None
)


def compilations(function):
    """How many programs are compiled while `function()` runs."""
    before = len(COMPILED)
    jax.block_until_ready(function())
    return len(COMPILED) - before
