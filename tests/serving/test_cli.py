"""`higr serve`: the engine it builds, and what it needs."""

from __future__ import annotations

import socket
import sys

import pytest

from higr_hf import cli, save_checkpoint
from tests.model_tester import HiGRModelTester
from tests.serving.conftest import tokenizer_of


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    tester = HiGRModelTester()
    return str(save_checkpoint(tmp_path_factory.mktemp("cli") / "model", tester.model(), tokenizer_of(tester)))


@pytest.fixture(autouse=True)
def kept_memory(monkeypatch) -> list[bool]:
    """Asked for once a server; the allocator itself is left alone, for a setting holds for a whole process."""
    asked: list[bool] = []
    monkeypatch.setattr("higr_hf.utils.keep_freed_memory", lambda: asked.append(True))
    return asked


def test_it_serves_on_loopback_and_closes_the_engine(model_dir, kept_memory, monkeypatch, capsys):
    engines, asked = [], []

    def create_app(engine):
        engines.append(engine)
        return "app"

    def serve(app, host, port, started):
        started(f"http://{host}:{port}")
        asked.append((app, len(engines[0].recommend(["i1"]))))

    monkeypatch.setattr("higr_hf.serving.http.create_app", create_app)
    monkeypatch.setattr("higr_hf.serving.http.serve", serve)
    assert cli.main(["serve", model_dir, "--slate-size", "3", "--max-queue", "7", "--cache-mb", "1"]) == 0
    assert kept_memory == [True] and asked == [("app", 3)] and engines[0].closed
    assert capsys.readouterr().out == "serving on http://127.0.0.1:8000\n"


def test_a_port_that_is_taken_is_said_in_one_line(model_dir, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert cli.main(["serve", model_dir, "--port", str(taken.getsockname()[1])]) == 1
    assert capsys.readouterr().err.startswith("higr: error: ")


def test_the_extra_that_is_missing_is_named(model_dir, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "higr_hf.serving.http", raising=False)
    assert cli.main(["serve", model_dir]) == 1
    assert "pip install 'higr_hf[serve]'" in capsys.readouterr().err
