"""How often JAX compiles, and how it compiles quickly."""

import jax

# Optimized code takes twice as long to compile as all the steps of a test take without; and parts of a program that are
# compiled side by side take longer together, where the tests keep every core busy.
HAS_OTHER_EMITTERS = jax.__version_info__ < (0, 11)  # XLA ends a process that names a flag which it has no more
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
QUICK |= {"xla_cpu_use_fusion_emitters": False} if HAS_OTHER_EMITTERS else {}
# At level 0 gradients may be NaN.
QUICK_FLAGS = "--xla_backend_optimization_level=1" + " --xla_cpu_use_fusion_emitters=false" * HAS_OTHER_EMITTERS

COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **_: COMPILED.append(event) if event.endswith("backend_compile_duration") else None
)


def compilations(function):
    """How many programs are compiled while `function()` runs."""
    before = len(COMPILED)
    jax.block_until_ready(function())
    return len(COMPILED) - before
