"""Hydra: composing a configuration, running a job in a run directory, and its complaints as one line."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import slim

_PACKAGE = Path(slim.__file__).resolve().parent
CONF = next(place for place in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if place.is_dir())
"""The configuration: inside an installed package, beside the package in a checkout."""


def register(run_id: str) -> None:
    """Give ``${run_id:}`` its value."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("run_id", lambda: run_id, replace=True)


def show_help(argv: list[str], args: Any) -> int:
    """What Hydra says of itself and of the configuration (``--help``, ``--cfg job``)."""
    if not args.shell_completion:
        compose(args.overrides, args)  # Hydra's own complaint has several lines
    # It turns a closed pipe into a traceback, too: it prints into a text, and the text goes into the pipe.
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        hydra_job(argv, lambda cfg: None)
    print(text.getvalue(), end="")
    return 0


def hydra_job(argv: list[str], task: Callable[[Any], Any]) -> None:
    """Let Hydra compose ``argv``, make the run directory (or one for each job) and call ``task`` in it."""
    import hydra

    before = sys.argv
    command = before[:2] if before[1:2] == ["train"] else before[:1]

    def job(cfg: Any) -> Any:
        # Lightning's launcher starts the other processes by this line.
        sys.argv = [*command, *argv]
        return task(cfg)

    sys.argv = [before[0], *argv]  # Hydra reads it there
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
    finally:
        sys.argv = before


def compose(overrides: list[str], args: Any) -> tuple[dict[str, Any], Any]:
    """The configuration as plain data, and Hydra's own part of it."""
    with _complaints():
        cfg = composed(overrides, args)
        return plain_data(cfg), cfg.hydra


def composed(overrides: list[str], args: Any) -> Any:
    """The configuration as Hydra has it, with Hydra's own part in it; inside a job, too."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    found = [f"hydra.searchpath=[file://{Path(args.config_dir).resolve()}]"] if args.config_dir else []
    begun = GlobalHydra.instance().is_initialized()
    with _complaints(), contextlib.nullcontext() if begun else initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(args.config_name or "config", overrides=[*found, *overrides], return_hydra_config=True)


@contextlib.contextmanager
def _complaints() -> Iterator[None]:
    """Inside, what is wrong with a configuration is one line."""
    from slim.errors import SlimError

    try:
        yield
    except SlimError:
        raise
    except Exception as error:  # Hydra, OmegaConf, ANTLR and Python itself complain, each in its own way
        raise SlimError(_hydra_line(error)) from error


def plain_data(cfg: Any) -> dict[str, Any]:
    """The part of a configuration that is not Hydra's, resolved."""
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue

    ours = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    for key in sorted(OmegaConf.missing_keys(ours)):
        raise MissingMandatoryValue(f"Missing mandatory value: {key}")
    plain: Any = OmegaConf.to_container(ours, resolve=True)
    return dict(plain)


def places(args: Any) -> list[str]:
    """Where Hydra is to look for configuration, as arguments of its command line."""
    return [*(["--config-dir", args.config_dir] if args.config_dir else []),
            *(["--config-name", args.config_name] if args.config_name else [])]  # fmt: skip


def key_of(override: str) -> str:
    """The key that an override sets.

    >>> key_of("+sparse.epochs=3")
    'sparse.epochs'
    """
    return override.lstrip("+~").partition("=")[0]


def quoted(path: Path) -> str:
    """A path as the value of an override."""
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
        return f"A configuration key must be known. Got {key.group(1)}. {nearest(key.group(1), keys())} See --help."
    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing:
        return f"{missing.group(1)} must be set. Got nothing. Give {missing.group(1)}=<value>."
    return f"An override must read key=value. Got an error from Hydra: {' '.join(text.split())[:300]}. See --help."


def keys() -> list[str]:
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
