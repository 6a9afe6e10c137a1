"""Completion in bash and zsh: ``eval "$(slim --completion bash)"``; what can follow is asked of the program itself."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Mapping

BASH = """_slim() {
  COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
  COMPREPLY=($(compgen -o default -W "$(COMP_LINE="$COMP_LINE" slim --complete)" -- "${COMP_WORDS[COMP_CWORD]}"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _slim slim"""
SCRIPTS = {"bash": BASH, "zsh": f"autoload -U +X bashcompinit && bashcompinit\n{BASH}"}


def complete(commands: Mapping[str, str]) -> str:
    """What can follow the line in ``COMP_LINE``, separated by spaces; the shell keeps what fits the last word."""
    words = os.environ.get("COMP_LINE", "slim ").split(" ")[1:]
    name = words[0] if words else ""
    if len(words) < 2 or name not in commands:
        return " ".join(commands)
    if name in ("train", "evaluate"):
        from slim.command import run

        # Hydra knows its groups and keys; it strips one word, the program's name.
        os.environ["COMP_LINE"] = " ".join(["slim", *words[1 if name == "train" else 2 :]])
        run.main(["--shell-completion", "query=bash"])
        return ""
    parser = argparse.ArgumentParser(prog=f"slim {name}")
    importlib.import_module(f"slim.command.{name}").arguments(parser)
    return " ".join([*parser._option_string_actions, "--json", "--debug"])
