"""Train a hierarchy universal -> family -> language, with attention experts of one's own, in both packages.

An expert is causal self-attention, a feed-forward layer and an adapter that is told the language, each after a
LayerNorm. Characters are embedded before the hierarchy, and the same table, outside of it, reads out what comes next:
of the fused output, which is what counts, and of each level, with smaller weights. A bridge keeps a language near its
family. Every batch has three of the seven languages, so that most experts have no rows; the routes are looked up from
the integers of its languages, and JAX compiles one step for all batches.

The text is drawn from random Markov chains, so the least loss that any model can have is known. Languages of one family
have similar chains; two languages have no family of their own and go to the fallback. It is no benchmark: the seven
chains are easy to learn. What it shows is how the parts go together, and that both packages take the same steps: they
start from the same weights, which `interop.to_torch` copies, and differ by rounding. So both have to be installed.

    python examples/language_hierarchy.py                      # a minute, most of it to compile the step in JAX
    python examples/language_hierarchy.py --framework torch    # train in one of the two only
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from language_experts import Sizes, jax_expert, torch_expert

import convexmoe_jax
import convexmoe_torch
from interop import to_torch

LANGUAGES = {"anu": "hill", "eru": "hill", "ilo": "hill", "osk": "coast", "usk": "coast", "ber": None, "tam": None}
FAMILIES = ("hill", "coast", "mixed")
LEVEL_WEIGHTS = {"universal": 0.3, "family": 0.2, "language": 0.5}
RATE, DECAY, CLIP = 3e-3, 1e-2, 1.0  # of AdamW; the largest norm of the gradient
BEGIN = 0  # stands before the first character

Tables = dict[str, np.ndarray]


class Batch(NamedTuple):
    """A line of text a row."""

    languages: np.ndarray  # [rows]
    characters: np.ndarray  # [rows, length], the first is BEGIN
    targets: np.ndarray  # [rows, length, characters], the next one as one-hot; zeros where the line has ended
    mask: np.ndarray  # [rows, length], False where the line has ended


def draw_chains(sizes: Sizes, seed: int) -> np.ndarray:
    """Return the probability of each next character, `[languages, characters, characters]`."""
    rng = np.random.default_rng(seed)
    shape = (sizes.characters, sizes.characters)
    of_all, of_family = rng.normal(size=shape), {name: rng.normal(size=shape) for name in FAMILIES}
    parts = [of_all + 1.5 * of_family[family or "mixed"] + rng.normal(size=shape) for family in LANGUAGES.values()]
    weights = np.exp(1.5 * np.stack(parts))
    weights[:, :, BEGIN] = 0
    return weights / weights.sum(axis=-1, keepdims=True)


def write_text(chains: np.ndarray, languages: np.ndarray, sizes: Sizes, rng: Any, dtype: Any) -> Batch:
    """Return lines in the given languages, `[rows]`, of random lengths."""
    rows = len(languages)
    text = np.full((rows, sizes.length + 1), BEGIN, np.int32)
    for at in range(sizes.length):
        below = chains[languages, text[:, at]].cumsum(axis=1) > rng.random((rows, 1))
        text[:, at + 1] = below.argmax(axis=1)
    mask = np.arange(sizes.length) < rng.integers(2, sizes.length + 1, (rows, 1))
    targets = np.eye(sizes.characters, dtype=dtype)[text[:, 1:]] * mask[..., None].astype(dtype)
    return Batch(languages.astype(np.int32), text[:, :-1], targets, mask)


def draw_batches(sizes: Sizes, steps: int, seed: int, dtype: Any = np.float32) -> list[Batch]:
    """Return a batch for each step, of three languages each, and a last one of all languages."""
    chains, rng = draw_chains(sizes, seed), np.random.default_rng(seed + 1)
    present = [rng.choice(rng.permutation(len(LANGUAGES))[:3], sizes.rows) for _ in range(steps)]
    present.append(np.arange(sizes.rows) % len(LANGUAGES))
    return [write_text(chains, languages, sizes, rng, dtype) for languages in present]


def least_loss(chains: np.ndarray, batch: Batch) -> float:
    """Return the cross-entropy of the chains themselves, nats a character."""
    logarithms = np.log(np.maximum(chains[batch.languages[:, None], batch.characters], 1e-300))
    return float(-(batch.targets * logarithms).sum() / batch.mask.sum())


def config_of(package: Any, sizes: Sizes) -> Any:
    """Return the config of the hierarchy; some experts leave the level before them alone."""
    expert = partial(package.ExpertConfig, metadata=sizes._asdict())
    families = {name: expert(name=name, loss_weight=0.05) for name in FAMILIES}
    families["mixed"] = expert(name="mixed", loss_weight=0.1, stop_gradient_from_parent=True)
    languages = {name: expert(name=name, loss_weight=0.03) for name in LANGUAGES}
    languages["usk"] = expert(name="usk", stop_gradient_from_parent=True)
    core = {"core": expert(name="core", loss_weight=0.02)}
    return package.CELMoEConfig(
        hidden_size=sizes.hidden,
        levels=[
            package.HierarchyLevelConfig(name="universal", experts=core),
            package.HierarchyLevelConfig(name="family", experts=families, fallback_expert="mixed"),
            package.HierarchyLevelConfig(name="language", experts=languages),
        ],
        fusion_dropout=0.0,  # JAX and PyTorch draw other numbers
    )


def family_table(package: Any, config: Any) -> Any:
    """Return the family of each language, as an integer: names are encoded once."""
    names = {"family": list(LANGUAGES.values()), "language": list(LANGUAGES)}
    return package.encode_routes(config, names, rows=len(LANGUAGES))["family"]


def next_character(log_softmax: Any, hidden: Any, targets: Any, context: Any) -> Any:
    """Return the cross-entropy of the next character, read out by the table that embeds characters."""
    return -(targets * log_softmax(hidden @ context["characters"].T)).sum() / context["mask"].sum()


def gap(first: Any, second: Any, context: Any) -> Any:
    """Return the mean squared difference of two outputs, `[rows, length, hidden]`, where there is text."""
    return (((first - second) ** 2).mean(-1) * context["mask"]).sum() / context["mask"].sum()


def losses_of(package: Any, log_softmax: Any, weights: dict[str, float]) -> Any:
    """Return the losses, which both packages write alike; the experts' own come to them."""
    losses, guess = package.CELMoELossAPI(), partial(next_character, log_softmax)
    losses.add_global("next", lambda output, targets, context: guess(output.fused_hidden, targets, context))
    losses.add_global(
        "kinship",
        lambda output, targets, context: gap(output.fused_hidden, output.levels["family"].hidden, context),
        weight=0.01,
    )
    for name, weight in weights.items():
        losses.add_level(
            name,
            "next",
            lambda level_output, output, targets, context: guess(level_output.hidden, targets, context),
            weight=weight,
        )
    losses.add_bridge(
        "family",
        "language",
        "gap",
        lambda parent, child, output, targets, context: gap(parent.hidden, child.hidden, context),
        weight=0.05,
    )
    return losses


