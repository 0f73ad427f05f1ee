from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from higr_hf import load_checkpoint
from tests.training.workspace import ROOT, losses, write_log, write_recipe, write_tokenizer
from training import evaluate, fit_tokenizer, train
from training._args import run
from training._data import load_splits

FRESH = """
import json, sys
from higr_hf import load_checkpoint
from higr_hf.data import leave_last_out, read_log
from higr_hf.recommender import SlateRecommender
from higr_hf.evaluation import SlateEvaluator

folder = sys.argv[1]
columns = {"user_id": "uid", "timestamp": "when"}
log = read_log(f"{folder}/log.csv", f"{folder}/items.csv", columns=columns)
model, tokenizer = load_checkpoint(f"{folder}/run/model")
evaluator = SlateEvaluator(leave_last_out(log)["test"], tokenizer.item_ids, exclude_history=True, progress=False)
print(json.dumps(evaluator.evaluate(SlateRecommender(model, tokenizer)).slates.tolist()))
"""


def complaint(main, argv: list[str]) -> str:
    """The one line that a script ends with."""
    with pytest.raises(SystemExit) as stop:
        run(lambda: main(argv))
    assert isinstance(stop.value.code, str), "ends with status 1 and this text"
    assert len(stop.value.code.splitlines()) == 1
    return stop.value.code


@pytest.mark.slow
def test_from_a_log_to_slates_in_a_fresh_process(tmp_path):
    folder = tmp_path
    write_log(folder, num_users=160)
    own = [
        "--interactions", str(folder / "log.csv"), "--items", str(folder / "items.csv"),
        "--columns", "{user_id: uid, timestamp: when}", "--view_rule", "rating >= 4",
    ]  # fmt: skip
    fit_tokenizer.main(
        [*own, "--output_dir", str(folder), "--embeddings", "text", "--positives", "embedding",
         "--codebook_sizes", "[8, 8, 8]", "--fit", "{epochs: 10, warmup_epochs: 2}"]
    )  # fmt: skip
    recipe = write_recipe(
        folder, num_train_epochs=10, per_device_train_batch_size=32, max_grad_norm=1.0, logging_steps=2,
        eval_strategy="epoch", save_strategy="epoch", save_total_limit=1, load_best_model_at_end=True,
        metric_for_best_model="eval_ndcg@5", greater_is_better=True, patience=6,
        generation={"num_beams": 10, "rerank_weight": 1.0}, model={"dropout": 0.0, "max_history": 20},
    )  # fmt: skip
    metrics = train.main(recipe)
    run_folder = folder / "run"
    record = json.loads((run_folder / "validation.json").read_text())
    assert record["metrics"] == pytest.approx(metrics)
    assert record["processes"] == 1
    curve = losses(record["log"])
    assert sum(curve[-8:]) < 0.9 * sum(curve[:8])
    best = max((entry for entry in record["log"] if "eval_ndcg@5" in entry), key=lambda entry: entry["eval_ndcg@5"])
    assert best["eval_ndcg@5"] > 0.2
    assert metrics["loss"] == best["eval_loss"], "of the weights that are kept"

    argv = [
        *own, "--model", str(run_folder / "model"), "--output_dir", str(run_folder / "test"), "--device", "cpu",
        "--diversity_embeddings", "collaborative", "--results", str(folder / "results"),
    ]  # fmt: skip
    result = evaluate.main(argv)
    report = json.loads((run_folder / "test" / "report.json").read_text())
    higr, popularity = (report["systems"][name]["metrics"] for name in ("higr", "popularity"))
    assert higr == pytest.approx(result.metrics)
    assert higr["ndcg@5"] > 4 * popularity["ndcg@5"]
    assert higr["view_recall@5"] > 4 * popularity["view_recall@5"]
    assert "popularity" in (run_folder / "test" / "report.md").read_text()
    rows = list(map(json.loads, (folder / "results" / "benchmark.jsonl").read_text().splitlines()))
    assert [(row["dataset"], row["system"], row["n_users"]) for row in rows] == [
        ("log", "higr", 160),
        ("log", "popularity", 160),
    ]
    for row, expected in zip(rows, (higr, popularity), strict=True):
        assert row["metrics"]["ndcg@5"] == pytest.approx(expected["ndcg@5"])

    # What is read back by another process is what was judged here.
    command = [sys.executable, "-c", FRESH, str(folder)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout.splitlines()[-1]) == result.slates.tolist()

    longer = evaluate.main([*argv, "--list_size", "7"])
    assert longer.slates[:, :5].tolist() == result.slates.tolist(), "slot by slot: two more behind the same five"
    assert "ndcg@7" in longer.metrics

    # What the evaluation refuses.
    assert "has seen in training: use 5 or less" in complaint(evaluate.main, [*argv, "--slate_size", "6"])
    assert "--generation has no setting 'num_beam'; did you mean" in complaint(
        evaluate.main, [*argv, "--generation", "{num_beam: 2}"]
    )
    assert "--wish 2 is no feedback level" in complaint(evaluate.main, [*argv, "--wish", "2"])
    write_log(folder, num_users=2)  # of which most of the catalogue is missing
    assert "was the tokenizer fitted on these data?" in complaint(evaluate.main, argv)
    (run_folder / "model" / "model.safetensors").unlink()
    assert "model.safetensors is missing" in complaint(evaluate.main, argv)
    assert "There is no checkpoint directory" in complaint(evaluate.main, [*argv, "--model", str(folder / "none")])
    assert "--model is missing" in complaint(evaluate.main, [])


