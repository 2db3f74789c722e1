"""YAML files of configurations: plain data of bounded size, in which nothing is said twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 1 << 16
"""Of a file; those in configs/ have a few hundred."""

DEPTH = 16
"""Lists and mappings within each other."""


class _Loader(yaml.SafeLoader):
    """PyYAML's, without what makes a short file a large value, a deep one, or an ambiguous one."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"aliases (*{event.anchor}) are not taken", event.start_mark)
        if self._depth == DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"more than {DEPTH} levels are not taken", mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            keys = [self.construct_object(key) for key, _ in node.value]
            key = next(key for key in keys if keys.count(key) > 1)
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} is there twice", node.start_mark)
        return mapping


def read_yaml(path: Path) -> Any:
    """Return what a YAML file says, as plain data.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8 or not YAML, is larger than ``MOST_BYTES`` or deeper than ``DEPTH``, uses aliases,
            or has a key twice in a mapping; the message names the file.
    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"{path} is larger than {MOST_BYTES} bytes, which no configuration is")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte {error.start} is 0x{content[error.start]:02x}") from error
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number that there is not
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    finally:
        loader.dispose()
