"""The environment report is complete, JSON-able, and tells its own repository from another one."""

from __future__ import annotations

import json
import subprocess

import torch

from higr_hf.utils import environment, environment_info, package_versions


def test_report_is_json_and_names_the_versions():
    info = json.loads(json.dumps(environment_info()))
    assert info["versions"]["torch"] == torch.__version__
    assert info["threads"] == torch.get_num_threads() and str(info["cores"]) in info["machine"]
    assert set(info) == {"versions", "machine", "cpu", "cores", "threads", "gpus", "platform", "commit"}


def test_packages_that_are_not_installed_are_left_out():
    assert set(package_versions(("numpy", "no-such-package-here"))) == {"python", "numpy"}


def test_commit_is_that_of_this_package_only(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    package = tmp_path / "higr_hf" / "utils"
    package.mkdir(parents=True)
    monkeypatch.setattr(environment, "__file__", str(package / "environment.py"))
    assert environment.git_commit() is None
    (package / "environment.py").write_text("")
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    commit = environment.git_commit()
    assert len(commit) == 40
    (package / "environment.py").write_text("changed")
    assert environment.git_commit() == f"{commit}+dirty"
    # Installed into the environment of another repository: that commit is not ours.
    nested = tmp_path / ".venv" / "higr_hf" / "utils"
    nested.mkdir(parents=True)
    monkeypatch.setattr(environment, "__file__", str(nested / "environment.py"))
    assert environment.git_commit() is None
