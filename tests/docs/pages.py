"""What pages_torch.py and pages_tensorflow.py have in common: ``mpirun -np 2 python pages_torch.py BLOCKS``.

The argument is a JSON file, a list of places and texts of Python blocks.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run(rank: int, granted: Callable[[], dict[str, Any]], after: Callable[[dict[str, Any]], None]) -> None:
    """Run the blocks; each begins with the names that the pages take for granted, and ``after`` ends it."""
    for where, text in json.loads(Path(sys.argv[1]).read_text()):
        names = granted()
        file = Path(f"{where.replace('/', '-')}-{rank}.py").absolute()
        file.write_text(text)  # tracebacks and TensorFlow's AutoGraph read it
        exec(compile(text, str(file), "exec"), names)
        after(names)
        sys.stdout.write(f"ran {where}.\n")
        sys.stdout.flush()
