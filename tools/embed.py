"""Embeds scenes, scans, pictures and texts into CrossOver's space; `python tools/embed.py --help` lists the arguments."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pointcept3m.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
