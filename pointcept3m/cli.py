"""The command `pointcept3m`. Each verb is a thin door to a function of `pointcept3m.engines`.

torch is imported by the verb that needs it, never here, so that `--help` answers at once.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pointcept3m import __version__
from pointcept3m.utils.errors import raised_here
from pointcept3m.utils.registry import near_names

USER_ERRORS = (ValueError, TypeError, KeyError, IndexError, OSError, ImportError, FloatingPointError, RuntimeError)

OVERVIEW = """\
Self-supervised pretraining of 3D backbones, from one command.

  pointcept3m demo       generate rooms, pretrain, evaluate: pictures and report.html in demo/, no GPU or download
  pointcept3m train      train with a config file, on one process or many (torchrun)
  pointcept3m test       evaluate a checkpoint with the tester of its config
  pointcept3m predict    label the points of your own scan: ply, pcd, las, npy, RGB-D folder
  pointcept3m query      where in a scene is "somewhere to sit"? heat map and coordinates, by a distilled model
  pointcept3m embed      scenes as vectors in CrossOver's space: a gallery that is searched
  pointcept3m retrieve   which scenes of a gallery fit a picture, a floorplan, words or a scan?
  pointcept3m localize   where are the objects of one scene in another?
  pointcept3m view       a page in the browser where a scene is asked in free text
  pointcept3m visualize  what a backbone makes of a cloud: features, similarity, classes and errors as colours
  pointcept3m check      what this machine, the compiled kernels, the data and the weights allow
  pointcept3m report     write report.html for a run folder