def draw_weights(config: Any, sizes: Sizes, seed: int, dtype: Any = np.float32) -> tuple[Any, Tables]:
    """Return a hierarchy in JAX, and the tables that stand outside of it."""
    model = convexmoe_jax.HierarchicalCELMoE(config, jax_expert, rngs=nnx.Rngs(seed))
    nnx.update(model, jax.tree.map(lambda leaf: leaf.astype(dtype), nnx.state(model)))
    rng = np.random.default_rng(seed)
    shapes = {
        "characters": (sizes.characters, sizes.hidden),
        "positions": (sizes.length, sizes.hidden),
        "languages": (len(LANGUAGES), sizes.language_dim),
    }
    return model, {name: (0.3 * rng.normal(size=shape)).astype(dtype) for name, shape in shapes.items()}


def clip_as_torch(largest: float) -> optax.GradientTransformation:
    """Return clipping by `torch.nn.utils.clip_grad_norm_`'s formula: times `min(1, largest / (norm + 1e-6))`."""

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        norm = jnp.sqrt(sum(jnp.vdot(grad, grad) for grad in jax.tree.leaves(grads)))
        factor = jnp.minimum(largest / (norm + 1e-6), 1)
        return jax.tree.map(lambda grad: grad * factor, grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


class JaxTraining:
    """Parameters, in the hierarchy and outside of it, and the steps that change them.

    Args:
        model: the hierarchy.
        tables: the arrays outside of it.
        level_weights: of the losses of the levels.
        clip: the largest norm -> the transformation that clips gradients to it.
    """

    def __init__(
        self, model: Any, tables: Tables, level_weights: Any = LEVEL_WEIGHTS, clip: Any = clip_as_torch
    ) -> None:
        self.graph, state = nnx.split(model)
        self.params: Any = {"hierarchy": state} | {name: jnp.array(table) for name, table in tables.items()}
        self.family_of = jnp.asarray(family_table(convexmoe_jax, model.config))
        self.losses = losses_of(convexmoe_jax, jax.nn.log_softmax, level_weights)
        self.optimizer = optax.chain(clip(CLIP), convexmoe_jax.adamw(RATE, DECAY))
        self.state = self.optimizer.init(self.params)
        self.compiled_step = jax.jit(self.advance)

    def output(self, params: Any, batch: Batch) -> Any:
        """Return what the hierarchy gives; its routes come from the integers of the languages."""
        return nnx.merge(self.graph, params["hierarchy"])(
            params["characters"][batch.characters] + params["positions"],
            {"family": self.family_of[batch.languages], "language": batch.languages},
            context={"language_embedding": params["languages"][batch.languages]},
            mask=batch.mask,
        )

    def _bundle(self, params: Any, batch: Batch) -> Any:
        context = {"characters": params["characters"], "mask": batch.mask}
        return self.losses.compute(self.output(params, batch), batch.targets, context)

    def advance(self, params: Any, state: Any, batch: Batch) -> Any:
        """Return the parameters and the optimizer's state after a step, and the terms of the loss before it."""

        def objective(params: Any) -> Any:
            bundle = self._bundle(params, batch)
            return bundle.total, bundle

        (_, bundle), grads = jax.value_and_grad(objective, has_aux=True)(params)
        updates, state = self.optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, bundle

    def step(self, batch: Batch) -> float:
        """Take a step, and return the loss before it."""
        self.params, self.state, bundle = self.compiled_step(self.params, self.state, batch)
        return float(bundle.total)

    def terms(self, batch: Batch) -> dict[str, float]:
        """Return every term of the loss by name, by a step that is not taken: it is compiled already."""
        return self.compiled_step(self.params, self.state, batch)[2].as_dict()

    def weights(self) -> Tables:
        """Return every parameter, by its name in PyTorch."""
        tables = dict(self.params)
        twin = to_torch(nnx.merge(self.graph, tables.pop("hierarchy")), expert_factory=torch_expert)
        return {name: np.asarray(value) for name, value in (tables | twin.state_dict()).items()}


class TorchTraining:
    """The same in PyTorch: the hierarchy is given in JAX, and its weights are copied."""

    def __init__(self, model: Any, tables: Tables, level_weights: Any = LEVEL_WEIGHTS) -> None:
        self.model = to_torch(model, expert_factory=torch_expert)
        self.tables = {name: torch.tensor(table, requires_grad=True) for name, table in tables.items()}
        self.parameters = [*self.model.parameters(), *self.tables.values()]
        self.family_of = torch.as_tensor(family_table(convexmoe_torch, self.model.config))
        self.losses = losses_of(convexmoe_torch, partial(torch.log_softmax, dim=-1), level_weights)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=RATE, weight_decay=DECAY)

    def output(self, batch: Batch) -> Any:
        """Return what the hierarchy gives for a batch of tensors."""
        return self.model(
            self.tables["characters"][batch.characters] + self.tables["positions"],
            {"family": self.family_of[batch.languages], "language": batch.languages},
            context={"language_embedding": self.tables["languages"][batch.languages]},
            mask=batch.mask,
        )

    def _bundle(self, batch: Batch) -> Any:
        batch = Batch(*map(torch.from_numpy, batch))
        context = {"characters": self.tables["characters"], "mask": batch.mask}
        return self.losses.compute(self.output(batch), batch.targets, context)

    def step(self, batch: Batch) -> float:
        """Take a step, and return the loss before it."""
        self.optimizer.zero_grad()
        total = self._bundle(batch).total
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        return total.item()

    def terms(self, batch: Batch) -> dict[str, float]:
        """Return every term of the loss by name."""
        with torch.no_grad():
            return self._bundle(batch).as_dict()

    def weights(self) -> Tables:
        """Return every parameter by name."""
        return {name: value.detach().numpy() for name, value in (self.tables | self.model.state_dict()).items()}


