"""``slim train``: one run, its resumption, or a sweep."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from slim.command.compose import (
    check_replaced,
    compose,
    key_of,
    of_network,
    options,
    places,
    quoted,
    register,
    run_job,
    show_help,
    with_options,
)
from slim.command.exits import guarded
from slim.importing import seldom_collected


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (without the program's name); returns the exit code.

    0: done. 1: the run failed. 2: bad input, nothing was written. 130, 138, 143: stopped by Ctrl-C, SIGUSR1, SIGTERM.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    run_id = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{secrets.token_hex(2)}"
    register(run_id)
    return guarded(lambda: _dispatch(argv), any(item.lower() == "debug=true" for item in argv))


def _parsed(argv: list[str]) -> Any:
    """The arguments as Hydra reads them; what it cannot read is one line, without its usage."""
    from hydra._internal.utils import get_args_parser

    from slim.errors import SlimError

    def error(message: str) -> NoReturn:
        raise SlimError(f"Arguments must read key=value, or be options of Hydra. Got {message}. See --help.")

    parser = get_args_parser()
    parser.error = error  # type: ignore[method-assign]
    args = parser.parse_intermixed_args(argv)
    for name, instead in (("config_path", "--config-dir <folder>"), ("experimental_rerun", "resume=<run directory>")):
        if getattr(args, name, None) is not None:
            option = f"--{name.replace('_', '-')}"
            raise SlimError(f"An option must be one that this program takes. Got {option}. Give {instead}.")
    return args


def _dispatch(argv: list[str]) -> int:
    args = _parsed(argv)
    if args.help or args.hydra_help or args.cfg or args.info or args.shell_completion:
        return show_help(argv, args)
    # `experiment` is not in the defaults list, where null could not be overridden; the plus is easily forgotten. And
    # `trainer.options` takes any key, which Hydra allows nowhere by itself.
    added = {"experiment=": "+", "trainer.options=": "++", "trainer.options.": "++"}
    overrides = [next((s for key, s in added.items() if item.startswith(key)), "") + item for item in args.overrides]
    resumed = [item.partition("=")[2].strip("'\"") for item in overrides if key_of(item) == "resume"]
    resume = next((path for path in resumed if path not in ("null", "")), None)
    if args.multirun:
        from slim.command.sweep import sweep

        if resume is not None:
            from slim.errors import SlimError

            raise SlimError(
                "A sweep goes on when it is started again with its hydra.sweep.dir. "
                f"Got --multirun and resume={resume}. Leave one of them out."
            )

        return sweep(overrides, args)
    if resume is not None:  # an empty one is told of with the rest of the configuration
        return _resume(Path(resume), [item for item in overrides if key_of(item) != "resume"], args)
    given = {key_of(item) for item in overrides}
    overrides, args, trained = _as_the_run(overrides, args)
    config, whole = compose(overrides, args)
    _fit_network(config, trained, given)
    if config.get("task") == "train":
        check_replaced(overrides, config)
    return _run(config, whole, Path(whole.hydra.run.dir), overrides, args)


def _as_the_run(overrides: list[str], args: Any) -> tuple[list[str], Any, dict[str, Any]]:
    """A task on the network of a run finds it as the run was configured, unless the command line says otherwise.

    Returns:
        Overrides and arguments with those of the run, and its configuration; the same and nothing where there is none.
    """
    given = {key_of(item): item.partition("=")[2].strip("'\"").replace("\\'", "'") for item in overrides}
    path = Path(given.get("checkpoint", "null"))
    home = next((place for place in (path, *path.parents) if (place / "state.json").is_file()), None)
    if given.get("task") not in ("evaluate", "sensitivity") or path == Path("null") or home is None:
        return overrides, args, {}
    from slim.runs.state import State

    state, replaced = State.load(home), {*given, "phases", "checkpoint"}
    kept = [item for item in of_network(state.overrides) if key_of(item) not in replaced]
    if "data" in given and f"data={given['data']}" not in state.overrides:  # data of another kind have other options
        kept = [item for item in kept if not key_of(item).startswith("data.")]
    return [*kept, *overrides], with_options(args, state.options), state.config


def _fit_network(config: dict[str, Any], trained: dict[str, Any], given: set[str]) -> None:
    """Put into ``config`` the model that a task looks at, and the size of its images, where no key says another one.

    Recipes belong to a data set, and some name a model: meant is that of the data set which the network was trained on.
    """
    asked = any(key.partition(".")[0] in ("model", "experiment") for key in given)
    if not asked and (model := trained.get("model") or _model_of_file(config)) is not None:
        config["model"] = model
    for key in ("image_size", "in_channels"):
        if f"data.{key}" not in given and key in config["data"] and key in trained.get("data", {}):
            config["data"][key] = trained["data"][key]


def _model_of_file(config: dict[str, Any]) -> dict[str, Any] | None:
    """The ``model`` that an artifact describes, for a task on it; ``None`` where nobody says it.

    Raises:
        SlimError: It describes one whose builder is not known to be harmless.
    """
    path = Path(str(config.get("checkpoint")))
    if config.get("task") not in ("evaluate", "sensitivity") or path.suffix != ".safetensors":
        return None
    from slim import recipe
    from slim.artifact import is_artifact, read_header
    from slim.errors import SlimError

    builder = read_header(path).builder if path.is_file() and is_artifact(path) else None
    if builder is None:
        return None
    try:
        recipe.check(builder, str(path))
    except SlimError as error:
        raise SlimError(
            f"The model must be given where its file may not choose it. Got {builder.get(recipe.TARGET)} ({path}). "
            f"If you trust it, give model=custom model._target_={builder.get(recipe.TARGET)}."
        ) from error
    # Classes and channels are those of the data, as of every model.
    return {name: value for name, value in builder.items() if name not in ("num_classes", "in_channels")}


def _run(config: dict[str, Any], whole: Any, directory: Path, overrides: list[str], args: Any) -> int:
    """Check everything, then let Hydra make the run directory and run in it."""
    from slim.runs.config import read

    settings = read(config)  # a wrong value is told before torch and Lightning are imported
    with seldom_collected():
        from slim import report
        from slim.command.changed import changed
        from slim.runs import processes
        from slim.runs.directory import check_writable, make
        from slim.runs.phases import check_begin, run
        from slim.runs.prepare import prepare

    processes.connect(settings.trainer)
    directory = Path(processes.shared(str(directory)))  # its name holds the time at which a process began
    if settings.task == "train":  # others write beside their checkpoint, or nothing
        check_writable(directory)
    begun = (directory / "state.json").is_file()
    parts = prepare(config, begun=begun)
    if parts.config.task != "train":
        from slim.runs.commands import perform

        return perform(parts, directory)
    if not begun:
        check_begin(parts)
    if processes.rank() != 0:
        run(parts, directory.absolute(), overrides, options=options(args))
        return 0
    make(directory)
    caught: list[BaseException] = []

    def job(cfg: Any) -> None:
        try:
            told = partial(changed, overrides, config, dict(whole.hydra.runtime.choices), args)
            report.show(run(parts, directory.absolute(), overrides, changed=told, options=options(args)))
        except BaseException as error:
            caught.append(error)

    run_job(whole, directory, [*places(args), *overrides, f"hydra.run.dir={quoted(directory)}"], job)
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
    replaced, args = {key_of(item) for item in extra}, with_options(args, state.options)
    overrides = [*(item for item in state.overrides if key_of(item) not in replaced), *extra]
    config, whole = compose(overrides, args)
    check_same(state, plain(read(config)))
    return _run(config, whole, directory, overrides, args)
