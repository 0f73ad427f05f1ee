"""The `higr` command: what it prints, what it streams, and how it fails."""

from __future__ import annotations

import configparser
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from higr_hf import HiGRTokenizer, SlateRecommendationPipeline, cli, load_checkpoint, save_checkpoint
from higr_hf.batch_scoring import LineError, recommend_lines
from higr_hf.configuration_higr import SLATE_MODES
from higr_hf.inspection import describe, describe_item, describe_prefix, parse_prefix
from higr_hf.living import remove_items
from tests.model_tester import HiGRModelTester

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    tester = HiGRModelTester()
    ids = [f"i{item}" for item in range(tester.num_items)]
    titles = [f"Film, The ({item})" for item in range(tester.num_items)]
    tokenizer = HiGRTokenizer.from_codes(ids, tester.codes.numpy(), tester.codebook_sizes, 3, 2, titles=titles)
    categories = {item: ["Odd" if number % 2 else "Even"] for number, item in enumerate(ids)}
    extra = {"item_categories.json": json.dumps(categories)}
    return save_checkpoint(tmp_path_factory.mktemp("cli") / "model", tester.model(), tokenizer, extra)


@pytest.fixture(scope="module")
def pipe(model_dir) -> SlateRecommendationPipeline:
    return SlateRecommendationPipeline(*load_checkpoint(model_dir), device="cpu")


def test_the_modes_are_the_models():
    assert cli.MODES == SLATE_MODES


def higr(*arguments, stdin: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "higr_hf.cli", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=environment, timeout=300)


def run(capsys, *arguments) -> str:
    """The command in this process; its output."""
    assert cli.main([str(argument) for argument in arguments]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    return output


def fails(capsys, *arguments) -> str:
    """The one line of a command that must fail."""
    assert cli.main([str(argument) for argument in arguments]) == 1
    output, errors = capsys.readouterr()
    assert output == "" and errors.startswith("higr: error: ") and errors.count("\n") == 1
    return errors


# ---- as a process


def test_recommend_answers_on_stdout_alone(model_dir, pipe):
    done = higr("recommend", model_dir, "--history", "i3, i5", "--slate-size", 3, "--json", "--alternates", 1)
    assert done.returncode == 0 and done.stderr == ""
    slate = json.loads(done.stdout)
    expected = pipe(["i3", "i5"], slate_size=3, num_alternates=1)
    assert [place["item_id"] for place in slate] == [place["item_id"] for place in expected]
    assert all(len(place["alternates"]) == 1 for place in slate)


def test_json_lines_go_through_a_pipe_and_a_bad_line_stops_them(model_dir, pipe):
    lines = ['["i1"]', '{"id": "u2", "history": ["i2"], "exclude": ["i0"]}', "", '["i99"]', '["i4"]']
    done = higr("recommend", model_dir, "--input", "-", "--slate-size", 2, stdin="\n".join(lines))
    assert done.returncode == 1
    assert done.stderr.startswith("higr: error: stdin, line 4: history[0]: no item has the id or title 'i99'")
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(answer["line"], answer.get("id")) for answer in answers] == [(1, None), (2, "u2")]
    expected = pipe({"history": ["i2"], "exclude": ["i0"]}, slate_size=2)
    assert [place["item_id"] for place in answers[1]["slate"]] == [place["item_id"] for place in expected]


def test_a_command_line_without_sense_exits_with_two(capsys):
    with pytest.raises(SystemExit) as exit_status:
        cli.main(["recommend", "somewhere"])
    assert exit_status.value.code == 2 and "--history" in capsys.readouterr().err


def test_the_entry_point_is_the_command():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert settings["options.entry_points"]["console_scripts"].strip() == "higr = higr_hf.cli:main"
    assert callable(cli.main)


# ---- recommend


