"""Ids: hashes of configurations. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import TYPE_CHECKING

from sweeper.sweep import components

if TYPE_CHECKING:
    from attacks.base import Attack


def canonical_json(config: object) -> str:
    """One spelling for equal configurations: sorted keys, no blanks."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"))


def identity(config: object) -> str:
    """16 hexadecimal digits of the SHA-256 of a configuration's canonical JSON."""
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()[:16]


def attack_id(attack: Attack) -> str:
    """The id of an attack's configuration."""
    return identity(components.configuration("attack", attack))


@cache
def candidate_ids(attacks: tuple[Attack, ...]) -> tuple[str, ...]:
    """Ids of the attacks that score each example, by which they can be compared."""
    return tuple(attack_id(attack) for attack in attacks if attack.result.ranks_examples)
