"""From a command line to running processes: `train_main` and `test_main`, alone or under torchrun."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pointcept3m.utils.config import Config

from .arguments import default_argument_parser


def train_main(argv: Sequence[str] | None = None) -> int:
    """Trains as the arguments say; returns 0. With several processes asked for, torchrun starts them.

    Raises: SystemExit(143 or 130) after a signal, when the checkpoint is saved; else what building or training raises.
    """
    cfg = _prepare("train", argv, "Trains with a config file.")
    if cfg is None:
        return 0
    with _processes(cfg):
        from pointcept3m.engines import TRAINERS

        TRAINERS.build(dict(cfg.train), cfg=cfg).train()
    return 0


def test_main(argv: Sequence[str] | None = None) -> int:
    """Tests as the arguments say (weight in --options); returns 0."""
    cfg = _prepare("test", argv, "Tests a checkpoint with the tester of its config.")
    if cfg is None:
        return 0
    with _processes(cfg):
        from pointcept3m.engines import TESTERS

        TESTERS.build(dict(cfg.test), cfg=cfg).run()
    return 0


def _prepare(verb: str, argv: Sequence[str] | None, description: str) -> Config | None:
    """The config of this process; None in a process whose work was done by those that torchrun started."""
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = default_argument_parser(f"pointcept3m {verb}", description).parse_args(argv)
    cfg = _read_config(arguments)
    if arguments.num_gpus is not None and arguments.num_gpus < 0:
        raise ValueError(f"--num-gpus must be 0 (the CPU) or more, got {arguments.num_gpus}")
    if arguments.num_gpus == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if "WORLD_SIZE" in os.environ:  # torchrun started us
        return cfg
    processes = _count_processes(arguments.num_gpus)
    if processes * arguments.num_machines == 1:
        return cfg
    _torchrun(verb, argv, processes, arguments)
    return None


def _read_config(arguments: argparse.Namespace) -> Config:
    """The config with the settings of the command line.

    There, a weight beside resume is the checkpoint to resume; one that the config names is what the run was started
    from, and resuming leaves it alone.
    """
    from pointcept3m.engines.defaults import default_config_parser, with_defaults
    from pointcept3m.utils.config import parse_options

    options = parse_options(arguments.options)
    if arguments.resume:
        options["resume"] = True
    cfg = default_config_parser(arguments.config_file, options)
    if cfg.get("resume") is True and options.get("weight"):
        checkpoint = options.pop("weight")
        cfg = default_config_parser(arguments.config_file, options)
        cfg.resume = checkpoint
    return with_defaults(cfg)


def _count_processes(num_gpus: int | None) -> int:
    """Processes on this machine: one per GPU, or without any GPU as many CPU processes as were asked for."""
    import torch

    found = torch.cuda.device_count() if num_gpus != 0 else 0
    if num_gpus is None:
        return max(1, found)
    if found and num_gpus > found:
        raise ValueError(f"--num-gpus {num_gpus}: this machine has {found} GPU(s)")
    if num_gpus > 0 and not found:
        print(f"no GPU found: training on the CPU, in {num_gpus} process(es)", file=sys.stderr)
    return max(1, num_gpus)


def _torchrun(verb: str, argv: Sequence[str], processes: int, arguments: argparse.Namespace) -> None:
    """Runs `verb` in `processes` processes here, those of other machines joining at --dist-url. Raises SystemExit if one fails."""
    machines, url = arguments.num_machines, arguments.dist_url.removeprefix("tcp://")
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    if machines == 1:
        command += ["--standalone"]
    elif url == "auto":
        raise ValueError(f"--num-machines {machines} needs --dist-url HOST:PORT, the address of machine 0")
    else:
        host, _, port = url.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"--dist-url: wanted HOST:PORT, got {arguments.dist_url!r}")
        command += [f"--nnodes={machines}", f"--node-rank={arguments.machine_rank}", f"--master-addr={host}", f"--master-port={port}"]
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    # exec: signals, exit status and output are torchrun's own, with no process in between.
    sys.stdout.flush()
    sys.stderr.flush()
    command += ["-m", "pointcept3m.cli", verb, *argv]
    os.execve(sys.executable, command, environment)


@contextlib.contextmanager
def _processes(cfg: Config) -> Iterator[None]:
    """Joins the other processes, and leaves them at the end."""
    import torch

    from pointcept3m.utils import comm

    comm.init_process_group(cfg.dist_timeout, "cuda" if torch.cuda.is_available() else "cpu")
    try:
        yield
    finally:
        comm.destroy_process_group()
