"""How well a gradient survives compression: the error of what the receivers get, at equal bytes.

    python benchmarks/reconstruction.py record
    python benchmarks/reconstruction.py report
    python benchmarks/reconstruction.py converge

``record`` trains the example's network as two ranks do, uncompressed, in one process, and keeps the gradients of some
steps. ``report`` compresses those, each as the first gradient of a single worker, and writes tables and pictures.
``converge`` trains without error feedback, with a constant and with a diminishing theta.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from example_training import converge, record, recorded
from reconstruction_errors import concentration, errors, formats, without_transform
from reconstruction_report import markdown, picture

ROOT = Path(__file__).resolve().parents[1]
POINTS = (20, 200, 1000, 2500)
"""After so many steps gradients are recorded. (The three epochs of the example are 2,811.)"""


def report(folder: Path, out: Path) -> None:
    """Write OUT.json, OUT.md and OUT.png."""
    points = recorded(folder)
    result: dict[str, Any] = {"steps": list(points), "elements": len(next(iter(points.values()))[0])}
    result["rows"] = errors(points) + without_transform(points)
    result["concentration"] = concentration(points)
    result["formats"] = formats(points)
    out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    out.with_suffix(".md").write_text(markdown(result))
    picture(result, out.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "report", "converge"))
    parser.add_argument("--gradients", type=Path, default=ROOT / "build/reconstruction", help="folder of the records")
    parser.add_argument("--images", type=int, default=30_000, help="to converge on, for one epoch")
    parser.add_argument("--threads", type=int, default=1, help="of the training")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/reconstruction", help="without .json")
    options = parser.parse_args()
    if options.what == "record":
        record(POINTS, options.gradients, options.threads)
    elif options.what == "converge":
        converge(options.images, options.threads)
    else:
        report(options.gradients, options.out)


if __name__ == "__main__":
    main()