def test_the_slate_is_readable(model_dir, pipe, capsys):
    lines = run(capsys, "recommend", model_dir, "--history", "i3").splitlines()
    expected = pipe(["i3"])
    assert len(lines) == 4 and lines[0].startswith(f" 1  {expected[0]['item_id']}  {expected[0]['title']}  ")


def test_titles_are_separated_by_semicolons(model_dir, capsys):
    named = run(
        capsys, "recommend", model_dir, "--json", "--titles", "--history", "Film, The (3); film, the (5)",
        "--exclude", "Film, The (0)",
    )  # fmt: skip
    by_id = run(capsys, "recommend", model_dir, "--json", "--history", "i3,i5", "--exclude", "i0")
    assert named == by_id


def test_every_option_reaches_the_search(model_dir, pipe, capsys):
    slate = run(
        capsys, "recommend", model_dir, "--json", "--history", "i3", "--slate-size", 2, "--beams", 7,
        "--mode", "plan_once", "--rerank-weight", 0.5, "--keep-history", "--exclude", "i1,i2",
    )  # fmt: skip
    expected = pipe(
        {"history": ["i3"], "exclude": ["i1", "i2"]}, slate_size=2, num_beams=7, slate_mode="plan_once",
        rerank_weight=0.5, exclude_history=False, num_alternates=0,
    )  # fmt: skip
    assert json.loads(slate) == expected


