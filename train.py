"""Trains a network so that it comes out thin: ``python train.py +experiment=vgg_slim``."""

from __future__ import annotations

import contextlib
import io
import os
import re
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CONF = Path(__file__).resolve().parent / "conf"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (without the program's name); returns the exit code.

    0: done. 1: the run failed. 2: bad input, nothing was written. 130, 138, 143: stopped by Ctrl-C, SIGUSR1, SIGTERM.
    """
    from hydra._internal.utils import get_args_parser

    argv = list(sys.argv[1:] if argv is None else argv)
    run_id = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{secrets.token_hex(2)}"
    _register(run_id)
    args = get_args_parser().parse_args(argv)
    if args.help or args.hydra_help or args.cfg or args.info or args.shell_completion:
        return guarded(lambda: _show_help(argv, args))
    return guarded(lambda: _dispatch(args), any(item.lower() == "debug=true" for item in args.overrides))


def guarded(action: Callable[[], int], debug: bool = False, lines: list[str] | None = None) -> int:
    """Run ``action``; any failure becomes one line on stderr (and in ``lines``) and an exit code."""
    try:
        return action()
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        line, code = "Stopped by Ctrl-C before anything began.", 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        line, code = str(error), int(getattr(error, "exit_code", 0))
        if not code:
            text = " ".join(str(error).split())[:300]
            line, code = f"The run failed. Got {type(error).__name__}: {text}. Add debug=true for the traceback.", 1
    print(line, file=sys.stderr, flush=True)
    if lines is not None:
        lines.append(line)
    return code


def as_program(action: Callable[[], int]) -> int:
    """Run ``action``, whose reader may have seen enough (``| head``): that is no failure, and nothing to talk about."""
    try:
        code = action()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 0


def _show_help(argv: list[str], args: Any) -> int:
    """What Hydra says of itself and of the configuration (``--help``, ``--cfg job``)."""
    if not args.shell_completion:
        _compose(args.overrides, args)  # Hydra's own complaint has several lines
    # It turns a closed pipe into a traceback, too: it prints into a text, and the text goes into the pipe.
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        _hydra(argv, lambda cfg: None)
    print(text.getvalue(), end="")
    return 0


# One run


def _dispatch(args: Any) -> int:
    # `experiment` is not in the defaults list, where null could not be overridden; the plus is easily forgotten.
    overrides = [f"+{item}" if item.startswith("experiment=") else item for item in args.overrides]
    resume = next((item.partition("=")[2].strip("'\"") for item in overrides if item.startswith("resume=")), "null")
    if args.multirun:
        return _sweep(overrides, args)
    if resume not in ("null", ""):
        return _resume(Path(resume), [item for item in overrides if not item.startswith("resume=")], args)
    overrides = _overrides_of_run(overrides)
    config, hydra = _compose(overrides, args)
    return _run(config, Path(hydra.run.dir), overrides, overrides, args)


def _overrides_of_run(overrides: list[str]) -> list[str]:
    """A task on the network of a run finds it as the run was configured, unless ``overrides`` say otherwise."""
    given = {_key(item): item.partition("=")[2].strip("'\"").replace("\\'", "'") for item in overrides}
    path = Path(given.get("checkpoint", "null"))
    home = next((place for place in (path, *path.parents) if (place / "state.json").is_file()), None)
    if given.get("task") not in ("evaluate", "sensitivity") or path == Path("null") or home is None:
        return overrides
    from slim.runs.state import State

    replaced = {*given, "phases", "checkpoint"}
    kept = [item for item in State.load(home).overrides if _key(item) not in replaced]
    return [*(item for item in kept if not _key(item).startswith("hydra.")), *overrides]


def _run(config: dict[str, Any], directory: Path, overrides: list[str], composed: list[str], args: Any) -> int:
    """Check everything, then let Hydra make the run directory and run in it."""
    from slim import report
    from slim.runs import processes
    from slim.runs.components import check_writable, make, prepare
    from slim.runs.config import read
    from slim.runs.phases import check_metric, run
    from slim.runs.teachers import check_files

    processes.connect(read(config).trainer)
    directory = Path(processes.shared(str(directory)))  # its name holds the time at which a process began
    check_writable(directory)
    begun = (directory / "state.json").is_file()
    parts = prepare(config, begun=begun)
    if parts.config.task != "train":
        from slim.runs.commands import perform

        return perform(parts, directory)
    if not begun:
        check_files(parts)
        check_metric(parts)
    if processes.rank() != 0:
        run(parts, directory.absolute(), overrides)
        return 0
    make(directory)
    caught: list[BaseException] = []

    def job(cfg: Any) -> None:
        try:
            report.show(run(parts, directory.absolute(), overrides))
        except BaseException as error:
            caught.append(error)

    _hydra([*_places(args), *composed, f"hydra.run.dir={_quoted(directory)}"], job)
    if caught:
        raise caught[0]
    return 0


def _resume(directory: Path, extra: list[str], args: Any) -> int:
    """Continue the run in ``directory`` with the configuration it began with and ``extra`` overrides on top."""
    from slim.runs.config import plain, read
    from slim.runs.state import State, check_same

    state = State.load(directory)
    if state.finished and not extra:
        print(f"{directory}: finished before, see {directory / 'report.md'}.", file=sys.stderr)
        return 0
    replaced = {_key(item) for item in extra}
    overrides = [*(item for item in state.overrides if _key(item) not in replaced), *extra]
    config, _ = _compose(overrides, args)
    check_same(state.config, plain(read(config)))
    # Hydra wrote .hydra/ when the run began; a kill while it writes it again would leave half of it.
    return _run(config, directory, overrides, [*overrides, "hydra.output_subdir=null"], args)


# A sweep


def _sweep(overrides: list[str], args: Any) -> int:
    """Run every job of a sweep, whatever becomes of the others; one table at the end."""
    failed: list[str] = []
    directory = _check_jobs(overrides, args)

    def job(cfg: Any) -> float:
        from hydra.core.hydra_config import HydraConfig

        from slim.files import write_json
        from slim.runs import record
        from slim.runs.components import prepare
        from slim.runs.phases import run

        hydra = HydraConfig.get()
        place, mine = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
        found: dict[str, Any] = {}
        print(f"── job {hydra.job.num}: {' '.join(mine)}", file=sys.stderr, flush=True)
        count = len(failed)
        code = guarded(lambda: found.update(run(prepare(_plain(cfg)), place, mine)) or 0, bool(cfg.debug), failed)
        if code >= 128:
            raise SystemExit(code)
        if len(failed) > count:
            write_json(place / "report.json", record.failed(str(cfg.name), failed[-1]))
        return float(found["phases"][next(reversed(found["phases"]))].get("val", "nan")) if found else float("nan")

    _hydra(["--multirun", *_places(args), *overrides, f"hydra.sweep.dir={_quoted(directory)}"], job)
    from rich.console import Console

    from slim.report import sweep

    sweep.write(directory)
    Console().print(sweep.table(directory))
    print(directory)
    return 1 if failed else 0


def _check_jobs(overrides: list[str], args: Any) -> Path:
    """Compose every job before any begins; the sweep is refused when one cannot be composed, or none is valid."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(overrides)
    if any(item.is_sweep_override() and not item.is_discrete_sweep() for item in parsed):
        # Another sweeper will choose the values; what is fixed can be checked.
        jobs = [[item.input_line for item in parsed if not item.is_sweep_override()]]
    else:
        jobs = BasicSweeper.split_arguments(parsed, None)[0]
    composed = [_compose(job, args) for job in jobs]
    from slim.errors import SlimError
    from slim.runs.components import make
    from slim.runs.config import read

    faults = []
    for config, _ in composed:
        try:
            read(config)
        except SlimError as error:
            faults.append(error)
    if len(faults) == len(composed):
        raise faults[0]
    directory = Path(composed[0][1].sweep.dir)
    make(directory)
    return directory


# Hydra


def _register(run_id: str) -> None:
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("run_id", lambda: run_id, replace=True)


def _hydra(argv: list[str], task: Callable[[Any], Any]) -> None:
    import hydra

    before = sys.argv
    sys.argv = [before[0], *argv]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)()
    finally:
        sys.argv = before


