"""`edgebuild` and `python -m edgebuild`.

The packages models, latency, export and pipeline bear common names. The folder that holds ours goes first on
sys.path, so that a user's own `models/` in the working folder or on PYTHONPATH cannot shadow them.
"""

import gc
import os
import sys
from pathlib import Path

_GC_THRESHOLD = 50_000
"""New objects before Python looks for cycles. Its 700 spend a quarter of the import of torch and timm on the search."""


def main() -> None:
    if sys.stdout is None or sys.stderr is None:  # closed by whoever started this, as cron jobs may have it
        nowhere = Path(os.devnull).open("w")  # noqa: SIM115 (for as long as the process lives)
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    gc.set_threshold(_GC_THRESHOLD)
    from pipeline.cli.app import main as cli_main

    cli_main()


if __name__ == "__main__":
    main()
