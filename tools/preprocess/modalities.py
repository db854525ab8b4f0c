"""Makes the modality files that CrossOver trains on; `python tools/preprocess/modalities.py --help` says how."""

import sys

from pointcept3m.cli import run_for_user
from pointcept3m.engines.modalities.command import main

if __name__ == "__main__":
    sys.exit(run_for_user(main, sys.argv[1:]))
