from __future__ import annotations

import json

import pytest
import torch
import yaml

from higr_hf import cli, load_checkpoint
from higr_hf.item_categories import find_categories
from higr_hf.modeling_crq_vae import CRQVAEModel
from higr_hf.tokenization_higr import HiGRTokenizer
from tests.training.workspace import COLUMNS, write_log
from training import quickstart


def options(folder, **changes) -> list[str]:
    settings = {
        "interactions": str(folder / "log.parquet"),
        "items": str(folder / "items.parquet"),
        "columns": str(COLUMNS),
        "view_rule": "rating >= 4",
        "output_dir": str(folder / "run"),
        "embeddings": "text",
        "codebook_sizes": "[8, 8, 8]",
        "tokenizer_settings": "{epochs: 10, warmup_epochs: 2, progress: false}",
        "model": "{dropout: 0.0, max_history: 20, catalog_prior: true, dense_head: false}",
        "item_item": "{decays: [3, 0], neighbours: 7}",
        "item_item_scales": "[[1, 0], [10, 1]]",
        "num_train_epochs": "8",
        "per_device_train_batch_size": "32",
        "learning_rate": "0.005",
        "warmup_steps": "5",
        "logging_steps": "5",
        "eval_users": "40",
        "disable_tqdm": "true",
    }
    return [word for name, value in {**settings, **changes}.items() for word in (f"--{name}", value)]


@pytest.mark.slow
def test_the_quickstart_keeps_its_promises(tmp_path, capsys):
    write_log(tmp_path, "parquet", num_users=200)
    recipe = {"method": "orpo-sum", "objectives": {"ranking": 1, "diversity": 1}, "max_steps": 4, "disable_tqdm": True}
    (tmp_path / "align.yaml").write_text(yaml.safe_dump(recipe))
    results = quickstart.main(options(tmp_path, alignment=str(tmp_path / "align.yaml")))
    run = tmp_path / "run"

    higr, aligned, popularity = (results[name].metrics for name in ("higr", "higr, aligned", "popularity"))
    assert higr["ndcg@5"] > 3 * popularity["ndcg@5"]
    assert higr["view_recall@5"] > 3 * popularity["view_recall@5"]
    assert results["higr"].compare(results["popularity"]).low > 0, "beyond chance"
    assert (higr["validity"], higr["duplicates"]) == (1, 0)

    model, tokenizer = load_checkpoint(run / "model")
    twin, _ = load_checkpoint(run / "aligned" / "model")
    assert any(not torch.equal(x, y) for x, y in zip(model.parameters(), twin.parameters(), strict=True))
    assert json.loads((run / "aligned" / "alignment.json").read_text())["kept"] == "aligned"
    alone = HiGRTokenizer.from_pretrained(run / "tokenizer")
    assert alone.fingerprint == tokenizer.fingerprint == model.config.tokenizer_fingerprint
    assert tokenizer.titles[0].startswith("Item ")
    assert (run / "model" / "modeling_higr.py").is_file(), "the code travels with the weights"
    assert CRQVAEModel.from_pretrained(run / "quantizer").config.codebook_sizes == [8, 8, 8]

    report = json.loads((run / "report.json").read_text())
    bare = results["higr, without tables"].metrics
    assert model.config.item_item_neighbours == 7 and bare != higr
    shown = {"higr, without tables": bare, "higr": higr, "higr, aligned": aligned, "popularity": popularity}
    assert list(report["systems"]) == list(shown)
    for name, metrics in shown.items():
        for metric, value in metrics.items():
            assert report["systems"][name]["metrics"][metric] == pytest.approx(value)
    assert report["seed"] == 0
    stages = {"Data", "Item embeddings", "Semantic IDs", "Training", "Item-item tables", "Evaluation", "Alignment"}
    assert set(report["seconds"]) == stages
    assert all(value > 0 for value in report["seconds"].values())
    assert {"torch", "transformers"} <= set(report["versions"])
    assert report["commands"]
    assert report["settings"]["protocol"] == "leave-last-5-out, test split, history excluded, full catalogue"
    assert len(report["plots"]) == 3
    for file in report["plots"].values():
        assert (run / file).read_bytes().startswith(b"\x89PNG")
    assert [example["user_id"] for example in report["examples"]] == ["u0", "u99", "u199"]
    assert all(title.startswith("Item ") for title in report["examples"][0]["slate"])

    text = (run / "report.md").read_text()
    said = capsys.readouterr().out
    for shown in (text, said):
        assert "| ndcg@5" in shown
        assert "popularity" in shown
        assert report["examples"][0]["slate"][0] in shown
    assert "log: licence unknown" in said

    asked = ["recommend", str(run / "model"), "--titles", "--history", tokenizer.titles[0], "--category", "topic 1"]
    assert cli.main([*asked, "--json"]) == 0
    slate = json.loads(capsys.readouterr().out.splitlines()[-1])
    categories = find_categories(str(run / "model"))
    assert len(slate) == 5 and all("topic 1" in categories[place["item_id"]] for place in slate)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"items": ""}, "the items of log have no titles, and the quickstart shows slates by title"),
        ({"tokenizer_settings": "{epoch: 1}"}, "--tokenizer_settings has no setting 'epoch'; did you mean 'epochs'"),
        ({"slate_size": "3"}, "use eval_ndcg@3"),
        ({"codebook_sizes": "64"}, "--codebook_sizes must be a list of numbers"),
        ({"item_item": "{decay: [3]}"}, "--item_item has no setting 'decay'; did you mean 'decays'"),
        ({"item_item_scales": "3"}, "--item_item_scales must be a list of lists of numbers"),
        ({"model": "{dropout: 0.0}"}, "give --model '{catalog_prior: true}'"),
        ({"alignment": "none.yaml"}, "2"),
        ({"recipe": "none.yaml"}, "2"),
    ],
)
def test_what_the_quickstart_refuses(tmp_path, changes, message):
    write_log(tmp_path, "parquet", num_users=8)
    argv = options(tmp_path, **changes)
    if changes.get("items") == "":
        place = argv.index("--items")
        argv = argv[:place] + argv[place + 2 :]
    with pytest.raises(SystemExit) as stop:
        quickstart.main(argv)
    assert message in str(stop.value.code)


def test_the_quickstart_is_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart.TrainerArguments, "world_size", 2)
    with pytest.raises(SystemExit, match="the quickstart is one process"):
        quickstart.main(options(tmp_path))
