"""Reads names of networks, one a line, and answers each with one line of JSON: a process of its own can be killed."""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings

import torch

from experiments.coverage.catalog import build
from experiments.coverage.trial import trial


def main() -> None:
    """Serve until the input ends. What libraries print goes to stderr, out of the answers' way."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        name = line.strip()
        torch.manual_seed(0)
        row = {"model": name}
        try:
            model, image = build(name)
        except Exception as error:
            row |= {"verdict": "unbuilt", "why": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        else:
            try:
                row |= trial(model, image)
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                row |= {"verdict": "failed", "why": f"{why} ({os.path.basename(where.filename)}:{where.lineno})"}
        answers.write(json.dumps(row) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
