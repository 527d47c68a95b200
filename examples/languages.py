"""Spell words of 25 languages: does it help that experts are arranged as universal -> family -> language?

A small model reads the last characters of a word and predicts the next one. Behind its encoder stand three levels of
experts; the models compared differ only in who shares an expert with whom:

    shared      one expert a level, for all languages
    flat        one expert a language, at every level
    hierarchy   one for all, then one a family, then one a language
    shuffled    the hierarchy with languages dealt to families at random: the control of the family level

Every sample passes three experts of the same size, so all four spend exactly the same multiply-adds a sample, and take
the same number of steps on the same batches. They have different numbers of parameters, which the table states. All of
them are told the language, by a learned vector. Each gets its best learning rate of one grid, on validation words.

Some languages have only 200 words to learn from. Scores are bits per character of held-out words, end of word
included: lower is better. A form that is held out is held out in every language, so that no model has seen "radio" in a
neighbor. The words are split once; seeds change weights and batches.

What came out (three seeds, medians over them, CPU; the ranges do not overlap unless said):

    mean of 25 languages   hierarchy 3.233   shuffled 3.273   shared 3.284   flat 3.327
    17 with 2500 words     hierarchy 3.123   flat 3.138       shuffled 3.143   shared 3.228   (first three overlap)
    8 with 200 words       shared 3.405      hierarchy 3.461  shuffled 3.555   flat 3.729

So the hierarchy is best on average, and ties with flat experts on the rich languages at under half their parameters.
On the poor languages real families help, but one shared model is better still, in all of them but Icelandic.

The words come from the package wordfreq: code under the Apache license 2.0, data under Creative Commons
Attribution-ShareAlike 4.0 (https://creativecommons.org/licenses/by-sa/4.0/), see its README for all sources.

    python examples/languages.py            # minutes on two cores; table, figures.json and languages.png
    python examples/languages.py --quick    # seconds: does it run?
"""

from __future__ import annotations

import argparse
import json
import time
import unicodedata
import zlib
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import convexmoe_jax as cm

# Relatives that share a script: experts cannot share much between alphabets.
FAMILIES = {
    "romance": ["fr", "es", "it", "pt", "ca", "ro"],
    "germanic": ["en", "de", "nl", "sv", "nb", "da", "is"],
    "slavic": ["pl", "cs", "sh", "sk", "sl"],
    "cyrillic": ["ru", "uk", "bg", "mk"],
    "austronesian": ["id", "fil", "ms"],
}
POOR = {"ca", "ro", "da", "is", "sk", "sl", "mk", "ms"}  # languages that are given few words, on purpose
QUICK_FAMILIES = {"romance": ["es", "pt", "ca"], "germanic": ["sv", "da"]}
MODELS = ("shared", "flat", "hierarchy", "shuffled")
LEVELS = ("universal", "family", "language")

CANDIDATES, RICH_WORDS, POOR_WORDS = 4000, 2500, 200
TEST, VALIDATION = 0.06, 0.03  # shares of the forms that are held out
WINDOW = 8  # characters the model sees
CHARACTER_DIM, LANGUAGE_DIM, HIDDEN, EXPERT_HIDDEN = 12, 16, 64, 64
BATCH, STEPS, RATES = 1024, 800, (3e-3, 1e-2, 3e-2)
CHUNK = 50  # steps between two movements of the progress bar
PAD, END = 0, 1  # before the first character, after the last

Families = dict[str, list[str]]


class Settings(NamedTuple):
    families: Families
    rates: tuple[float, ...]
    seeds: int
    steps: int


class Words(NamedTuple):
    """One row for each character to predict."""

    window: jax.Array  # [rows, WINDOW] the characters before it
    target: jax.Array  # [rows]
    language: jax.Array  # [rows]; rows stand in the order of languages


def read_words(languages: list[str], cyrillic: set[str]) -> dict[str, Families]:
    """Return split -> language -> words."""
    from wordfreq import top_n_list

    splits: dict[str, Families] = {"train": {}, "validation": {}, "test": {}}
    for language in languages:
        script = "CYRILLIC" if language in cyrillic else "LATIN"
        words = [
            word
            for word in top_n_list(language, 2 * CANDIDATES, wordlist="small")
            if 3 <= len(word) <= 16 and all(unicodedata.name(c, "").startswith(script) for c in word)
        ][:CANDIDATES]
        # A hash of the form instead of a dice: the same form falls into the same split in every language.
        share = {word: zlib.crc32(word.encode()) / 2**32 for word in words}
        order = sorted(words, key=share.__getitem__)
        train = [word for word in order if share[word] >= TEST + VALIDATION]
        splits["test"][language] = [word for word in order if share[word] < TEST]
        splits["validation"][language] = [w for w in order if TEST <= share[w] < TEST + VALIDATION]
        splits["train"][language] = train[: POOR_WORDS if language in POOR else RICH_WORDS]
    return splits


