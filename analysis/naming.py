"""How labels are shown, escaped and turned into file names. Labels come from users' files."""

from __future__ import annotations

import hashlib
import math
import re

_DISPLAY = {
    "baseline": "Baseline",
    "dp_eps2": "DP ε=2",
    "dp_eps4": "DP ε=4",
    "dp_eps8": "DP ε=8",
    "l2": "L2",
    "dropout": "Dropout",
    "l2_dropout": "L2+Dropout",
    "cifar10": "CIFAR-10",
    "mnist": "MNIST",
    "fashion_mnist": "F-MNIST",
    "svhn": "SVHN",
    "lin_cnn": "CNN",
    "lin_lstm": "LSTM",
    "sgd": "SGD",
    "adam": "Adam",
    "adagrad": "Adagrad",
    "adadelta": "Adadelta",
    "conv1": "Conv1",
    "maxpool1": "MaxPool1",
    "conv2": "Conv2",
    "maxpool2": "MaxPool2",
    "conv3": "Conv3",
    "maxpool3": "MaxPool3",
    "dense": "Dense",
    "prediction": "Prediction",
}

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


def display(label: str) -> str:
    """The label as people write it, where the paper has it; any other label as it is."""
    return _DISPLAY.get(label, label)


def latex(text: str) -> str:
    """`text` with every character that LaTeX would act on escaped."""
    return "".join(_LATEX.get(character, character) for character in text)


def plot_text(label: str) -> str:
    """The label as Matplotlib text: a dollar sign would otherwise start a formula."""
    shown = display(label)
    # The end is kept too: labels of one sweep often differ there alone.
    shown = shown if len(shown) <= 28 else f"{shown[:14]}…{shown[-13:]}"
    return shown.replace("$", r"\$")


def file_name(label: str) -> str:
    """A safe part of a file name; labels that differ give names that differ."""
    safe = re.sub(r"[^A-Za-z0-9.-]+|_+", "_", label).strip("._")[:40] or "label"
    return safe if safe == label else f"{safe}_{hashlib.sha256(label.encode()).hexdigest()[:6]}"


def latex_label(sweep: str, table: str) -> str:
    """The LaTeX label of a sweep's table, of letters that a label can hold; two sweeps' tables have two labels."""
    return f"tab:{file_name(sweep)}-{table}"


def scientific(value: float) -> str:
    """A small number as 1e-5, two digits at most."""
    if not math.isfinite(value):
        return str(value)
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"


def listing(words: list[str]) -> str:
    """“a, b and c”."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"
