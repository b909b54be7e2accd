"""Reads sweep files: YAML 1.2 with text, numbers, true and false, null, lists and mappings only."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError, YAMLStreamError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.resolver import VersionedResolver

from sweeper.errors import UserError, sentence, shown

MOST_CHARACTERS = 300_000
"""Most characters of a sweep file, also with its anchors written out."""
MOST_LEVELS = 20
"""Most levels of nested lists and mappings."""
_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_CORE_SCHEMA = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
"""Patterns of values that are not text, with their first characters: YAML 1.2.2, section 10.3.2, and YAML 1.1's merge key."""


class _Resolver(VersionedResolver):
    """The core schema, whatever version a file declares. ruamel.yaml's own reads `1_2` as 12, and dates as dates."""

    processing_version = (1, 2)
    versioned_resolver: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}


for _name, (_pattern, _firsts) in _CORE_SCHEMA.items():
    for _first in _firsts:
        _Resolver.versioned_resolver.setdefault(_first, []).append((f"{_TAG}{_name}", re.compile(rf"(?:{_pattern})\Z")))


class _Constructor(SafeConstructor):
    """Plain values only. A duplicate key is an error, and so is a value that cannot be stored."""

    def construct_document(self, node: Node) -> Any:
        # Check before anything is built, because anchors can expand a small file beyond the available memory
        self._sizes: dict[Node, int | None] = {}
        if self._checked_size(node) > MOST_CHARACTERS:
            raise _error(f"with its anchors written out it has more than {MOST_CHARACTERS:,} characters", node)
        return _unshared(super().construct_document(node))

    def _checked_size(self, node: Node) -> int:
        """Characters of the node with its anchors written out. Also checks its mappings' keys."""
        if node not in self._sizes:
            self._sizes[node] = None
            if isinstance(node, ScalarNode):
                size = len(node.value)
            else:
                if isinstance(node, MappingNode):
                    self._check_keys(node)
                children = (
                    node.value if isinstance(node, SequenceNode) else [each for pair in node.value for each in pair]
                )
                size = sum(map(self._checked_size, children))
            self._sizes[node] = size + 1
        known = self._sizes[node]
        if known is None:
            raise _error("an anchor refers to itself", node)
        return known

    def _check_keys(self, node: MappingNode) -> None:
        keys: set[object] = set()
        for key_node, _ in node.value:
            key = "<<" if key_node.tag == _MERGE else self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float):
                raise _error(f"{shown(key)} cannot be a key", key_node)
            if key in keys:
                raise _error(f"key '{key}' is given twice", key_node)
            keys.add(key)

    def construct_non_recursive_object(self, node: Node, tag: str | None = None) -> Any:
        try:
            value = super().construct_non_recursive_object(node, tag)
            if isinstance(value, str):  # JSON writes characters beyond 16 bits as two escapes
                value = value.encode("utf-16", "surrogatepass").decode("utf-16")
        except (ValueError, LookupError, TypeError, AttributeError):  # for values such as !!int ''
            raise _error(f"{shown(node.value)} cannot be read as {str(node.tag).removeprefix(_TAG)}", node) from None
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise _error("a whole number is not within ±2^63", node)
        return value


_Constructor.yaml_constructors = {
    tag: constructor
    for tag, constructor in SafeConstructor.yaml_constructors.items()
    if tag is None or tag.removeprefix(_TAG) in ("null", "bool", "int", "float", "str", "seq", "map")
}


def _error(problem: str, node: Node) -> YAMLError:
    return ConstructorError(None, None, problem, node.start_mark)


def _unshared(value: Any) -> Any:
    """The value with a separate copy wherever an anchor is repeated."""
    if isinstance(value, dict):
        return {key: _unshared(child) for key, child in value.items()}
    return [_unshared(child) for child in value] if isinstance(value, list) else value


def parse_yaml(text: str, where: str) -> Any:
    """Parse a YAML document. `where` describes the text in errors.

    Raises:
        UserError: it is not YAML, holds a tag or a key twice, or is too large or too deep.
    """
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"{where} has more than {MOST_CHARACTERS:,} characters. No sweep needs so many.")
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver, yaml.Constructor, yaml.max_depth = _Resolver, _Constructor, MOST_LEVELS
    yaml.composer.warn_double_anchors = False
    try:
        return yaml.load(text)
    except MaxDepthExceededError as error:
        problem, mark = f"it nests more than {MOST_LEVELS} levels deep", error.problem_mark
    except MarkedYAMLError as error:
        problem, mark = error.problem or error.context, error.problem_mark or error.context_mark
    except (YAMLError, YAMLStreamError, ValueError, AssertionError) as error:  # from the reader and from %YAML lines
        problem, mark = str(error) or type(error).__name__, None
    place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    raise UserError(f"{where} is not valid YAML: {place}{sentence(' '.join(str(problem).split()))}")