def encode(words: dict[str, list[str]], characters: dict[str, int]) -> Words:
    """Return every position of every word; words with characters that training never showed are left out."""
    windows, targets, languages = [], [], []
    for index, language in enumerate(words):
        for word in words[language]:
            if all(c in characters for c in word):
                codes = [PAD] * WINDOW + [characters[c] for c in word] + [END]
                for at in range(WINDOW, len(codes)):
                    windows.append(codes[at - WINDOW : at])
                    targets.append(codes[at])
                    languages.append(index)
    return Words(*(jnp.asarray(np.array(part, np.int32)) for part in (windows, targets, languages)))


class Adapter(cm.ExpertModule):
    """`hidden + MLP(hidden)`. It starts as the identity: an expert with few words leaves what its parent said."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.mlp = cm.MLPExpert(HIDDEN, EXPERT_HIDDEN, rngs=rngs)
        self.mlp.weight_2[...] = jnp.zeros((EXPERT_HIDDEN, HIDDEN))

    def __call__(self, batch: cm.ExpertBatch) -> cm.ExpertResult:
        return cm.ExpertResult(batch.hidden + self.mlp(batch).hidden)


class Speller(nnx.Module):
    """Characters -> encoder -> three levels of experts -> scores of the next character."""

    def __init__(self, experts: Families, num_characters: int, num_languages: int, seed: int) -> None:
        rngs = nnx.Rngs(seed)
        self.characters = nnx.Embed(num_characters, CHARACTER_DIM, rngs=rngs)
        self.languages = nnx.Embed(num_languages, LANGUAGE_DIM, rngs=rngs)
        self.encoder = nnx.Linear(WINDOW * CHARACTER_DIM + LANGUAGE_DIM, HIDDEN, rngs=rngs)
        configs = {level: [cm.ExpertConfig(name) for name in names] for level, names in experts.items()}
        levels = [cm.HierarchyLevelConfig(level, entries) for level, entries in configs.items()]
        config = cm.CELMoEConfig(HIDDEN, levels, fusion_dropout=0.0)
        self.hierarchy = cm.HierarchicalCELMoE(config, lambda *_, rngs: Adapter(rngs), rngs=rngs)
        self.readout = nnx.Linear(HIDDEN, num_characters, rngs=rngs)

    def __call__(self, window: jax.Array, language: jax.Array, routes: dict[str, jax.Array]) -> jax.Array:
        seen = self.characters(window).reshape(len(window), -1)
        hidden = nnx.gelu(self.encoder(jnp.concatenate([seen, self.languages(language)], axis=1)))
        return self.readout(self.hierarchy(hidden, routes).fused_hidden)


def arrangement(model: str, families: Families, seed: int) -> tuple[Families, np.ndarray]:
    """Return the names of the experts of each level, and the expert of each language: `[levels, languages]`."""
    languages = [language for members in families.values() for language in members]
    family = np.repeat(np.arange(len(families)), [len(members) for members in families.values()])
    if model == "shuffled":
        family = np.random.default_rng(seed).permutation(family)
    everyone, own = np.zeros_like(family), np.arange(len(languages))
    if model == "shared":
        return {level: ["all"] for level in LEVELS}, np.stack([everyone] * 3)
    if model == "flat":
        return {level: languages for level in LEVELS}, np.stack([own] * 3)
    names = {"universal": ["all"], "family": list(families), "language": languages}
    return names, np.stack([everyone, family, own])


def count(model: Speller) -> dict[str, int]:
    """Return the parameters of a model, and its multiply-adds a sample: the entries of the weights a sample meets."""
    parameters = macs = 0
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        size, name = leaf[...].size, path[-1]
        parameters += size
        if "level_modules" in path:  # experts are stacked, [experts, in, out]: a sample meets one of them
            macs += size // len(leaf[...]) if leaf[...].ndim == 3 else 0
        elif name in ("weight", "kernel"):  # of Linear and of the fusion; embeddings are looked up
            macs += size if leaf[...].ndim == 2 else 0
    return {"parameters": parameters, "macs": macs}


def losses(graph: Any, params: Any, words: Words, table: jax.Array) -> jax.Array:
    """Return the surprise at each row's target, in bits."""
    routes = {level: table[i][words.language] for i, level in enumerate(LEVELS)}
    scores = nnx.merge(graph, params)(words.window, words.language, routes)
    return optax.softmax_cross_entropy_with_integer_labels(scores, words.target) / jnp.log(2.0)


