"""A class under ``compressor_dataclass`` is a dataclass, whose parameters are its fields; Griffe reads no further.

Its docstring describes its own parameters; those of its bases are described there. A reader of the page wants all of
them in one place.
"""

import re
from typing import Any

import griffe

DATACLASS = griffe.ExprName("dataclass", parent=griffe.ExprName("dataclasses"))
ARGUMENTS = re.compile(r"^Args:\n((?:    .*\n?|\n(?=    ))+)", re.MULTILINE)
ARGUMENT = re.compile(r"^    (\w+): .*\n?(?:     .*\n?|\n(?=     ))*", re.MULTILINE)


class Compressors(griffe.Extension):
    """Puts the decorator that Griffe knows in the place of ours, and inherited parameters into docstrings."""

    def __init__(self) -> None:
        super().__init__()
        self._classes: list[griffe.Class] = []

    def on_class_instance(self, *, cls: griffe.Class, **_: Any) -> None:
        for decorator in cls.decorators:
            if str(decorator.value).rpartition(".")[2] == "compressor_dataclass":
                decorator.value = DATACLASS
                self._classes.append(cls)

    def on_package(self, **_: Any) -> None:
        """When all classes are known: of all of them before any is changed, for bases are among them."""
        complete = [(cls, text) for cls in self._classes if (text := with_inherited(cls))]
        for cls, text in complete:
            assert cls.docstring
            cls.docstring.value = text


def with_inherited(cls: griffe.Class) -> str:
    """The docstring of a compressor, with a description of every parameter."""
    if cls.docstring is None:
        return ""
    line = [cls, *cls.mro()]
    described = {name: text for each in reversed(line) for name, text in arguments(each).items()}
    fields = {name for each in line for name in each.members if is_field(name, line)}
    wanted = dict.fromkeys(name for each in line for name in arguments(each) if name in fields)
    # The ratio, which is the first argument of all that have one, then a class's own parameters, then its bases'.
    text = "".join(f"{described[name].rstrip()}\n" for name in sorted(wanted, key=lambda name: name != "ratio"))
    value = cls.docstring.value
    section = f"Args:\n{text}"
    if ARGUMENTS.search(value):
        return ARGUMENTS.sub(lambda _: f"{section}\n", value, count=1)
    return f"{value.rstrip()}\n\n{section}"


def arguments(cls: griffe.Class) -> dict[str, str]:
    """The descriptions of the parameters in a class's own docstring."""
    found = ARGUMENTS.search(f"{cls.docstring.value}\n") if cls.docstring else None
    return {match[1]: match[0] for match in ARGUMENT.finditer(found[1])} if found else {}


def is_field(name: str, line: list[griffe.Class]) -> bool:
    """Whether the name is a parameter: its nearest declaration is annotated, and not as a class's variable."""
    for cls in line:
        member = cls.members.get(name)
        if member is not None:
            annotation = str(getattr(member, "annotation", None) or "")
            return member.is_attribute and bool(annotation) and not annotation.startswith("ClassVar")
    return False
