"""Hydra: composing a configuration, running a job in a run directory, and its complaints as one line."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import slim

_PACKAGE = Path(slim.__file__).resolve().parent
CONF = next(place for place in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if place.is_dir())
"""The configuration: inside an installed package, beside the package in a checkout."""
_RAISE = "HYDRA_FULL_ERROR"
"""Makes Hydra hand on what a sweeper raises; else it prints a traceback and ends the process with code 1."""


def register(run_id: str) -> None:
    """Give ``${run_id:}`` its value."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("run_id", lambda: run_id, replace=True)


def show_help(argv: list[str], args: Any) -> int:
    """What Hydra says of itself and of the configuration (``--help``, ``--cfg job``); returns the exit code."""
    from slim.errors import SlimError

    if not args.shell_completion:
        compose(args.overrides, args)  # Hydra's own complaint has several lines
    # It turns a closed pipe into a traceback, too: it prints into a text, and the text goes into the pipe.
    settled = [f"{key}=null" for key in replacing(args.overrides)]
    overrides = [] if args.hydra_help else [*settled, *args.overrides]  # that text is of Hydra alone
    options = [item for item in argv if item not in args.overrides]  # between overrides Hydra does not take them
    code = 0
    with contextlib.redirect_stdout(io.StringIO()) as text:
        try:
            hydra_job([*overrides, *options], lambda cfg: None)
        except SystemExit as end:  # it has told of a package that is not there
            code = 2 if end.code else 0
        except ValueError as error:  # two things are asked for
            raise SlimError(f"One thing can be shown at a time. Got {' '.join(argv)} ({error}). See --help.") from error
    print(text.getvalue(), end="")
    return code


def hydra_job(argv: list[str], task: Callable[[Any], Any]) -> None:
    """Let Hydra compose ``argv``, make the directories of a sweep's jobs and call ``task`` in each."""
    import hydra

    before, line = sys.argv, _restarted(argv)

    def job(cfg: Any) -> Any:
        sys.argv = line
        return task(cfg)

    sys.argv = [before[0], *argv]  # Hydra reads it there
    full = os.environ.get(_RAISE)
    os.environ[_RAISE] = "1"
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
    finally:
        sys.argv = before
        os.environ.pop(_RAISE) if full is None else os.environ.update({_RAISE: full})


def run_job(cfg: Any, directory: Path, argv: list[str], task: Callable[[Any], Any]) -> None:
    """Call ``task`` with ``cfg`` in ``directory``, as Hydra runs a single job: its files, its log, its callbacks.

    ``hydra.main`` composes twice more, a fifth of a second each, and what runs should be what was checked.

    Args:
        cfg: Whole, as :func:`compose` gives it; Hydra's part of it is changed.
        directory: Of the run.
        argv: The arguments that stand for ``cfg``, in ``sys.argv`` while ``task`` runs.
        task: Gets the configuration without Hydra's part.
    """
    from hydra._internal.callbacks import Callbacks
    from hydra.core import utils
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import HydraContext, RunMode
    from omegaconf import open_dict, read_write

    before = sys.argv
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.run.dir, cfg.hydra.mode = str(directory), RunMode.RUN
        if (directory / "state.json").is_file():
            # Written when the run began. What is asked for now may be refused, or killed while it is written again.
            cfg.hydra.output_subdir = None
    with _configuration():
        context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks(cfg))
        context.callbacks.on_run_start(config=cfg, config_name=cfg.hydra.job.config_name)
        sys.argv = _restarted(argv)
        try:
            done = utils.run_job(task, cfg, "hydra.run.dir", None, context)
        finally:
            sys.argv = before
        context.callbacks.on_run_end(config=cfg, config_name=cfg.hydra.job.config_name, job_return=done)
    _ = done.return_value  # raises what the job did


def _configuration() -> Any:
    """Hydra, as long as the context lasts, with the configuration of this package."""
    from hydra import initialize_config_dir

    return initialize_config_dir(str(CONF), version_base="1.3")


def _restarted(argv: list[str]) -> list[str]:
    """The line by which Lightning's launcher starts the other processes: this program with ``argv``."""
    return [*(sys.argv[:2] if sys.argv[1:2] == ["train"] else sys.argv[:1]), *argv]


def compose(overrides: list[str], args: Any) -> tuple[dict[str, Any], Any]:
    """The configuration as plain data, and whole, with Hydra's own part in ``hydra``.

    Raises:
        SlimError: It cannot be composed, or its jobs would look for relative paths in other folders than the user.
    """
    from slim.errors import SlimError

    cfg = composed(overrides, args)
    if cfg.hydra.job.chdir:
        raise SlimError(
            "A run stays in the folder in which it was started: paths are relative to it. Got hydra.job.chdir=true. "
            "Leave it out; hydra.run.dir and hydra.sweep.dir say where a run writes."
        )
    with _complaints():
        return plain_data(cfg), cfg


