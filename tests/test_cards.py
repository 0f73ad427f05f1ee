"""Cards say what the run said, and nothing that it did not; the Hub's rules and its own reader accept them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import Dataset, DatasetDict
from huggingface_hub import DatasetCard, ModelCard

from higr_hf import CRQVAEConfig, CRQVAEModel, HiGRTokenizer, save_checkpoint
from higr_hf.alignment.storage import load_preferences, save_preferences
from higr_hf.cards import check_card, render_card, write_card, write_dataset_card
from higr_hf.cards.metadata import licence_fields
from higr_hf.cards.render import template_path
from higr_hf.evaluation import EvaluationResult, Report, make_row
from tests.hub import card_rules
from tests.model_tester import HiGRModelTester

SETTINGS = {
    "source": "movielens-100k",
    "licence": "GroupLens usage licence: research use",
    "homepage": "https://grouplens.org/datasets/movielens/100k/",
    "citation": "F. Maxwell Harper and Joseph A. Konstan. 2015.",
    "protocol": "leave-last-5-out, test split",
    "parameters": 4321,
    "embeddings": "both",
    "semantic IDs: collision": 0.0238,
    "semantic IDs: consistency": 0.71,
}


def report(**changes) -> Report:
    result = EvaluationResult(
        metrics={"ndcg@5": 0.25, "view_ndcg@5": math.nan, "coverage": 0.5},
        intervals={"ndcg@5": (0.2, 0.3), "view_ndcg@5": (math.nan, math.nan)},
        per_user={"ndcg@5": np.array([0.0, 0.5])},
        user_ids=["u-17", "u-18"],
        slates=np.zeros((2, 5), dtype=np.int64),
        counts={"users": 2},
    )
    fields = {
        "title": "A run",
        "systems": {"higr": result, "popularity": {"ndcg@5": 0.125}},
        "seed": 3,
        "seconds": {"Training": 61.25},
        "commands": ["make quickstart"],
        "settings": SETTINGS,
        "plots": {"Curves": "plots/training.png"},
        "notes": ["Against popularity: +0.125."],
    }
    return Report(**{**fields, **changes})


@pytest.fixture
def run(tmp_path) -> Path:
    tester = HiGRModelTester()
    ids = [f"i{item}" for item in range(tester.num_items)]
    tokenizer = HiGRTokenizer.from_codes(
        ids, tester.codes.numpy(), tester.codebook_sizes, 3, 2, collision_rule="nearest-free"
    )
    save_checkpoint(tmp_path / "model", tester.model(), tokenizer)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    CRQVAEModel(CRQVAEConfig(input_size=4, latent_size=4, hidden_sizes=[4], codebook_sizes=[3, 4, 4])).save_pretrained(
        tmp_path / "quantizer"
    )
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "training.png").write_bytes(b"picture")
    return tmp_path


def metadata(text: str) -> dict:
    assert card_rules.validate(text, "model") == ([], [])
    return yaml.safe_load(text.split("---\n")[1])


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_a_models_card_holds_the_runs_own_figures(run):
    report().save(run)
    path = write_card(run / "model", run, repo_id="me/toy")
    text = path.read_text(encoding="utf-8")
    assert path == run / "model" / "README.md"
    assert (run / "model" / "plots" / "training.png").read_bytes() == b"picture"
    assert "![Curves](plots/training.png)" in text
    assert "| `ndcg@5` | 0.2500 | 0.2000 to 0.3000 | 0.1250 |" in section(text, "Results")
    assert "| `view_ndcg@5` | – | – | – |" in text and "Against popularity: +0.125." in text
    assert "24 items, 3 levels" in section(text, "Semantic IDs") and "nearest-free" in text
    assert "| collisions before the rule | 0.0238 |" in text
    assert "4321 parameters" in text and "| `planner_layers` | 2 |" in section(text, "Model")
    training = section(text, "Training")
    for fact in (
        "| embeddings | both |",
        "| Training | 61.2 |",
        "make quickstart",
        "Seed 3",
        report().environment["machine"],
    ):
        assert fact in training, fact
    assert all(f"{name} {version}" in training for name, version in report().environment["versions"].items())
    data = section(text, "Data")
    for fact in (SETTINGS["licence"], SETTINGS["homepage"], SETTINGS["citation"], SETTINGS["protocol"]):
        assert fact in data, fact
    for title in ("Load and recommend", "Align it to your users", "Limits and risks", "Cite"):
        assert section(text, title).strip(), title
    assert 'model="me/toy"' in text and "u-17" not in text and "{{" not in text and "{%" not in text


def test_the_model_index_reads_back(run):
    text = str(render_card(run / "model", report(plots={})))
    found = metadata(text)
    assert found["license"] == "other" and found["license_name"] == "movielens-100k-terms"
    assert found["license_link"] == SETTINGS["homepage"] and "pretrained" in found["tags"]
    card = ModelCard(text)
    results = {result.metric_type: result for result in card.data.eval_results}
    assert set(results) == {"ndcg@5", "coverage"}  # what no user has is left out
    assert results["ndcg@5"].metric_value == 0.25 and results["ndcg@5"].dataset_type == "movielens-100k"
    assert results["ndcg@5"].metric_args == {"seed": 3, "users": 2, "interval_95": [0.2, 0.3]}
    assert "interval_95" not in results["coverage"].metric_args


def test_rows_of_several_seeds_give_the_spread(run):
    def row(seed: int, value: float, **changes):
        fields = {"study": "benchmark", "dataset": "movielens-100k", "system": "higr", "variant": "quickstart"}
        return make_row(**{**fields, **changes}, metrics={"ndcg@5": value}, seed=seed, seconds=1.0)

    rows = [row(0, 0.1), row(1, 0.2), row(2, 0.3), row(0, 0.9, dataset="other"), row(0, 0.05, system="popularity")]
    card = render_card(run / "model", report(plots={}), rows=rows, variant="quickstart")
    arguments = next(r for r in card.data.eval_results if r.metric_type == "ndcg@5").metric_args
    assert (arguments["seeds"], arguments["mean_over_seeds"], arguments["std_over_seeds"]) == (3, 0.2, 0.1)
    results = section(str(card), "Results")
    assert "**0.2000** ± 0.1000" in results and "0.0500" in results and "0.9000" not in results


def test_every_kind_has_its_card(run):
    aligned = report(plots={}, settings={**SETTINGS, "alignment": {"method": "ORPO", "alpha": 0.1}})
    for directory, content, kind, words in (
        ("tokenizer", report(), "tokenizer", ["AutoTokenizer", "24 items", "Fingerprint"]),
        ("quantizer", report(), "quantizer", ["AutoModel", "| `latent_size` | 4 |", "assign_new"]),
        ("model", report(), "pretrained", ["DPOTrainer"]),
        ("model", aligned, "aligned", ["aligned to slate preferences with ORPO", "| alpha | 0.1 |"]),
    ):
        path = write_card(run / directory, content, plots_from=run)
        text = path.read_text(encoding="utf-8")
        assert kind in metadata(text)["tags"] and not check_card(text)
        assert ("model-index" in metadata(text)) == (directory == "model")
        for word in words:
            assert word in text, (kind, word)
    text = str(render_card(run / "model", aligned, base_model="me/before", datasets=["me/pairs"]))
    assert metadata(text)["base_model"] == "me/before" and metadata(text)["datasets"] == ["me/pairs"]


def test_removed_items_are_told(run):
    tokenizer = HiGRTokenizer.from_pretrained(run / "tokenizer")
    tokenizer.remove_items(["i1", "i2"])
    tokenizer.save_pretrained(run / "tokenizer")
    text = str(render_card(run / "tokenizer", report(plots={})))
    assert "24 items (2 of them removed" in text and tokenizer.fingerprint in text


@pytest.mark.parametrize(
    ("licence", "homepage", "expected"),
    [
        ("CC BY-SA 4.0", "", {"license": "cc-by-sa-4.0"}),
        ("MIT", "https://x.org", {"license": "mit"}),
        ("research only", "https://x.org", {"license": "other", "license_name": "a-b-terms", "license_link": "https://x.org"}),
        ("research only", "", {"license": "other", "license_name": "a-b-terms", "license_link": "LICENSE"}),
        ("", "javascript:x", {"license": "other", "license_name": "a-b-terms", "license_link": "LICENSE"}),
    ],
)  # fmt: skip
def test_the_datas_terms_become_the_licence(licence, homepage, expected):
    assert licence_fields("A b", licence, homepage) == expected


def test_terms_without_a_home_lie_beside_the_card(run):
    settings = {**SETTINGS, "homepage": ""}
    text = write_card(run / "model", report(settings=settings, plots={})).read_text()
    assert metadata(text)["license_link"] == "LICENSE"
    assert SETTINGS["licence"] in (run / "model" / "LICENSE").read_text()


def test_other_peoples_words_stay_words(run):
    settings = {
        "source": "x\n---\nlicense: mit\n---\n{{ 7 * 7 }}",
        "licence": "<script>alert(1)</script>",
        "note | pipe": "a | b\nc",
    }
    text = str(render_card(run / "model", report(settings=settings, plots={}, notes=["{% raise %} <b>"])))
    assert metadata(text)["license"] == "other" and check_card(text) == []
    assert "49" not in section(text, "Data") and "{{ 7 * 7 }}" in text and "<script>" not in text
    assert "| note \\| pipe | a \\| b c |" in text and "{% raise %} &lt;b&gt;" in text


def test_what_cannot_become_a_card(run, tmp_path):
    with pytest.raises(ValueError, match="no `systems`"):
        render_card(run / "model", {"seed": 0})
    with pytest.raises(ValueError, match="kind is 'poem'"):
        render_card(run / "model", report(), kind="poem")
    with pytest.raises(FileNotFoundError, match="There is no report"):
        write_card(run / "model", tmp_path / "none.json")
    (run / "report.json").write_text('{"half')
    with pytest.raises(ValueError, match=r"report.json is truncated"):
        write_card(run / "model", run)
    (run / "plots" / "training.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"training.png, which is missing"):
        write_card(run / "model", report(), plots_from=run)
    with pytest.raises(ValueError, match="outside the report's directory"):
        write_card(run / "model", report(plots={"x": "../../x.png"}), plots_from=run)
    assert not (run / "model" / "README.md").exists()


def test_templates_of_ones_own(run, tmp_path):
    (tmp_path / "pretrained.md").write_text("---\n{{ card_data }}\n---\n# {{ name }} in {{ seed }}\n")
    assert "# toy in 3" in str(render_card(run / "model", report(), name="toy", templates=tmp_path))
    (tmp_path / "pretrained.md").write_text("---\n{{ card_data }}\n---\n# {{ title }}\n")
    with pytest.raises(ValueError, match="asks for title"):
        render_card(run / "model", report(), templates=tmp_path)
    (tmp_path / "pretrained.md").write_text("# {{ name }}\n")
    with pytest.raises(ValueError, match="no metadata"):
        render_card(run / "model", report(), templates=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no card template aligned.md"):
        template_path("aligned", tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("# Bare", "no metadata"),
        ("---\nlicense: [\n---\n# x", "cannot be read"),
        ("---\ntags: [a]\n---\n# x", "`license` is None"),
        ("---\nlicense: other\n---\n# x", "license_name and license_link"),
        ("---\nlicense: mit\n---\nno title", "no title"),
        (
            "---\nlicense: mit\nmodel-index:\n- name: m\n  results:\n  - task: {type: t}\n"
            "    dataset: {type: d, name: d}\n    metrics: [{type: ndcg@5, value: .nan}]\n---\n# x",
            "gives nan for d/ndcg@5",
        ),
        ("---\nlicense: mit\nmodel-index:\n- results: []\n---\n# x", "cannot be read"),
    ],
)  # fmt: skip
def test_problems_are_found_without_a_network(text, problem):
    assert problem in " ".join(check_card(text))


# ---- preference data


def pairs(number: int, **columns) -> Dataset:
    rows = {name: [f"<a_{row}><b_0>" for row in range(number)] for name in ("prompt", "chosen", "rejected")}
    return Dataset.from_dict({**rows, "objective": ["order", "interest"] * (number // 2), **columns})


def test_a_preference_datasets_card(tmp_path):
    dataset = DatasetDict(train=pairs(6, weights=[[0.5]] * 6), validation=pairs(2, weights=[[0.5]] * 2))
    directory = write_dataset_card(
        tmp_path / "pairs",
        dataset,
        source="kuairand-pure",
        licence="CC BY-SA 4.0",
        citation="Gao et al. 2022.",
        tokenizer="me/tokenizer",
        tokenizer_fingerprint="abc",
        settings={"users": "3 %"},
        commands=("python -m make.pairs",),
    )
    text = (directory / "README.md").read_text(encoding="utf-8")
    assert card_rules.validate(text, "dataset") == ([], []) and check_card(text, "dataset") == []
    found = DatasetCard(text).data.to_dict()
    assert found["license"] == "cc-by-sa-4.0" and found["size_categories"] == ["n<1K"] and "trl" in found["tags"]
    assert found["configs"][0]["data_files"] == [
        {"split": split, "path": f"{split}.parquet"} for split in ("train", "validation")
    ]
    for fact in (
        "| train | 6 |", "| `weights` | list of float64 |", "| order | 3 | 1 |", "prompt    <a_0><b_0>",
        "me/tokenizer",
        "`abc`", "| users | 3 % |", "python -m make.pairs", "Gao et al. 2022.",
    ):  # fmt: skip
        assert fact in text, fact
    again = Dataset.from_parquet(str(directory / "train.parquet"), keep_in_memory=True)
    assert again.to_list() == dataset["train"].to_list()


def test_a_card_shows_no_whole_history(tmp_path):
    prompts = {name: ["<a_1><b_2>" * 50] for name in ("prompt", "chosen", "rejected")}
    text = (write_dataset_card(tmp_path / "x", Dataset.from_dict(prompts), source="toy") / "README.md").read_text()
    assert "prompt    <a_1><b_2>" in text and "…" in text and text.count("<a_1>") <= 3 * 6


def test_rows_that_are_no_preferences(tmp_path):
    with pytest.raises(ValueError, match="'train' lacks rejected"):
        write_dataset_card(tmp_path / "x", pairs(2).remove_columns("rejected"), source="toy")
    with pytest.raises(ValueError, match="'train' has no rows"):
        write_dataset_card(tmp_path / "x", pairs(2).select([]), source="toy")
    assert not (tmp_path / "x").exists()


def test_report_json_and_report_give_the_same_card(run):
    content = json.loads((report().save(run) / "report.json").read_text())
    cards = [str(render_card(run / "model", source)) for source in (report(), content, run, run / "report.json")]
    assert len(set(cards)) == 1


def test_saved_preferences_get_a_card_and_still_load(tmp_path):
    about = {"tokenizer_fingerprint": "f00d", "settings": {"users": 0.03}}
    dataset = pairs(4)
    dataset.info.description = json.dumps(about)
    save_preferences(dataset, tmp_path / "pairs")
    text = (write_dataset_card(tmp_path / "pairs", source="toy", licence="MIT") / "README.md").read_text()
    assert "`f00d`" in text and "| users | 0.03 |" in text and check_card(text, "dataset") == []
    again = load_preferences(tmp_path / "pairs")
    assert again.to_list() == dataset.to_list() and json.loads(again.info.description) == about
    with pytest.raises(FileNotFoundError, match="holds no <split>"):
        write_dataset_card(tmp_path / "none", source="toy")
