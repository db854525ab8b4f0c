"""The command line of train and test. Imports no torch, so that `--help` answers at once."""

import argparse
import sys
from collections.abc import Sequence


def default_argument_parser(prog: str | None = None, description: str | None = None) -> argparse.ArgumentParser:
    """The arguments of train and test, Pointcept's names and meanings."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config file, for example configs/gaussiancross/rooms.py")
    parser.add_argument("--num-gpus", type=int, default=None, metavar="N", help="processes on this machine, one per GPU; 0 is the CPU (default: the GPUs there are)")
    parser.add_argument("--num-machines", type=int, default=1, metavar="M")
    parser.add_argument("--machine-rank", type=int, default=0, metavar="R", help="number of this machine, from 0")
    parser.add_argument("--dist-url", default="auto", metavar="HOST:PORT", help="meeting point of all machines: the address of machine 0")
    parser.add_argument("--options", nargs="+", action="extend", metavar="a.b=c", help="settings on top of the config file, as Python literals")
    parser.add_argument("--resume", action="store_true", help="continue the run in save_path from its model/model_last.pth, or from the weight given in --options")
    return parser


def join_axis(arguments: Sequence[str] | None) -> list[str]:
    """`--up-axis -y` as one word, since argparse takes "-y" for a flag."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    while "--up-axis" in words[:-1]:
        at = words.index("--up-axis")
        words[at : at + 2] = [f"--up-axis={words[at + 1]}"]
    return words
