"""Code blocks of README.md and docs/, and the commands in those for a shell."""

from __future__ import annotations

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```[ ]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """``page`` is relative to the repository, ``line`` that of the first line of code."""

    page: str
    line: int
    language: str
    text: str

    @property
    def first(self) -> str:
        return self.text.strip().partition("\n")[0].strip()

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command of a block: its words, without the variables that are set for it."""

    block: Block
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.block}: {shlex.join(self.words)}"


def blocks() -> list[Block]:
    """All of them, in order."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        name = str(page.relative_to(ROOT))
        for match in FENCE.finditer(text):
            line = text[: match.start(3)].count("\n") + 1
            found.append(Block(name, line, match[2].strip(), textwrap.dedent(match[3])))
        assert text.count("```") == 2 * sum(block.page == name for block in found), (
            f"a fence of {name} is not understood"
        )
    return found


def commands(block: Block) -> list[Command]:
    """Of a block for a shell: those of ``sh``, and of ``console`` what comes after the prompt."""
    text = block.text
    if block.language == "console":
        text = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>()")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, "&&"]:
            if word in {"&&", "||", ";", "|"}:
                while words and re.match(r"[A-Za-z_]\w*=", words[0]):
                    words.pop(0)
                if words:
                    found.append(Command(block, tuple(words)))
                words = []
            else:
                words.append(word)
    return found
