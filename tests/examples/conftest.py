import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The examples are scripts: their neighbours are on the path because they lie beside them.
sys.path.insert(0, str(ROOT / "examples"))
