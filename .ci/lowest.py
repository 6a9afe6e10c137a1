"""Print pip constraints that hold every run-time dependency at its lower bound.

Reads pyproject.toml by pattern: Python 3.10 has no TOML reader and this runs before anything is installed.
"""

import re
from pathlib import Path

text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
run_time = text.split("dependencies = [")[1].split("\n]")[0]
for name, bound in re.findall(r'^\s*"([\w-]+)>=([\w.]+)', run_time, flags=re.MULTILINE):
    print(f"{name}=={bound}.*" if bound.count(".") == 1 else f"{name}=={bound}")
