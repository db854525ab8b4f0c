"""`python -m pointcept3m.ops`: whether the compiled library is in use, and what serves each op."""

import argparse

from pointcept3m import ops  # noqa: F401  (declares the ops)
from pointcept3m.ops import _inventory, _library


def main() -> None:
    """Prints the status sentence and, unless --status, a line for each op."""
    parser = argparse.ArgumentParser(prog="python -m pointcept3m.ops", description=__doc__)
    parser.add_argument("--status", action="store_true", help="only the sentence")
    only_status = parser.parse_args().status
    print(_library.status())
    if only_status:
        return
    served = _inventory.inventory()
    width = max((len(op.name) for op in served), default=2)
    print(f"\n{'op':<{width}}  cpu     cuda")
    for op in served:
        print(f"{op.name:<{width}}  {op.cpu:<6}  {op.cuda}")


if __name__ == "__main__":
    main()
