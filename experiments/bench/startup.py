"""Start-up: ``import slim`` against ``import torch``, and ``train.py --help``, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

from experiments.bench.row import Row
from experiments.bench.turns import take_turns


def run(quick: bool) -> list[Row]:
    """``import slim`` under 1.5 times ``import torch``; the help under 2.5 s."""
    commands = {
        "import torch": ["-c", "import torch"],
        "import slim": ["-c", "import slim"],
        "train.py --help": ["train.py", "--help"],
    }

    def start(arguments: list[str]) -> None:
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

    turns = take_turns(
        {name: lambda arguments=arguments: start(arguments) for name, arguments in commands.items()}, 2 if quick else 7
    )
    return [
        Row(
            "start-up",
            f"import slim ({turns.median('import slim'):.2f} s) over torch ({turns.median('import torch'):.2f} s)",
            turns.ratio("import slim", "import torch"),
            "x",
            ("<=", 1.5),
            turns.seconds,
        ),
        Row("start-up", "train.py --help", turns.median("train.py --help"), "s", ("<=", 2.5)),
    ]