`pointcept3m VERB --help` lists what a verb takes.
"""
EPILOG = "POINTCEPT3M_TRACEBACK=1 shows the traceback of an error; POINTCEPT3M_NATIVE=0 leaves out the compiled kernels."


def train(argv: Sequence[str]) -> int:
    """`pointcept3m train`: the arguments of tools/train.py."""
    from pointcept3m.engines.launch import train_main

    return train_main(list(argv)) or 0


def test(argv: Sequence[str]) -> int:
    """`pointcept3m test`: the arguments of tools/test.py."""
    from pointcept3m.engines.launch import test_main

    return test_main(list(argv)) or 0


def predict(argv: Sequence[str]) -> int:
    """`pointcept3m predict`: the arguments of tools/predict.py."""
    from pointcept3m.engines.predict.command import predict_main

    return predict_main(list(argv))


def query(argv: Sequence[str]) -> int:
    """`pointcept3m query`: the arguments of tools/query.py."""
    from pointcept3m.engines.open_vocabulary.command import query_main

    return query_main(list(argv))


def embed(argv: Sequence[str]) -> int:
    """`pointcept3m embed`: the arguments of tools/embed.py."""
    from pointcept3m.engines.retrieval.command import embed_main

    return embed_main(list(argv))


def retrieve(argv: Sequence[str]) -> int:
    """`pointcept3m retrieve`: the arguments of tools/retrieve.py."""
    from pointcept3m.engines.retrieval.command import retrieve_main

    return retrieve_main(list(argv))


def localize(argv: Sequence[str]) -> int:
    """`pointcept3m localize`: the arguments of tools/localize.py."""
    from pointcept3m.engines.retrieval.command import localize_main

    return localize_main(list(argv))


def view(argv: Sequence[str]) -> int:
    """`pointcept3m view`: the arguments of tools/view.py."""
    from pointcept3m.engines.view.command import view_main

    return view_main(list(argv))


def demo(argv: Sequence[str]) -> int:
    """`pointcept3m demo`: rooms, pretraining, evaluation and report, in steps that a second call skips."""
    parser = argparse.ArgumentParser(
        prog="pointcept3m demo",
        description="Generates rooms, pretrains a backbone on them with GaussianCross, evaluates it on views and "
        "rooms that it has not seen, and writes pictures and report.html. Needs no GPU, no data and no network. "
        "Steps that are finished are skipped when it is called again.",
    )
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder of everything it writes (%(default)s)")
    parser.add_argument("--fast", action="store_true", help="a tenth of the work: to see it run, not to see it learn")
    parser.add_argument("--seed", type=int, default=0, help="seed of the rooms and of the training (%(default)s)")
    parser.add_argument("--restart", action="store_true", help="do every step again, finished or not")
    arguments = parser.parse_args(argv)

    from pointcept3m.engines.demo import run_demo

    run_demo(arguments.output, fast=arguments.fast, seed=arguments.seed, restart=arguments.restart)
    return 0


def check(argv: Sequence[str]) -> int:
    """`pointcept3m check`: 0 where `pointcept3m demo` can run, 1 where a package that it needs is missing."""
    parser = argparse.ArgumentParser(
        prog="pointcept3m check",
        description="Says what is installed, what serves the ops and how fast, which data sets and weights are "
        "found and what each allows. Exit status: 0 where everything required is there, 1 where something is missing.",
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("exp"), help="folder of the run folders (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    arguments = parser.parse_args(argv)

    from pointcept3m.engines.check import run_check

    return run_check(arguments.data, arguments.runs, as_json=arguments.json)


def report(argv: Sequence[str]) -> int:
    """`pointcept3m report`: writes report.html into run folders."""
    parser = argparse.ArgumentParser(
        prog="pointcept3m report",
        description="Writes report.html, one file that needs no network, into a run folder: curves, tables, "
        "pictures, configuration and the command that repeats the run.",
    )
    parser.add_argument("run", type=Path, nargs="+", help="run folder, e.g. exp/rooms/gaussiancross")
    arguments = parser.parse_args(argv)

    from pointcept3m.engines.report import write_report

    for run in arguments.run:
        print(write_report(run))
    return 0


def visualize(argv: Sequence[str]) -> int:
    """`pointcept3m visualize`: clouds coloured by what a backbone makes of them."""
    from pointcept3m.engines.arguments import join_values, visualize_argument_parser

    parser = visualize_argument_parser()
    arguments = parser.parse_args(join_values(argv, ("--query", "--range", "--up-axis", "--azimuth")))
    arguments.color = arguments.color or ["pca"]

    from pointcept3m.engines.visualize.command import run_visualize

    run_visualize(arguments)
    return 0


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "demo": demo,
    "train": train,
    "test": test,
    "predict": predict,
    "query": query,
    "embed": embed,
    "retrieve": retrieve,
    "localize": localize,
    "view": view,
    "check": check,
    "report": report,
    "visualize": visualize,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb. Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(OVERVIEW + "\n" + EPILOG)
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"pointcept3m {__version__}")
        return 0
    verb = VERBS.get(argv[0])
    if verb is None:
        print(f"pointcept3m: no verb {argv[0]!r}; {near_names(argv[0], VERBS)}", file=sys.stderr)
        return 2
    asks_for_help = bool({"-h", "--help"} & set(argv[1:]))
    if not asks_for_help and _torch_is_missing():
        return 1
    return run_for_user(verb, argv[1:])


def _torch_is_missing() -> bool:
    """Says on stderr what to do where torch is not installed: everything past the help texts needs it."""
    if importlib.util.find_spec("torch") is not None:
        return False
    print("error: torch is not installed; 'pip install -r requirements.txt' or 'make install' brings it", file=sys.stderr)
    return True


def run_for_user(function: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Calls `function(argv)`; an error that this package raised on purpose becomes one screen without a traceback."""
    try:
        return function(argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except USER_ERRORS as error:
        if os.environ.get("POINTCEPT3M_TRACEBACK") == "1" or not raised_here(error):
            raise
        print(describe(error), file=sys.stderr)
        return 1


def describe(error: BaseException) -> str:
    """What a user reads of an error: its sentence, the notes added on its way up, how to see more."""
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    notes = [f"  {note}" for note in getattr(error, "__notes__", ())]
    return "\n".join([f"error: {message}", *notes, "  (POINTCEPT3M_TRACEBACK=1 shows where it was raised)"])


if __name__ == "__main__":
    sys.exit(main())