def _compose(overrides: list[str], args: Any) -> tuple[dict[str, Any], Any]:
    """The configuration as plain data, and Hydra's own part of it."""
    from hydra import compose, initialize_config_dir

    found = [f"hydra.searchpath=[file://{Path(args.config_dir).resolve()}]"] if args.config_dir else []
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose(args.config_name or "config", overrides=[*found, *overrides], return_hydra_config=True)
            return _plain(cfg), cfg.hydra
    except Exception as error:  # Hydra, OmegaConf, ANTLR and Python itself complain, each in its own way
        from slim.errors import SlimError

        raise SlimError(_hydra_line(error)) from error


def _plain(cfg: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue

    ours = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    for key in sorted(OmegaConf.missing_keys(ours)):
        raise MissingMandatoryValue(f"Missing mandatory value: {key}")
    plain: Any = OmegaConf.to_container(ours, resolve=True)
    return dict(plain)


def _places(args: Any) -> list[str]:
    return [*(["--config-dir", args.config_dir] if args.config_dir else []),
            *(["--config-name", args.config_name] if args.config_name else [])]  # fmt: skip


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _quoted(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def _hydra_line(error: Exception) -> str:
    """What Hydra found wrong, as one line of ours."""
    from slim.errors import nearest

    text = str(error)
    missing = re.search(r"Could not find '([^']+)'\s+Available options in '([^']+)':(.*)", text, re.DOTALL)
    if missing:
        choice, group, rest = missing.groups()
        name = choice.removeprefix(f"{group}/")
        known = re.findall(r"^\s+(\S+)$", rest, re.MULTILINE)
        return f"{group} must be known. Got {group}={name}. {nearest(name, known)}"
    key = re.search(r"Could not (?:override|append|delete)[^']*'([^']+)'", text)
    if key:
        return f"A configuration key must be known. Got {key.group(1)}. {nearest(key.group(1), _keys())} See --help."
    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing:
        return f"{missing.group(1)} must be set. Got nothing. Give {missing.group(1)}=<value>."
    return f"An override must read key=value. Got an error from Hydra: {' '.join(text.split())[:300]}. See --help."


def _keys() -> list[str]:
    """Every dotted key of the default configuration, and every group."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config")

    def walk(node: Any, prefix: str) -> list[str]:
        found = [prefix] if prefix else []
        for name, value in node.items_ex(resolve=False) if hasattr(node, "items_ex") else ():
            found += walk(value, f"{prefix}.{name}" if prefix else str(name))
        return found

    return [*walk(cfg, ""), "experiment"]


if __name__ == "__main__":
    sys.exit(as_program(main))