score = jax.jit(losses, static_argnames="graph")
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())


@partial(jax.jit, static_argnames="graph", donate_argnames="carry")
def train(
    graph: Any, carry: Any, rates: jax.Array, key: jax.Array, words: Words, ends: jax.Array, table: jax.Array
) -> Any:
    """Take one step of Adam for each of `rates`."""
    starts = jnp.concatenate([jnp.zeros(1, ends.dtype), ends[:-1]])
    # Square roots keep the poor languages in sight without drowning them in repetitions.
    weight = jnp.log((ends - starts).astype(jnp.float32)) / 2

    def step(carry: Any, now: Any) -> Any:
        params, state = carry
        rate, key = now
        pick, place = jax.random.split(key)
        language = jax.random.categorical(pick, weight, shape=(BATCH,))
        rows = jax.random.randint(place, (BATCH,), starts[language], ends[language])
        batch = jax.tree.map(lambda column: column[rows], words)
        gradients = jax.grad(lambda p: losses(graph, p, batch, table).mean())(params)
        directions, state = OPTIMIZER.update(gradients, state)
        return (jax.tree.map(lambda p, d: p - rate * d, params, directions), state), None

    return jax.lax.scan(step, carry, (rates, jax.random.split(key, len(rates))))[0]


class Data(NamedTuple):
    languages: list[str]
    num_characters: int
    train: Words
    ends: jax.Array  # [languages] where the rows of each language end
    held_out: Words  # validation, then test
    split: int  # where test begins


def prepare(settings: Settings) -> Data:
    """Return the rows of all splits."""
    languages = [language for members in settings.families.values() for language in members]
    words = read_words(languages, set(settings.families.get("cyrillic", [])))
    seen = sorted({c for of_language in words["train"].values() for word in of_language for c in word})
    codes = {character: code for code, character in enumerate(seen, start=END + 1)}
    train_rows, validation, test = (encode(words[split], codes) for split in ("train", "validation", "test"))
    ends = jnp.cumsum(jnp.bincount(train_rows.language, length=len(languages)))
    held_out = jax.tree.map(lambda *parts: jnp.concatenate(parts), validation, test)
    return Data(languages, len(codes) + 2, train_rows, ends, held_out, len(validation.target))


def run(model: str, rate: float, seed: int, data: Data, settings: Settings, tick: Any) -> dict[str, Any]:
    """Train one model; return its size and the bits per character of each language on both held-out splits."""
    names, where = arrangement(model, settings.families, seed)
    speller = Speller(names, data.num_characters, len(data.languages), seed)
    graph, params = nnx.split(speller)  # the structure is static, the weights go through jit
    size, table, carry = count(speller), jnp.asarray(where), (params, OPTIMIZER.init(params))
    at = np.arange(settings.steps)
    rates = rate * np.minimum((at + 1) / 40, 1) * 0.5 * (1 + np.cos(np.pi * at / settings.steps))
    for start in range(0, settings.steps, CHUNK):
        key = jax.random.fold_in(jax.random.key(seed), start)  # the same batches for all models
        now = jnp.asarray(rates[start : start + CHUNK], jnp.float32)
        carry = train(graph, carry, now, key, data.train, data.ends, table)
        jax.block_until_ready(carry)
        tick(CHUNK)
    bits = np.asarray(score(graph, carry[0], data.held_out, table), np.float64)
    language, split = np.asarray(data.held_out.language), data.split
    parts = (language[:split], bits[:split]), (language[split:], bits[split:])
    validation, test = (np.bincount(part, values) / np.bincount(part) for part, values in parts)
    by_name = dict(zip(data.languages, test.tolist(), strict=True))
    return {"size": size, "validation": float(validation.mean()), "test": by_name}


def compare(data: Data, settings: Settings, console: Console) -> dict[str, Any]:
    """Train every model at every rate, then at the best rate with more seeds; return the figures."""
    figures: dict[str, Any] = {}
    runs = len(MODELS) * (len(settings.rates) + settings.seeds - 1)
    with Progress(console=console) as progress:
        task = progress.add_task("", total=runs * settings.steps)

        def go(model: str, rate: float, seed: int) -> dict[str, Any]:
            progress.update(task, description=f"{model}, rate {rate:g}, seed {seed}")
            return run(model, rate, seed, data, settings, partial(progress.advance, task))

        for model in MODELS:
            started = time.perf_counter()
            grid = {rate: go(model, rate, 0) for rate in settings.rates}
            best = min(grid, key=lambda rate: grid[rate]["validation"])
            results = [grid[best]] + [go(model, best, seed) for seed in range(1, settings.seeds)]
            figures[model] = {
                **results[0]["size"],
                "steps": settings.steps,
                "rate": best,
                "validation": {f"{rate:g}": result["validation"] for rate, result in grid.items()},
                "seconds": time.perf_counter() - started,
                "bits": [result["test"] for result in results],
            }
    return figures