def test_what_training_refuses(own, tmp_path):
    folder, _ = own

    def says(*argv: str, **options) -> str:
        return complaint(train.main, [*write_recipe(folder, **options), *argv])

    assert "--tokenizer is missing" in says(tokenizer="")
    assert "is not the directory of a whole tokenizer: it has no tokenizer_config.json" in says(tokenizer="nowhere")
    assert "the tokenizer in" in says(feedback_edges="[2.5]")
    assert "--model has no setting 'droput'; did you mean 'dropout'?" in says(model="{droput: 0.1}")
    assert "--model has no setting 'slate_size'" in says(model="{slate_size: 3}")
    assert "--collator has no setting 'shufle'; did you mean 'shuffle'?" in says(collator="{shufle: 1}")
    assert "--wish 1 is no feedback level: the feedback edges make 0" in says(wish=1)
    assert "There is no preset 'huge'" in says(preset="huge")
    assert "hidden_size (30) must be a multiple" in says(model="{hidden_size: 30, num_attention_heads: 2}")
    assert "use eval_ndcg@3" in says(slate_size=3, metric_for_best_model="eval_ndcg@5")
    assert "use eval_ndcg@7" in says(slate_size=3, list_size=7, metric_for_best_model="eval_ndcg@3")
    assert "--patience needs something to watch" in says(patience=2)
    (folder / "file").touch()
    assert "cannot be written to: Not a directory" in says(output_dir=str(folder / "file" / "run"))
    assert "was not written to its end" in says(resume_from_checkpoint=str(folder / "run" / "checkpoint-9"))
    assert "no such file" in says(interactions=str(folder / "none.csv"))
    broken = folder / "broken"
    shutil.copytree(folder / "tokenizer", broken)
    (broken / "item_sids.safetensors").write_bytes((broken / "item_sids.safetensors").read_bytes()[:100])
    assert "error: " in says(tokenizer=str(broken))
    small = tmp_path / "small"
    small.mkdir()
    write_tokenizer(small, write_log(small, num_users=2))
    assert "error: " in says(tokenizer=str(small / "tokenizer")), "items of the log that the tokenizer does not know"


def test_a_wrong_option_ends_a_real_process_with_one_line(own):
    folder, _ = own
    command = [sys.executable, "-m", "training.train", *write_recipe(folder, tokenizer=str(folder / "none"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: --tokenizer")


def test_training_cannot_reach_the_test_split(own, monkeypatch):
    folder, _ = own
    options = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2}
    whole = train.main(write_recipe(folder, **options))

    def without_test(args):
        log, splits = load_splits(args)
        # What only a look at the test split could change: its rows become nonsense.
        splits["test"] = splits["test"].select([])
        return log, splits

    monkeypatch.setattr(train, "load_splits", without_test)
    # To a rounding: how a product of float32 vectors is summed depends on where they lie in memory.
    assert train.main(write_recipe(folder, **options)) == pytest.approx(whole, rel=1e-6)


def test_a_checkpoint_of_another_tokenizer_is_not_resumed(own):
    folder, log = own
    train.main(write_recipe(folder, max_steps=2, save_strategy="steps", save_steps=2))
    write_tokenizer(folder, log, shift=1)
    message = complaint(train.main, [*write_recipe(folder), "--resume_from_checkpoint", "true"])
    assert "checkpoint-2 was trained with another tokenizer" in message


def test_resuming_where_nothing_was_saved_starts_from_the_beginning(own, capsys):
    folder, _ = own
    fresh = train.main(write_recipe(folder, max_steps=2))
    half = folder / "run" / "checkpoint-1"
    half.mkdir()
    (half / "config.json").write_text("{}")
    again = train.main([*write_recipe(folder, max_steps=2), "--resume_from_checkpoint", "true"])
    assert again == pytest.approx(fresh, rel=1e-5)
    assert "holds no whole checkpoint: training starts from the beginning" in capsys.readouterr().out
    message = complaint(train.main, [*write_recipe(folder), "--resume_from_checkpoint", str(half)])
    assert "checkpoint-1 was not written to its end" in message


def test_gradient_accumulation_keeps_the_scale_of_the_loss(own):
    """Four quarters of a batch give the loss, the gradient and the weights of the whole one."""
    folder, _ = own
    curves, norms, models = [], [], []
    for name, rows, steps in (("whole", 64, 1), ("quarters", 16, 4)):
        recipe = write_recipe(
            folder, output_dir=str(folder / name), per_device_train_batch_size=rows, gradient_accumulation_steps=steps,
            max_steps=2, collator={"num_windows": 100}, model={"dropout": 0.0, "hidden_size": 32},
        )  # fmt: skip
        # Every step sees all 64 users, whatever order they come in.
        train.main(recipe)
        log = json.loads((folder / name / "validation.json").read_text())["log"]
        curves.append(losses(log))
        norms.append([entry["grad_norm"] for entry in log if "grad_norm" in entry])
        models.append(load_checkpoint(folder / name / "model")[0])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    for (name, one), two in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert one.detach().numpy() == pytest.approx(two.detach().numpy(), abs=1e-3), name


def test_baskets_train_and_are_judged(own):
    folder, _ = own
    table = pd.read_csv(folder / "log.csv")
    table["basket_id"] = table["uid"] + "-" + (table.groupby("uid").cumcount() // 3).astype(str)
    table.to_csv(folder / "log.csv", index=False)
    metrics = train.main(write_recipe(folder, protocol="baskets", max_steps=4, exclude_history=False))
    assert metrics["validity"] == 1
    assert metrics["hit@5"] > 0
