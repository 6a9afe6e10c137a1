"""The environment names the machine, never its owner."""

from __future__ import annotations

import getpass
import json
import socket
from pathlib import Path

from slim.report import environment


def test_the_environment_is_plain_data_without_names_of_hosts_users_or_folders() -> None:
    text = json.dumps(environment.describe())
    assert "torch" in text
    assert str(Path.home()) not in text.replace("/", "") or str(Path.home()) == "/"
    host = socket.gethostname()
    assert len(host) < 4 or host not in text
    user = getpass.getuser()
    assert len(user) < 5 or user not in text


def test_outside_a_clone_there_is_no_revision(tmp_path: Path) -> None:
    assert environment.revision(tmp_path) is None
