"""S3DIS's six-fold scores from the records of six tests; `python tools/test_s3dis_6fold.py --help` lists the arguments."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pointcept3m.cli import run_for_user  # noqa: E402
from pointcept3m.engines.folds import six_fold_main  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_for_user(six_fold_main, sys.argv[1:]))