def composed(overrides: list[str], args: Any) -> Any:
    """The configuration as Hydra has it, with Hydra's own part in it; inside a job, too."""
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra

    found = _search_path(args)
    begun = GlobalHydra.instance().is_initialized()
    with _complaints(overrides), contextlib.nullcontext() if begun else _configuration():
        settled = [*found, *overrides, *(f"{key}=null" for key in replacing(overrides))]
        return compose(args.config_name or "config", overrides=settled, return_hydra_config=True)


def config_loader(args: Any) -> Any:
    """What knows the names of a group, which ``glob(...)`` asks for: those of this package and of ``--config-dir``."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path

    found = create_config_search_path(str(CONF))
    if args.config_dir:
        found.append("command-line", f"file://{Path(args.config_dir).resolve()}")
    return ConfigLoaderImpl(config_search_path=found)


def _search_path(args: Any) -> list[str]:
    """``--config-dir`` as an override.

    Raises:
        SlimError: There is no such folder.
    """
    from slim.errors import SlimError

    if args.config_dir and not Path(args.config_dir).is_dir():
        raise SlimError(
            f"Configuration of your own must be a folder. Got --config-dir {args.config_dir}. Check the path."
        )
    return [f"hydra.searchpath=[{quoted(f'file://{Path(args.config_dir).resolve()}')}]"] if args.config_dir else []


@contextlib.contextmanager
def _complaints(overrides: Sequence[str] = ()) -> Iterator[None]:
    """Inside, what is wrong with a configuration is one line; ``overrides`` choose what else it knows."""
    from slim.errors import SlimError

    try:
        yield
    except Exception as error:  # Hydra, OmegaConf, ANTLR and Python itself complain, each in its own way
        raise SlimError(_hydra_line(error, overrides)) from error


def plain_data(cfg: Any) -> dict[str, Any]:
    """The part of a configuration that is not Hydra's, resolved."""
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    def plain(node: Any) -> Any:
        return OmegaConf.to_container(node, resolve=True, throw_on_missing=True) if OmegaConf.is_config(node) else node

    names = [name for name in cfg if name != "hydra"]
    try:
        return {name: plain(cfg[name]) for name in names}
    except OmegaConfBaseException:
        # What is missing is told first, and in order: other complaints may follow from it.
        for key in sorted(OmegaConf.missing_keys(OmegaConf.masked_copy(cfg, names))):
            raise MissingMandatoryValue(f"Missing mandatory value: {key}") from None
        raise


def places(args: Any) -> list[str]:
    """Where Hydra is to look for configuration, as arguments of its command line."""
    return [*(["--config-dir", args.config_dir] if args.config_dir else []),
            *(["--config-name", args.config_name] if args.config_name else [])]  # fmt: skip


def options(args: Any) -> list[str]:
    """:func:`places` as a run remembers them: from whichever folder it goes on."""
    folder = args.config_dir and os.path.abspath(args.config_dir)
    return places(argparse.Namespace(config_dir=folder, config_name=args.config_name))


def with_options(args: Any, remembered: Sequence[str]) -> Any:
    """The arguments with what a run remembers of :func:`options`; what the command line says comes first.

    >>> with_options(argparse.Namespace(config_dir=None, config_name="mine"), ["--config-dir", "/conf"]).config_dir
    '/conf'
    """
    known = dict(zip(remembered[::2], remembered[1::2], strict=False))
    found = {"config_dir": known.get("--config-dir"), "config_name": known.get("--config-name")}
    return argparse.Namespace(**vars(args) | {name: getattr(args, name) or value for name, value in found.items()})


def key_of(override: str) -> str:
    """The key that an override sets.

    >>> key_of("+sparse.epochs=3")
    'sparse.epochs'
    """
    return override.lstrip("+~").partition("=")[0]


def replacing(overrides: Sequence[str]) -> list[str]:
    """Keys of a recipe that would replace what ``overrides`` give, who mean it: they are null then.

    >>> replacing(["penalty={name:l1,lam:1e-3}"]), replacing(["optimizer=adamw", "sparse.lr=1e-2"])
    (['sparse.shrink'], ['baseline.lr', 'finetune.lr'])
    """
    given = {key_of(item): item.partition("=")[2] for item in overrides}
    found = ["sparse.shrink"] if _give_lam(overrides) else []
    # Learning rates of recipes are those of SGD.
    if "optimizer.lr" in given or given.get("optimizer", "sgd") != "sgd":
        found += [f"{phase}.lr" for phase in ("baseline", "sparse", "finetune")]
    return [key for key in found if key not in given]


