"""The start of one of several processes that compute together."""

from __future__ import annotations

from typing import Any

import jax

from convexmoe.errors import fail, whole_number

LONGEST_SHUTDOWN = 55  # seconds that a process which is done waits for the others


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_timeout: int = 30,
) -> None:
    """Join this process to those that compute together, by `jax.distributed`; call it before anything else of JAX.

    On CPUs arrays are exchanged by Gloo. A process that no longer answers ends all others, with a message that names
    it by its number, about `heartbeat_timeout` seconds later (tests/jax/test_processes.py). One that ends while others
    go on waits for them, and ends them after 55 seconds: let all end together.

    Args:
        coordinator_address: host and port of process 0, the same in all processes. On TPUs and under Slurm or Open MPI
            leave out all three.
        num_processes: how many processes there are.
        process_id: the number of this one, from 0.
        heartbeat_timeout: seconds.

    Raises:
        RuntimeError: JAX has computed before, or the processes have been joined.
        TypeError, ValueError: one of the three is missing or out of its range.
    """
    given: Any = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < 3:
        fix = "Pass all three, or none where the cluster is known to JAX."
        fail("initialize", missing[0], f"a value beside {sorted(given.keys() - {*missing})}", "None", fix)
    if not missing:
        count = whole_number("initialize", "num_processes", num_processes, 1)
        whole_number("initialize", "process_id", process_id, 0, count - 1)
        host, _, port = str(coordinator_address).rpartition(":")
        if not (host and port.isdecimal()):
            fix = 'Pass coordinator_address="10.0.0.1:1234", for example.'
            fail("initialize", "coordinator_address", "host:port", repr(coordinator_address), fix)
    seconds = whole_number("initialize", "heartbeat_timeout", heartbeat_timeout, 1)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(**given, heartbeat_timeout_seconds=seconds, shutdown_timeout_seconds=LONGEST_SHUTDOWN)
