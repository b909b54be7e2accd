"""Finds defenses, attacks, comparisons, datasets and architectures by name, and builds them from untrusted values.

A component is one file that defines one frozen dataclass; users refer to it by the file's name. Other installed
packages add components through entry points of the groups below. Nothing is registered by hand.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sweeper.errors import UserError, sentence, shown, unknown_name

KINDS: dict[str, tuple[str, ...]] = {
    "defense": ("models.defenses",),
    "attack": ("attacks.membership", "attacks.inversion"),
    "comparison": ("attacks.comparisons",),
    "dataset": ("models.datasets",),
    "architecture": ("models.architectures",),
}
"""The packages that are scanned for each kind; the entry point group is `sweeper.<kind>s`."""


@cache
def names(kind: str) -> dict[str, str]:
    """Every component of `kind`: its name, and the module (or entry point value) that defines it."""
    found: dict[str, str] = {}
    for package in KINDS[kind]:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            if module.name != "base" and not module.name.startswith("_"):
                found[module.name] = f"{package}.{module.name}"
    for point in entry_points(group=f"sweeper.{kind}s"):
        found.setdefault(point.name, point.value)
    return found


@cache
def component_class(kind: str, name: str) -> type[Any]:
    """The dataclass with this name.

    Raises:
        UserError: there is no such name, or its file does not define exactly one component.
    """
    available = names(kind)
    if name not in available:
        raise unknown_name(kind, name, available)
    module_name, _, attribute = available[name].partition(":")
    module = importlib.import_module(module_name)
    if attribute:
        return getattr(module, attribute)  # type: ignore[no-any-return]
    own = [
        value
        for _, value in inspect.getmembers(module, inspect.isclass)
        if value.__module__ == module_name and dataclasses.is_dataclass(value) and hasattr(value, "source")
    ]
    if len(own) != 1:
        raise UserError(
            f"{module_name} must define exactly one {kind}: a frozen dataclass with a `source`; it defines {len(own)}."
        )
    return own[0]


def description(kind: str, name: str) -> tuple[str, str]:
    """A component's one-line description and its source. Read from its file, because importing it would import PyTorch."""
    module_name, _, attribute = names(kind)[name].partition(":")
    package, _, last = module_name.rpartition(".")
    if not attribute and package in KINDS[kind]:
        paths = [Path(folder, f"{last}.py") for folder in importlib.import_module(package).__path__]
        text = next((path.read_text(encoding="utf-8") for path in paths if path.is_file()), "")
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and (source := _constant(node, "source")) is not None:
                return (ast.get_docstring(node) or "").partition("\n")[0], source
    cls = component_class(kind, name)
    return (cls.__doc__ or "").strip().partition("\n")[0], cls.source


def _constant(node: ast.ClassDef, name: str) -> str | None:
    """The string that a class assigns to one of its attributes."""
    for each in node.body:
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and each.target.id == name:
            return (
                each.value.value if isinstance(each.value, ast.Constant) and isinstance(each.value.value, str) else None
            )
    return None


@cache
def _name_of_class(kind: str) -> dict[type[Any], str]:
    return {component_class(kind, name): name for name in names(kind)}


def name_of(kind: str, component: object) -> str:
    """The name users type for a component."""
    return _name_of_class(kind)[type(component)]


def build(kind: str, reference: object, path: str) -> Any:
    """Build a component from `NAME` or `{name: NAME, field: value, …}`, with strict validation of its values.

    Raises:
        UserError: the name or a field is unknown, or a value has the wrong type or is out of range; the text
            begins with `path`.
    """
    if isinstance(reference, str):
        name, values = reference, {}
    elif isinstance(reference, Mapping) and isinstance(reference.get("name"), str):
        name = reference["name"]
        values = {key: value for key, value in reference.items() if key != "name"}
    else:
        raise UserError(
            f"{path}: {shown(reference)} does not name a {kind}. Write a name, or a mapping with `name` and fields. "
            f"Available: {', '.join(sorted(names(kind)))}."
        )
    try:
        cls = component_class(kind, name)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return validate(cls, values, f"{path} ({name})")


def validate(cls: type[Any], values: object, path: str) -> Any:
    """An instance of a dataclass from untrusted values, without unknown fields or silent conversions.

    Raises:
        UserError: one sentence per problem, each with the path, the value and what is allowed.
    """
    fields = {field.name for field in dataclasses.fields(cls) if field.init}
    if isinstance(values, Mapping):
        for key in values:
            if key not in fields:
                raise UserError(f"{path}: {unknown_name('field', key, fields)}")
    try:
        text = json.dumps(values, default=str)
        return _adapter(cls).validate_json(text, strict=True)  # type: ignore[arg-type]
    except ValidationError as error:
        problems = [_problem(path, item) for item in error.errors(include_url=False)]
        raise UserError(" ".join(dict.fromkeys(problems))) from None


@cache
def _adapter(cls: type[Any]) -> TypeAdapter[Any]:
    # JSON mode is strict (no "3" for 3), but accepts a list for a tuple, which YAML cannot express.
    return TypeAdapter(cls)


def _problem(path: str, item: Any) -> str:
    location = ".".join(str(part) for part in item["loc"])
    where = f"{path}.{location}" if location else path
    if item["type"] == "value_error":
        return f"{where}: {sentence(item['ctx']['error'])}"
    if item["type"] == "missing":
        return f"{where}: this field is required."
    return f"{where}: got {shown(item['input'])}. {item['msg']}."


def configuration(kind: str, component: object) -> dict[str, Any]:
    """A component as plain JSON values: its name, its revision if any, and all fields with defaults spelled out.

    Fields whose metadata say `identity: False` (such as the number of processes) change no result and are left out.
    """
    assert dataclasses.is_dataclass(component) and not isinstance(component, type)
    values: dict[str, Any] = {"name": name_of(kind, component)}
    revision = getattr(component, "revision", None)
    if revision is not None:
        values["revision"] = revision
    for field in dataclasses.fields(component):
        if field.metadata.get("identity", True):
            values[field.name] = getattr(component, field.name)
    return values