@pytest.mark.parametrize("kind", ["model", "csv", "tsv", "jsonl", "parquet"])
def test_a_category_restricts(model_dir, tmp_path, capsys, kind):
    import pandas as pd

    options = []
    if kind != "model":
        names = ["Odd|Blue" if item % 2 else "" for item in range(24)]
        table = pd.DataFrame({"item_id": [f"i{item}" for item in range(24)], "categories": names})
        path = tmp_path / f"items.{kind}"
        if kind in ("jsonl", "parquet"):
            table["categories"] = [name.split("|") if name else [] for name in names]
        writers = {
            "csv": lambda: table.to_csv(path, index=False),
            "tsv": lambda: table.to_csv(path, sep="\t", index=False),
            "jsonl": lambda: table.to_json(path, orient="records", lines=True),
            "parquet": lambda: table.to_parquet(path),
        }
        writers[kind]()
        options = ["--items", path]
    slate = json.loads(
        run(
            capsys,
            "recommend",
            model_dir,
            "--json",
            "--history",
            "",
            "--category",
            "odd",
            "--slate-size",
            12,
            *options,
        )
    )
    assert sorted(place["item_id"] for place in slate) == sorted(f"i{item}" for item in range(1, 24, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--history", "i1,nothing"], r"history[1]: no item has the id or title 'nothing'"),
        (["--history", "i1", "--exclude", "zz"], "exclude[0]: no item"),
        (["--history", "i1", "--slate-size", "0"], "slate_size must be at least 1"),
        (["--history", "i1", "--slate-size", "24"], "only 23 legal items for a slate of 24"),
        (["--history", "i1", "--category", "Green"], "no item has the category 'Green'; there are Even, Odd."),
        (["--history", "i1", "--category", "Odd", "--items", "nowhere.csv"], "--items: there is no nowhere.csv"),
        (["--history", "i1", "--output", "x.jsonl"], "--output goes with --input"),
        (["--input", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--input", "-", "--batch-size", "0"], "--batch-size must be at least 1"),
    ],
)
def test_what_goes_wrong_is_one_line(model_dir, capsys, options, message):
    assert message in fails(capsys, "recommend", model_dir, *options)


def test_a_model_without_categories_says_how_to_name_them(model_dir, tmp_path, capsys):
    bare = save_checkpoint(tmp_path / "model", *load_checkpoint(model_dir))
    said = fails(capsys, "recommend", bare, "--history", "i1", "--category", "Odd")
    assert "has no item_categories.json; name a file with --items" in said


def test_a_place_without_a_model_is_said(model_dir, tmp_path, capsys):
    assert "no checkpoint directory" in fails(capsys, "recommend", tmp_path / "nowhere", "--history", "i1")
    assert "config.json is missing" in fails(capsys, "recommend", tmp_path, "--history", "i1")
    assert "There is no directory" in fails(capsys, "inspect", tmp_path / "nowhere")
    assert "is a file" in fails(capsys, "inspect", model_dir / "config.json")


# ---- the page


def test_the_page_is_served_or_written_as_a_space(model_dir, tmp_path, capsys, monkeypatch):
    served = []
    monkeypatch.setattr("higr_hf.app.page.serve", lambda page, host, port: served.append((page.title, host, port)))
    run(capsys, "app", model_dir, "--compare", model_dir, "--title", "Films", "--port", 7999)
    assert served == [("Films", "127.0.0.1", 7999)]
    assert "python app.py" in run(capsys, "app", model_dir, "--space", tmp_path / "space")
    assert (tmp_path / "space" / "app.py").is_file() and len(served) == 1
    assert "no checkpoint directory" in fails(capsys, "app", tmp_path / "nowhere")


def test_the_page_asks_for_gradio(model_dir, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in [name for name in sys.modules if name.startswith("higr_hf.app.")]:
        monkeypatch.delitem(sys.modules, name)
    assert "pip install 'higr_hf[app]'" in fails(capsys, "app", model_dir)


# ---- JSON lines


def test_files_in_and_out(model_dir, tmp_path, capsys):
    requests, slates = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    requests.write_text('["i1"]\n{"history": ["i2"], "allowed": ["i5", "i7", "i8"]}\n', encoding="utf-8")
    options = ["--input", requests, "--output", slates, "--slate-size", 2, "--category", "Odd", "--exclude", "i1"]
    assert run(capsys, "recommend", model_dir, *options) == ""
    answers = [json.loads(line) for line in slates.read_text(encoding="utf-8").splitlines()]
    assert {place["item_id"] for place in answers[1]["slate"]} == {"i5", "i7"}
    assert all(int(place["item_id"][1:]) % 2 for place in answers[0]["slate"])


def test_lines_are_read_as_they_are_needed(pipe):
    read = []

    def endless():
        for number in range(10**9):
            read.append(number)
            yield '["i1"]\n'

    answers = recommend_lines(pipe, endless(), batch_size=3, slate_size=1)
    assert [next(answers)["line"] for _ in range(4)] == [1, 2, 3, 4]
    assert len(read) <= 7  # two batches, and the line that tells islice where it stands


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_bad_lines_are_named_and_cost_the_others_nothing(pipe, batch_size):
    lines = [
        '["i1"]', "{", '"i1"', '{"histroy": []}', '["i1", 3]', '{"history": ["i2"], "allowed": ["i2"]}', "", '["i3"]',
    ]  # fmt: skip
    answers = list(recommend_lines(pipe, lines, "f", batch_size=batch_size, skip_errors=True, slate_size=1))
    assert [answer["line"] for answer in answers] == [1, 2, 3, 4, 5, 6, 8]
    errors = {answer["line"]: answer["error"] for answer in answers if "error" in answer}
    assert list(errors) == [2, 3, 4, 5, 6]
    assert "f, line 2: no valid JSON" in errors[2] and "line 3: expected a list" in errors[3]
    assert "'history'" in errors[4] and "history[1] is 3" in errors[5] and "legal items" in errors[6]
    good = [answer["slate"][0]["item_id"] for answer in answers if "slate" in answer]
    assert good == [slate[0]["item_id"] for slate in pipe([["i1"], ["i3"]], slate_size=1)]
    before = recommend_lines(pipe, lines, "f", batch_size=batch_size, slate_size=1)
    assert next(before)["line"] == 1
    with pytest.raises(LineError, match="f, line 2"):
        next(before)


def test_a_reader_who_leaves_is_no_error(model_dir, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

        def fileno(self):
            return os.dup(1)

    monkeypatch.setattr(sys, "stdout", Gone())
    assert cli.main(["inspect", str(model_dir)]) == 0


# ---- inspect


def test_inspect_shows_the_tree(model_dir, capsys):
    content = json.loads(run(capsys, "inspect", model_dir, "--json"))["catalogue"]
    assert content["items"] == 24 and content["removed"] == 0 and content["model"]["belongs"]
    tree = content["tree"]
    assert [level["codes"] for level in tree] == [3, 4, 4] and tree[-1]["prefixes"] == 24
    text = run(capsys, "inspect", model_dir)
    assert "fingerprint" in text and "items below max" in text


def test_inspect_reads_a_tokenizer_alone(model_dir, tmp_path, capsys):
    HiGRTokenizer.from_pretrained(model_dir).save_pretrained(tmp_path)
    assert "model" not in json.loads(run(capsys, "inspect", tmp_path, "--json"))["catalogue"]


def test_inspect_finds_items_and_prefixes(model_dir, capsys):
    options = ["--item", "i3", "--item", "film, the (4)", "--prefix", "<a_0><b_1>"]
    content = json.loads(run(capsys, "inspect", model_dir, "--json", *options))
    assert [entry.get("item_id") for entry in content.values()] == ["i3", "i4", None]
    assert "codes" in run(capsys, "inspect", model_dir, *options)
    assert "no item has the id or title 'zz'" in fails(capsys, "inspect", model_dir, "--item", "zz")


def test_the_tree_is_what_the_codes_say():
    codes = [[0, 0], [0, 1], [1, 1]]
    tokenizer = HiGRTokenizer.from_codes(["a", "b", "c"], np.array(codes), [4, 2])
    tree = describe(tokenizer)["tree"]
    assert [level["prefixes"] for level in tree] == [2, 3] and [level["children"] for level in tree] == [2.0, 1.5]
    assert [level["used"] for level in tree] == [0.5, 1.0] and tree[0]["items_below_max"] == 2
    item = describe_item(tokenizer, 0)
    assert item["text"] == "<a_0><b_0>" and [near["item_id"] for near in item["nearest"]] == ["b"]
    root = describe_prefix(tokenizer, [])
    assert root["items"] == 3 and [child["code"] for child in root["children"]] == [0, 1]
    assert describe_prefix(tokenizer, [3])["legal"] is False
    assert describe_prefix(tokenizer, [0, 1])["examples"] == [{"item_id": "b", "title": None}]


def test_removed_items_make_their_prefix_illegal():
    tester = HiGRModelTester()
    ids = [f"i{item}" for item in range(tester.num_items)]
    tokenizer = HiGRTokenizer.from_codes(ids, tester.codes.numpy(), tester.codebook_sizes, 3, 2)
    prefix = tokenizer.codes[0][:2].tolist()
    below = [item for item in range(24) if tokenizer.codes[item][:2].tolist() == prefix]
    assert describe_prefix(tokenizer, prefix)["legal_items"] == len(below)
    remove_items(tester.model(), tokenizer, below)
    content = describe_prefix(tokenizer, prefix)
    assert not content["legal"] and content["items"] == len(below) and content["legal_items"] == 0
    assert not describe_item(tokenizer, below[0])["legal"]


@pytest.mark.parametrize("text", ["x", "<b_0>", "<a_9>", "7", "0,0,0,0", "<bos>", "-1", "<a_0><c_0>"])
def test_what_is_no_prefix_is_refused(pipe, text):
    with pytest.raises(ValueError, match=r"is no prefix|has 4 codes"):
        parse_prefix(pipe.tokenizer, text)


def test_prefixes_are_read_both_ways(pipe):
    assert parse_prefix(pipe.tokenizer, "2,1") == parse_prefix(pipe.tokenizer, "<a_2><b_1>") == [2, 1]
    assert parse_prefix(pipe.tokenizer, "") == []
