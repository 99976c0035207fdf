"""The commit in a report is this project's, or none."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

from lowrank_vit.runtime import provenance


def test_an_installed_package_has_no_commit_of_the_project_around_it(tmp_path: Path) -> None:
    """As in ``PROJECT/.venv``, which the project's Git ignores, until the project adds the package to its own files."""
    copy = tmp_path / ".venv" / "lowrank_vit" / "runtime" / "provenance.py"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(Path(provenance.__file__).read_bytes())
    (tmp_path / ".gitignore").write_text(".venv\n")

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "--quiet")
    git("add", ".gitignore")
    git("commit", "--quiet", "--message=another project")
    spec = importlib.util.spec_from_file_location("installed_provenance", copy)
    assert spec is not None
    assert spec.loader is not None
    installed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(installed)
    assert installed.git_state() is None

    git("add", "--force", str(copy))
    git("commit", "--quiet", "--message=with the package")
    installed.git_state.cache_clear()
    assert installed.git_state() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
