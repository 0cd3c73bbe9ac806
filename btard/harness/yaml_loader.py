"""YAML as people mean it: what its readers silently take for something else is refused."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

_AMBIGUOUS = re.compile(r"[-+]?0_*[0-9][0-9_]*|[-+]?[0-9][0-9_]*(:[0-9]+)+")
"""Octal and sexagesimal integers of YAML 1.1."""
LONGEST = 40
"""Maximum number of characters of an integer: no setting needs more."""


class Loader(yaml.SafeLoader):
    """Reads YAML as people mean it: refuses what YAML readers silently take for something else.

    A key that stands twice, of which the last would count; 016 for 14 and 1:30 for 90, as in YAML 1.1; numbers that
    overflow. A date is text.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        kind = node.tag.rpartition(":")[2]
        try:
            if kind == "int" and _AMBIGUOUS.fullmatch(node.value):
                plain = node.value.replace("_", "").lstrip("+-0") or "0"
                raise ValueError(f"; write {plain}" if plain.isdigit() else "; write it in decimal digits")
            if kind == "int" and len(node.value) > LONGEST:
                raise ValueError(f": it has {len(node.value)} characters")
            if kind == "float" and ":" in node.value:
                raise ValueError("; write it in decimal digits")
            value = super().construct_object(node, deep)
            if isinstance(value, float) and math.isinf(value) and "inf" not in node.value.lower():
                raise ValueError(": it is too large")
            return value
        except yaml.YAMLError:
            raise
        except (ValueError, TypeError, AttributeError, OverflowError, KeyError) as error:
            why = str(error) if str(error)[:1] in ":;" else ""
            problem = f"{str(node.value)[:40]!r} is not clearly a value of type {kind}{why}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                problem = "a key must be a word, got a list or a mapping; is this a template that was not filled in?"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value} stands there twice", key_node.start_mark
                )
            seen.add(key_node.value)
            if key_node.value == "<<" and isinstance(value_node, yaml.SequenceNode):
                self._refuse_overlap(value_node)
        return super().construct_mapping(node, deep)

    def _refuse_overlap(self, merged: yaml.SequenceNode) -> None:
        """Raise ConstructorError if two merged mappings have the same key: readers differ in which of them counts."""
        seen: set[str] = set()
        for mapping in merged.value:
            names = {str(key.value) for key, _ in mapping.value} if isinstance(mapping, yaml.MappingNode) else set()
            if twice := sorted(seen & names):
                problem = f"the key {twice[0]} stands in two of the mappings that are merged"
                raise yaml.constructor.ConstructorError(None, None, problem, merged.start_mark)
            seen |= names


class NoAliases(Loader):
    """As `Loader`, without aliases, which no program of ours writes."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "an alias, which no run writes", mark)
        return super().compose_node(parent, index)


Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
