"""A TensorBoard for tests: one process on a folder, its address, and its end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.report.browser import Page

TABS = {
    "timeseries": "1_accuracy /val",
    "scalars": "tag: 1_accuracy/train",
    "custom_scalars": "cockpit",
    "images": "cut/widths",
    "text": "overview/1_command",
    "hparams": "result/accuracy",
    "histograms": "gamma/all",
}
"""Tab of TensorBoard -> what stands on it when all is there."""

SHOWN = """
(() => {
  const texts = [];
  const walk = (node) => {
    if (node.nodeType === Node.TEXT_NODE) texts.push(node.textContent);
    if (node.shadowRoot) walk(node.shadowRoot);
    for (const child of node.childNodes) walk(child);
  };
  walk(document.body);
  return texts.join(" ").replace(/[ \\n]+/g, " ");
})()
"""
"""JavaScript: all text of a page, that in shadow trees too."""


DRAWN = """
(() => {
  let found = 0;
  const walk = (node) => {
    if (node.tagName === "path") found += 1;
    if (node.shadowRoot) walk(node.shadowRoot);
    for (const child of node.children || []) walk(child);
  };
  walk(document.body);
  return found;
})()
"""
"""JavaScript: how many paths are drawn, of curves, points and axes."""


def cockpit(page: Page, address: str) -> None:
    """Show the custom scalars in a window that holds all six charts; returns when their curves are drawn."""
    page.size(1500, 764)
    page.open(f"{address}#custom_scalars")
    page.until(f"{SHOWN.strip()}.includes('lam, the strength of the penalty')")
    before = -1
    while (now := page.value(DRAWN)) != before or now < 100:
        before = now
        time.sleep(1)


def hparams(folder: Path) -> dict[str, Any]:
    """The row of HParams in an event folder: column -> value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    content = EventAccumulator(str(folder)).Reload().PluginTagToContent(metadata.PLUGIN_NAME)
    start = plugin_data_pb2.HParamsPluginData.FromString(content[metadata.SESSION_START_INFO_TAG]).session_start_info
    return {key: getattr(value, str(value.WhichOneof("kind"))) for key, value in start.hparams.items()}


@contextmanager
def tensorboard(folder: Path, told: Path, limit: float = 60.0) -> Iterator[str]:
    """Inside, the address of a TensorBoard on ``folder``; ``told`` is a file for what it prints.

    Raises:
        TimeoutError: It did not start within ``limit`` seconds.
    """
    # It shows the name that it is given.
    line = [sys.executable, "-m", "tensorboard.main", "--logdir", folder.name, "--port", "0", "--load_fast", "false"]
    with told.open("wb") as out:
        process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            cwd=folder.absolute().parent,
            env=os.environ | {"LANG": "C"},
        )
    try:
        deadline = time.monotonic() + limit
        while not (found := re.search(r"http://\S+", told.read_text(errors="replace"))):
            if process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(told.read_text(errors="replace"))
            time.sleep(0.1)
        yield found.group()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
