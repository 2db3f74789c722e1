"""Records of runs that never were."""

import json
from pathlib import Path
from typing import Any

PHASES = {"compute": 0.010, "compress": 0.001, "wait": 0.002, "decompress": 0.0005}


def write(path: Path, label: str, sent: int, **changed: Any) -> Path:
    """Two epochs of three steps, each of ``sent`` bytes; ``changed`` replaces parts of the record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "schema": 1,
        "label": label,
        "flags": {"seed": 0, "epochs": 2},
        "data": {"name": "digits", "note": ""},
        "model": {"name": "mlp", "parameters": 250},
        "ranks": 2,
        "curve": {"step": [3, 6], "loss": [1.0, 0.5], "sent_bytes": [3 * sent, 6 * sent]},
        "epochs": [
            {"epoch": i, "test_accuracy": accuracy, "test_loss": 0.5, "sent_bytes": 3 * i * sent, "seconds": 1.5}
            for i, accuracy in ((1, 0.75), (2, 0.875))
        ],
        "steps": {"sent_bytes": [sent] * 6, **{phase: [seconds] * 6 for phase, seconds in PHASES.items()}},
        "complete": True,
        **changed,
    }
    path.write_text(json.dumps(record))
    return path
