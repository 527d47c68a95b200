"""Run by tests/jax/test_processes.py: training runs of one and two processes, killed at random moments and resumed.

This program imports everything once and never starts JAX itself: each process of a run is a fork of it.
"""

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
import traceback
import warnings
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint  # noqa: F401  so that the forks have it
from flax import nnx

import convexmoe_jax as cm
from convexmoe_jax import parallel

STEPS, EVERY, ROWS, WIDTH, EXPERTS = 6, 2, 16, 5, 4
HEARTBEAT = 8  # of a run in which a process dies; one that is undisturbed may wait for its cores
warnings.filterwarnings("ignore", message="os.fork", category=RuntimeWarning)


def build(seed=0):
    level = cm.HierarchyLevelConfig("a", [cm.ExpertConfig(f"e{i}") for i in range(EXPERTS)])
    config = cm.CELMoEConfig(WIDTH, [level], fusion_dropout=0.0)
    return cm.HierarchicalCELMoE(
        config, lambda level, expert, metadata, *, rngs: cm.LinearExpert(WIDTH, rngs=rngs), rngs=nnx.Rngs(seed)
    )


def rows_of(step, process, count):
    """The rows of one process at a step, which the whole batch has in the order of the processes."""
    draw = np.random.default_rng(step)
    x, y = draw.normal(size=(2, ROWS, WIDTH)).astype(np.float32)
    batch = {"x": x, "y": y, "routes": draw.integers(0, EXPERTS, ROWS).astype(np.int32)}
    own = slice(process * ROWS // count, (process + 1) * ROWS // count)
    return {name: value[own] for name, value in batch.items()}


def train(folder, process, count, address, heartbeat):
    """Train for STEPS steps from the latest checkpoint on, and note each loss; the experts are over all processes."""
    if count > 1:
        parallel.initialize(address, count, process, heartbeat_timeout=heartbeat)
    mesh = parallel.make_mesh(1, EXPERTS)
    if count > 1:
        try:
            parallel.place(build(seed=process), mesh)
        except ValueError as error:
            print(error, flush=True)
    model = parallel.place(build(), mesh)
    graph, params = nnx.split(model)
    optimizer = cm.adam(1e-2)
    with jax.set_mesh(mesh):
        state = optimizer.init(params)
    first = 0
    if parallel.latest_step(f"{folder}/run") is not None:
        model, state, first = parallel.restore_sharded(f"{folder}/run", model, state)
        params = nnx.state(model)

    @jax.jit
    def update(params, state, batch):
        def loss(params):
            output = nnx.merge(graph, params)(batch["x"], {"a": batch["routes"]})
            return ((output.fused_hidden - batch["y"]) ** 2).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    with open(f"{folder}/losses-{process}", "a") as losses:
        for step in range(first, STEPS):
            params, state, value = update(params, state, parallel.place_batch(rows_of(step, process, count), mesh))
            print(step, float(value).hex(), file=losses, flush=True)
            if (step + 1) % EVERY == 0:
                parallel.save_sharded(f"{folder}/run", step + 1, nnx.merge(graph, params), state)
    whole = parallel.gather(nnx.merge(graph, params))
    if process == 0:
        cm.save(whole, f"{folder}/model.safetensors")
    if count > 1:
        jax.distributed.shutdown()


class Run:
    """A training run of one process or several, in a folder of its own."""

    def __init__(self, folder, count):
        self.folder, self.count = folder, count
        folder.mkdir()

    def launch(self, heartbeat=100):
        self.heartbeat = heartbeat
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        self.seen, self.pids = self.lines(), []
        self.before = self.folder.with_name(f"{self.folder.name}-before")
        shutil.rmtree(self.before, ignore_errors=True)
        shutil.copytree(self.folder, self.before)
        for process in range(self.count):
            pid = os.fork()
            if pid == 0:
                self._be(process, address, heartbeat)
            self.pids.append(pid)

    def _be(self, process, address, heartbeat):
        """Be one process of the run, and end."""
        log = os.open(self.folder / f"log-{process}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        jax.config.update("jax_num_cpu_devices", EXPERTS // self.count)
        code = 1
        try:
            train(self.folder, process, self.count, address, heartbeat)
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.exit(code)  # as a user's program ends: JAX waits for the other processes, or for the word that one died

    def lines(self):
        place = self.folder / "losses-0"
        return place.read_text().count("\n") if place.exists() else 0

    def in_flight(self):
        """Whether a checkpoint is being written."""
        return any("tmp" in path.name for path in (self.folder / "run").glob("*"))

    def wait(self):
        """The exit codes of all processes, once they have ended."""
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in self.pids]

    def kill(self, draw, saving):
        """Kill one process at a random moment after its first step, where `saving` while a checkpoint is written."""
        lines, process = self.seen + draw.randrange(1, 3), draw.randrange(self.count)
        while self.lines() < lines or (saving and not self.in_flight()):
            ended, status = os.waitpid(self.pids[process], os.WNOHANG)
            if ended:  # before a checkpoint was seen in flight: once more from where it began
                assert status == 0, (self.folder / f"log-{process}").read_text()
                self.pids.remove(ended)
                assert not any(self.wait())
                shutil.rmtree(self.folder)
                self.before.rename(self.folder)
                self.launch(self.heartbeat)
            time.sleep(0.0002)
        time.sleep(0 if saving else draw.uniform(0, 0.2))
        os.kill(self.pids[process], signal.SIGKILL)
        at, codes = time.monotonic(), self.wait()
        others = "".join((self.folder / f"log-{i}").read_text() for i in range(self.count) if i != process)
        seconds = time.monotonic() - at
        return {"killed": process, "codes": codes, "seconds": seconds, "saving": saving, "log": others}

    def losses(self):
        """Every loss that was noted, by step: more than one where the steps differ between two tries."""
        noted = [{} for _ in range(self.count)]
        for process, steps in enumerate(noted):
            for line in (self.folder / f"losses-{process}").read_text().splitlines():
                step, value = line.split()
                steps.setdefault(int(step), set()).add(value)
        return [[sorted(steps.get(step, ())) for step in range(STEPS)] for steps in noted]

    def result(self):
        return self.losses(), (self.folder / "model.safetensors").read_bytes()


def disturb(folder, count, kills, draw, saving):
    """A run that is killed some times and resumed each time, and what was seen of each death."""
    run, deaths = Run(folder, count), []
    for i in range(kills):
        run.launch(HEARTBEAT if count > 1 else 100)
        deaths.append(run.kill(draw, saving and i == 0) | {"count": count})
    run.launch()
    assert run.wait() == [0] * run.count, (run.folder / "log-0").read_text()
    return run.result(), deaths


def main(folder, runs, seed):
    """Undisturbed runs of one process and two, and `runs` others of each: one process is killed twice, two once."""
    draw, found = random.Random(seed), {"deaths": [], "equal": []}
    for count in (1, 2):
        whole, _ = disturb(folder / f"whole-{count}", count, 0, draw, False)
        found[f"losses-{count}"] = whole[0]
        found[f"log-{count}"] = (folder / f"whole-{count}" / "log-0").read_text()
        for i in range(runs):
            result, deaths = disturb(folder / f"killed-{count}-{i}", count, 3 - count, draw, saving=i % 2 == 0)
            found["deaths"] += deaths
            found["equal"].append(result == whole)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