def check_replaced(overrides: Sequence[str], config: dict[str, Any]) -> None:
    """Refuse what ``overrides`` give beside something that would replace it, maybe in a recipe.

    Raises:
        SlimError: A strength of the penalty beside a length of the run, or the depth of a VGG beside its widths.
    """
    from slim.errors import SlimError

    def value(section: str, name: str) -> Any:
        part = config.get(section)
        return part.get(name) if isinstance(part, dict) else None

    lam, shrink, widths = value("penalty", "lam"), value("sparse", "shrink"), value("model", "widths")
    if lam and shrink is not None and _give_lam(overrides):
        raise SlimError(
            f"lam follows from sparse.shrink, where that is set. Got penalty.lam={lam} and sparse.shrink={shrink}. "
            "Give one of them."
        )
    if widths is not None and "model.depth" in map(key_of, overrides):
        raise SlimError(
            f"Widths stand in place of a depth. Got model.depth={value('model', 'depth')} and model.widths={widths}. "
            "Give one of them; model.widths=null leaves out those of a recipe."
        )


def _give_lam(overrides: Sequence[str]) -> bool:
    """Whether ``overrides`` say how strong the penalty is."""
    keys = [key_of(item) for item in overrides]
    return "penalty.lam" in keys or any(re.match(r"\+*penalty=\{.*\blam\b['\"]?\s*:", item) for item in overrides)


def of_network(overrides: Sequence[str]) -> list[str]:
    """Of a run's overrides those that make its network and its data: but for where it went."""
    ours = ((item, key_of(item)) for item in overrides)
    return [item for item, key in ours if key == "hydra.searchpath" or not key.startswith("hydra.")]


def quoted(path: Path | str) -> str:
    """A path as the value of an override.

    >>> print(quoted("it's"), quoted("a\\\\b"))
    'it\\'s' 'a\\b'
    """
    # A backslash means something to Hydra where a quote follows, and nowhere else.
    text = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), str(path))
    return f"'{text}'"


def _hydra_line(error: Exception, overrides: Sequence[str]) -> str:
    """What Hydra found wrong, as one line of ours."""
    from slim.errors import nearest

    text = str(error)
    missing = re.search(r"Could not find '([^']+)'\s+Available options in '([^']+)':(.*)", text, re.DOTALL)
    if missing:
        choice, group, rest = missing.groups()
        name = choice.removeprefix(f"{group}/")
        known = re.findall(r"^\s+(\S+)$", rest, re.MULTILINE)
        return f"{group} must be known. Got {group}={name}. {nearest(name, known)}"
    missing = re.search(r"Could not load '([^']+)/([^'/]+)'", text)  # one of a list
    if missing:
        group, name = missing.groups()
        known = [path.stem for path in (CONF / group).glob("*.yaml")]
        return f"{group} must be known. Got {group}={name}. {nearest(name, known)}"
    there = re.search(r"Could not append to config. An item is already at '([^']+)'", text)
    if there:
        return f"A plus adds a key that is not there. Got +{there.group(1)}, which is. Leave the plus out."
    key = re.search(r"Could not (?:override|append|delete)[^']*'([^']+)'", text)
    if key:
        # A key of the default model is none of another, and may be the nearest name all the same.
        known = [name for name in keys(_choices(overrides)) if name != key.group(1)]
        return f"A configuration key must be known. Got {key.group(1)}. {nearest(key.group(1), known)} See --help."
    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing:
        return f"{missing.group(1)} must be set. Got nothing. Give {missing.group(1)}=<value>."
    if unread := next(filter(None, map(unreadable, overrides)), ""):
        return unread
    return f"An override must read key=value. Got an error from Hydra: {' '.join(text.split())[:300]}. See --help."


def unreadable(override: str) -> str:
    """What is wrong with an override that is none in Hydra's grammar, as one line; empty where it is one.

    >>> print(unreadable("output=é"), unreadable("seed=1,2"))
    An override must read key=value, other than plain values in quotes. Got output=é. Give 'output="é"'.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    def reads(text: str) -> bool:
        try:
            OverridesParser.create().parse_override(text)
        except HydraException:
            return False
        return True

    if reads(override):
        return ""
    key, _, value = override.partition("=")
    better = f"{key}={quoted(value)}" if '"' in value or "\\" in value else f'{key}="{value}"'
    hint = f"Give {shlex.quote(better)}" if value[:1] not in ("", "[", "{") and reads(better) else "See --help"
    return f"An override must read key=value, other than plain values in quotes. Got {override}. {hint}."


def _choices(overrides: Sequence[str]) -> list[str]:
    """Those of the overrides that choose from the groups of this package."""
    return [item for item in overrides if "=" in item and (CONF / key_of(item)).is_dir()]


def keys(choices: Sequence[str] = ()) -> list[str]:
    """Every dotted key of the configuration with these choices, and every group."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            cfg = compose("config", overrides=list(choices))
        except Exception:  # a choice that is of a folder of the user's
            cfg = compose("config")

    def walk(node: Any, prefix: str) -> list[str]:
        found = [prefix] if prefix else []
        for name, value in node.items_ex(resolve=False) if hasattr(node, "items_ex") else ():
            found += walk(value, f"{prefix}.{name}" if prefix else str(name))
        return found

    return [*walk(cfg, ""), "experiment"]