TRAININGS: dict[str, Any] = {"jax": JaxTraining, "torch": TorchTraining}


def largest_difference(first: Tables, second: Tables) -> float:
    """Return the largest difference of two sets of arrays, relative to the largest value of each array."""
    pairs = [(first[name], second[name]) for name in first]
    return max(float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)) for a, b in pairs)


def show(before: dict[str, float], after: dict[str, float], uniform: float, least: float) -> None:
    """Print the losses of the next character by level, beside that of equal chances and the least that there can be."""
    rows = {f"{level} level": f"{level}.next" for level in LEVEL_WEIGHTS} | {"fused output": "global.next"}
    print(f"    {'nats a character':18}{'before':>8}{'after':>8}")
    for label, name in rows.items():
        print(f"    {label:18}{before[name]:8.3f}{after[name]:8.3f}")
    print(f"    {'equal chances':18}{'':8}{uniform:8.3f}")
    print(f"    {'the chains':18}{'':8}{least:8.3f}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--framework", choices=("jax", "torch", "both"), default="both")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # the products are small
    sizes = Sizes()
    *batches, unseen = draw_batches(sizes, args.steps, args.seed)
    least = least_loss(draw_chains(sizes, args.seed), unseen)
    start = draw_weights(config_of(convexmoe_jax, sizes), sizes, args.seed)
    losses, weights = {}, {}
    for name in TRAININGS if args.framework == "both" else [args.framework]:
        started = time.perf_counter()
        training = TRAININGS[name](*start)
        before = training.terms(unseen)
        losses[name] = {"total": np.array([training.step(batch) for batch in batches])}
        after, weights[name] = training.terms(unseen), training.weights()
        seconds = time.perf_counter() - started
        print(f"{name}: {args.steps} steps, {seconds:.0f} s; lines that it was not trained on\n")
        show(before, after, float(np.log(sizes.characters - 1)), least)
    if args.framework == "both":
        print("Largest differences between the frameworks, relative:")
        print(f"    loss of any step  {largest_difference(losses['jax'], losses['torch']):.1e}")
        print(f"    parameters after the last  {largest_difference(weights['jax'], weights['torch']):.1e}")


if __name__ == "__main__":
    main()
