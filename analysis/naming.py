"""How labels are shown, escaped and turned into file names. Labels come from users' files."""

from __future__ import annotations

import hashlib
import math
import re
from functools import cache

from analysis import presentation, studies

_DISPLAY = {
    "baseline": "Baseline",
    "l2": "L2",
    "dropout": "Dropout",
    "cifar10": "CIFAR-10",
    "mnist": "MNIST",
    "fashion_mnist": "F-MNIST",
    "svhn": "SVHN",
    "sgd": "SGD",
    "adam": "Adam",
    "adagrad": "Adagrad",
    "adadelta": "Adadelta",
}
"""How people write the names of components. Each study has the names of its own labels."""

_ATTACKS = {
    "best_of": "Best of the attacks on one target",
    "threshold": "Threshold",
    "trained_attackers": "Trained attackers",
    "shadow": "Shadow model",
    "lira": "LiRA",
    "ratio": "RMIA’s ratio",
    "label_only": "Label-only",
    "shokri": "Shadow models of a cohort (Shokri)",
    "blind_mi": "BlindMI",
    "tail": "Tail of the losses",
    "strongest": "Best of all attacks",
}
_SCORES = {
    "online_log_odds": "log-odds, references with and without the example",
    "offline_log_odds": "log-odds, references without the example",
    "online_hinge": "margin, references with and without the example",
    "offline_hinge": "margin, references without the example",
    "online_log_odds_unaugmented": "log-odds of the example itself, references with and without it",
    "online_hinge_unaugmented": "margin of the example itself, references with and without it",
    "online": "references with and without the example",
    "offline": "references without the example",
    "label_only_ratio": "right answers, over the odds without them",
    "label_only": "right answers",
    "shokri": "network on the references’ answers",
    "diff_w": "decisions",
    "selected": "chosen for each target on other examples",
    "rmia_online": "RMIA’s form, references with and without the example",
    "rmia_offline": "RMIA’s form, references without the example",
}
"""How people write the names of attacks and of their scores. A defense may have the same label, so these stand apart."""

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "ε": r"$\varepsilon$",
    "δ": r"$\delta$",
    "±": r"$\pm$",
    "−": r"$-$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "Δ": r"$\Delta$",
    "—": "---",
    "†": r"$\dagger$",
    "\u00a0": "~",
}


@cache
def _display_names() -> dict[str, str]:
    return _DISPLAY | {label: name for study in studies.found() for label, name in study.display_names.items()}


def display(label: str) -> str:
    """The label as people write it, if that is known; any other label unchanged."""
    return presentation.current().names.get(label) or _display_names().get(label, label)


def attack(name: str) -> str:
    """The name of an attack as people write it, if that is known; any other name with spaces."""
    return _ATTACKS.get(name, name.replace("_", " "))


def score(name: str) -> str:
    """The name of an attack's score as people write it, if that is known; any other name with spaces."""
    return _SCORES.get(name, name.replace("_", " "))


def latex(text: str) -> str:
    """`text` with every character that has a meaning in LaTeX escaped."""
    return "".join(_LATEX.get(character, character) for character in text)


def plot_text(label: str) -> str:
    """The label as Matplotlib text, at most 28 characters long. A dollar sign would otherwise start a formula."""
    shown = display(label)
    # The end is kept too, because labels of one sweep often differ only there.
    shown = shown if len(shown) <= 28 else f"{shown[:14]}…{shown[-13:]}"
    return shown.replace("$", r"\$")


def file_name(label: str) -> str:
    """A safe part of a file name. Different labels give different names."""
    safe = re.sub(r"[^A-Za-z0-9.-]+|_+", "_", label).strip("._")[:40] or "label"
    return safe if safe == label else f"{safe}_{hashlib.sha256(label.encode()).hexdigest()[:6]}"


def latex_label(sweep: str, table: str) -> str:
    """The LaTeX label of a sweep's table, made of characters that a label may hold. It differs between sweeps."""
    return f"tab:{file_name(sweep)}-{table}"


def scientific(value: float) -> str:
    """A small number as 1e-5, two digits at most."""
    if not math.isfinite(value):
        return str(value)
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"


def epsilon(value: float, decimals: int = 2) -> str:
    """An ε with so many decimals; one that is so large that it means nothing, by its magnitude."""
    return f"{value:.{decimals}f}" if value < 10_000 else scientific(value)


def short_listing(words: list[str], most: int = 6) -> str:
    """Like `listing`, but of many words only the first, and how many others there are."""
    return listing(words if len(words) <= most else [*words[: most - 1], f"{len(words) - most + 1} others"])


def listing(words: list[str]) -> str:
    """“a, b and c”."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"
