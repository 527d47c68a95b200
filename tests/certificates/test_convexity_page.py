"""docs/pages/convexity.md says of the rules what the code says, and shows the proofs that the code prints."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convexmoe.convexity.calculus import LAWS
from convexmoe.convexity.scalars import SCALARS
from convexmoe_jax.convexity import rules as jax_rules
from convexmoe_torch.convexity import rules as torch_rules
from convexmoe_torch.convexity.lowering import ALIASES, LOWERINGS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "pages" / "convexity.md").read_text()
REGIONS = {
    None: "",
    (-np.inf, np.inf): "everywhere",
    (0.0, np.inf): "above 0",
    (-np.inf, 0.0): "below 0",
    (-1.0, np.inf): "above -1",
}
NAMED = re.compile(r"`([\w-]+)`")
# Line of the page -> the file of the repository in which it stands.
QUOTED = {
    '"cosh": Scalar(EVERYWHERE, None, ABOVE, BELOW, None, (1.0, np.inf)),': "convexmoe/convexity/scalars.py",
    'Row("hyperbolic cosine", P, CONVEX, lambda xp, x: xp.cosh(x) + xp.cosh(xp.abs(x))),': (
        "tests/certificates/convexity_table.py"
    ),
    '"cosh rises": scalar("cosh", rising=EVERYWHERE),': "tests/certificates/test_mutants.py",
    '"cosh": (lax.cosh, np.cosh),': "tests/certificates/random_programs.py",
}


def rows(title, page=PAGE):
    """The cells of the table whose first title it is."""
    lines = page[page.index(f"\n| {title} |") :].strip().split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def rules_of(page=PAGE):
    """The table of rules: law -> names of the primitives of JAX, of the operations in PyTorch."""
    return {law: [set(NAMED.findall(cell)) for cell in cells] for *cells, _, law in rows("in JAX", page)}


def named_by(rules, law):
    """The names of a package whose rules say a law."""
    return {name for name, rule in rules.items() if LAWS[rule.law] == law}


def stray(page=PAGE):
    """The laws of which the page says something else than the code."""
    said = rules_of(page)
    wanted = set(LAWS.values()) - {LAWS["none"]}
    return wanted ^ said.keys() | {
        law
        for law, names in said.items()
        if names != [named_by(package.RULES, law) for package in (jax_rules, torch_rules)]
    }


def test_the_table_has_every_rule_under_its_law():
    assert stray() == set()
    assert sum(len(names) for names, _ in rules_of().values()) == len(jax_rules.RULES)


@pytest.mark.parametrize("name", ["`dot_general`", "`convolution`", "`integer_pow`", LAWS["ordered"]])
def test_control_a_rule_that_the_table_lacks_is_seen(name):
    assert len(stray(PAGE.replace(name, "", 1) if name.startswith("`") else PAGE.replace(name, "?"))) >= 1


def test_control_a_new_rule_is_missed(monkeypatch):
    monkeypatch.setitem(jax_rules.RULES, "tan", jax_rules.RULES["tanh"])
    assert stray() == {LAWS["scalar"]}


def test_the_functions_of_one_number_are_where_the_code_has_them():
    said = {name: cells for names, *cells in rows("function") for name in NAMED.findall(names)}
    code = {
        name: [REGIONS[region] for region in (scalar.convex, scalar.concave, scalar.rising, scalar.falling)]
        for name, scalar in SCALARS.items()
    }
    assert said == code


def test_the_operators_of_pytorch_are_those_that_are_written():
    listed = PAGE[PAGE.index("<!-- lowered -->") :]
    assert set(NAMED.findall(listed)) == set(LOWERINGS) - set(ALIASES) - set(torch_rules.RULES)


def test_the_printed_proofs_are_what_the_program_prints():
    section = PAGE[PAGE.index("## How to read a proof") :]
    program, shown = re.findall(r"```(?:python|text)\n(.*?)```", section, re.DOTALL)[:2]
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    proof, refutation = (text.split("refuted: ") for text in (shown, result.stdout))
    assert proof[0] == refutation[0]
    # The search may take another segment on another machine.
    without = [re.sub(r"-?[0-9.]+(e-?[0-9]+)?", "0", text[1]) for text in (proof, refutation)]
    assert re.sub(" +", " ", without[0]) == re.sub(" +", " ", without[1])


@pytest.mark.parametrize("line", QUOTED)
def test_the_worked_example_is_quoted_from_the_code(line):
    assert line in PAGE and line in (ROOT / QUOTED[line]).read_text()
    assert all("cosh" in package.RULES for package in (jax_rules, torch_rules)) and "cosh" in LOWERINGS
