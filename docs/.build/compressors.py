"""A class under ``compressor_dataclass`` is a dataclass, whose parameters are its fields; Griffe reads no further."""

from typing import Any

import griffe

DATACLASS = griffe.ExprName("dataclass", parent=griffe.ExprName("dataclasses"))


class Compressors(griffe.Extension):
    """Puts the decorator that Griffe knows in its place."""

    def on_class_instance(self, *, cls: griffe.Class, **_: Any) -> None:
        for decorator in cls.decorators:
            if str(decorator.value).rpartition(".")[2] == "compressor_dataclass":
                decorator.value = DATACLASS