def over_seeds(figures: dict[str, Any], languages: list[str], reduce: Any = np.mean) -> np.ndarray:
    """Return a figure of each seed: the mean, or another reduction, over some languages."""
    return np.array([reduce([bits[language] for language in languages]) for bits in figures["bits"]])


def show(figures: dict[str, Any], languages: list[str], console: Console) -> None:
    """Print the sizes of the models, their scores over groups of languages, then each language."""
    poor, rich = [x for x in languages if x in POOR], [x for x in languages if x not in POOR]
    table = Table("", title="Held-out bits per character: median over seeds, best in bold")
    for model in figures:
        table.add_column(model, justify="right")
    for name in ("parameters", "macs", "steps", "rate"):
        table.add_row(name, *[f"{found[name]:,}" for found in figures.values()], end_section=name == "rate")
    summary = {"mean": (languages, np.mean), "mean, rich": (rich, np.mean), "mean, poor": (poor, np.mean)}
    rows = summary | {"worst": (languages, max)} | {x: ([x], max) for x in languages}
    for name, (group, reduce) in rows.items():
        seeds = [over_seeds(found, group, reduce) for found in figures.values()]
        best = min(np.median(values) for values in seeds)
        cells = [("[bold]" if np.median(v) == best else "[not bold]") + f"{np.median(v):.3f}[/]" for v in seeds]
        if name not in languages:
            cells = [f"{cell}\n{v.min():.3f}-{v.max():.3f}" for cell, v in zip(cells, seeds, strict=True)]
        table.add_row(name + " (poor)" * (name in POOR), *cells, end_section=name == "worst")
    console.print(table)


def draw(figures: dict[str, Any], families: Families, path: Path) -> None:
    """Draw, for each language, how far each model is from the shared one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    languages = [language for members in families.values() for language in members]
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.28 * len(languages)), layout="constrained")
    looks = {"flat": ("C1", "s", -0.22), "hierarchy": ("C0", "o", 0.0), "shuffled": ("C7", "x", 0.22)}
    for model, (color, marker, shift) in looks.items():
        pairs = zip(figures[model]["bits"], figures["shared"]["bits"], strict=True)
        gain = np.array([[mine[x] - base[x] for x in languages] for mine, base in pairs])
        middle, place = np.median(gain, axis=0), np.arange(len(languages)) + shift
        spread = [middle - gain.min(axis=0), gain.max(axis=0) - middle]
        axes.errorbar(middle, place, xerr=spread, fmt=marker, color=color, ms=5, lw=1, label=model)
    axes.axvline(0, color="black", lw=0.8)
    last = -0.5
    for family, members in families.items():
        axes.text(1.01, last + len(members) / 2, family, transform=axes.get_yaxis_transform(), va="center")
        last += len(members)
        axes.axhline(last, color="lightgray", lw=0.8)
    labels = [f"{x} ({POOR_WORDS} words)" if x in POOR else x for x in languages]
    axes.set_yticks(range(len(languages)), labels)
    axes.set_ylim(len(languages) - 0.5, -0.5)
    axes.set_xlabel("bits per character minus the shared model's, at equal compute (left: better)")
    axes.set_title("Held-out words: median over seeds, bars from least to most")
    axes.legend(loc="best")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="five languages, few steps: does it run?")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("languages-run"))
    args = parser.parse_args()
    full, quick = (Settings(FAMILIES, RATES, args.seeds, STEPS), Settings(QUICK_FAMILIES, RATES[1:2], 1, 2 * CHUNK))
    settings = quick if args.quick else full
    started, console = time.perf_counter(), Console()
    data = prepare(settings)
    learn, test = len(data.train.target), len(data.held_out.target) - data.split
    console.print(f"{len(data.languages)} languages, {learn:,} characters to learn, {test:,} to be tested on")
    figures = compare(data, settings, console)
    show(figures, data.languages, console)
    args.out.mkdir(parents=True, exist_ok=True)
    seconds = time.perf_counter() - started
    poor = [language for language in data.languages if language in POOR]
    record = {"seconds": seconds, "languages": data.languages, "poor": poor, "models": figures}
    (args.out / "figures.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(figures, settings.families, args.out / "languages.png")
    console.print(f"{seconds:.0f} s. Written: {args.out / 'figures.json'}, {args.out / 'languages.png'}")


if __name__ == "__main__":
    main()
