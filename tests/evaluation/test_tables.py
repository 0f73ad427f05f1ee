"""Tables in documents are what the result rows say, and the check notices when they are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from higr_hf.evaluation.results import append_rows, make_row
from higr_hf.evaluation.tables import TableSpec, load_specs, main, render_document, render_table, stale_tables

SPECS = """
toy:
  study: benchmark
  where: {dataset: toy}
  metrics: [ndcg@5, duplicates]
  sort: ndcg@5
"""
TABLE = """\
| system | variant | ndcg@5 | duplicates | seeds |
| --- | --- | ---: | ---: | ---: |
| higr | none | **0.2000** ± 0.1414 | 0.1000 | 2 |
| popularity | a\\|b | 0.1500 | **0.0000** | 1 |
| sasrec | none | – | 0.5000 | 1 |
"""


def rows():
    measured = [
        ("popularity", "a|b", 0, {"ndcg@5": 0.15, "duplicates": 0.0}),
        ("sasrec", "none", 0, {"duplicates": 0.5}),
        ("higr", "none", 0, {"ndcg@5": 0.1, "duplicates": 0.1}),
        ("higr", "none", 1, {"ndcg@5": 0.3, "duplicates": 0.1}),
    ]
    common = {"study": "benchmark", "seconds": 1, "command": "make toy"}
    result = [
        make_row(dataset="toy", system=s, variant=v, seed=seed, metrics=m, **common) for s, v, seed, m in measured
    ]
    return [*result, make_row(dataset="other", system="higr", seed=0, metrics={"ndcg@5": 0.9}, **common)]


@pytest.fixture
def results(tmp_path):
    append_rows(rows(), tmp_path)
    (tmp_path / "tables.yaml").write_text(SPECS)
    return tmp_path


def test_rendering_by_hand(results):
    assert render_table(rows(), load_specs(results / "tables.yaml")["toy"]) == TABLE.replace(
        "0.1000 | 2", "0.1000 ± 0.0000 | 2"
    )
    assert render_table([], TableSpec("benchmark", ("ndcg@5",))) == "No rows yet.\n"
    one = render_table(
        rows(), TableSpec("benchmark", ["ndcg@5"], where={"dataset": ["other"]}, by=["dataset"], digits=2)
    )
    assert one.splitlines()[-1] == "| other | 0.90 | 1 |"
    seconds = [{**rows()[0], "metrics": {"ndcg@5": 0.5, "seconds": 12.34}}]
    two = render_table(seconds, TableSpec("benchmark", ["ndcg@5", "seconds"], digits={"seconds": 1}))
    assert two.splitlines()[-1].endswith("| 0.5000 | 12.3 | 1 |")


def test_a_document_is_rendered_once_and_then_up_to_date(results, capsys):
    document = results / "README.md"
    document.write_text("Before\n<!-- table:toy -->\nold\n<!-- /table -->\nafter\n")
    assert stale_tables(document, results) == ["toy"]
    assert main(["check", str(document), "--results", str(results)]) == 1
    assert main(["render", str(document), "--results", str(results)]) == 0
    text = document.read_text()
    assert text.startswith("Before\n<!-- table:toy -->\n| system") and text.endswith("|\n<!-- /table -->\nafter\n")
    assert main(["check", str(document), "--results", str(results)]) == 0
    assert main(["render", str(document), "--results", str(results)]) == 0
    output = capsys.readouterr().out.splitlines()
    assert [line.rsplit(": ", 1)[-1] for line in output] == ["toy", "rendered", "up to date", "unchanged"]
    append_rows(rows()[:1], results)
    assert stale_tables(document, results) == [], "the same run measured again is no second seed"
    append_rows([{**rows()[0], "metrics": {"ndcg@5": 0.9}}], results)
    assert stale_tables(document, results) == ["toy"]


def test_marks_that_do_not_fit_are_refused(results):
    specs = load_specs(results / "tables.yaml")
    with pytest.raises(ValueError, match="'nope' has no specification"):
        render_document("<!-- table:nope -->\n<!-- /table -->", specs, results)
    with pytest.raises(ValueError, match="1 tables are opened, 0 closed"):
        render_document("<!-- table:toy -->\n", specs, results)
    with pytest.raises(ValueError, match="'toy' is not closed"):
        render_document("<!-- table:toy -->\n<!-- table:toy -->\n<!-- /table -->", specs, results)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("toy: {study: nope, metrics: [a]}", "'toy': study is 'nope'"),
        ("toy: {study: speed, metrics: []}", "metrics is empty"),
        ("toy: {study: speed, metrics: [a], where: {colour: red}}", "unknown fields"),
        ("toy: {study: speed, metrics: [a], sort: b}", "sort is 'b'"),
        ("toy: {study: speed, metrics: [a], colour: red}", "unknown options"),
        ("[toy]", "expected a mapping"),
    ],
)
def test_specifications_that_do_not_hold_are_refused(tmp_path, spec, message):
    (tmp_path / "tables.yaml").write_text(spec)
    with pytest.raises(ValueError, match=message):
        load_specs(tmp_path / "tables.yaml")


def test_this_repositorys_tables_are_what_its_results_say():
    root = Path(__file__).resolve().parents[2]
    documents = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("model_cards/*.md")]
    stale = {str(path): stale_tables(path, root / "results") for path in documents}
    assert not {path: names for path, names in stale.items() if names}
