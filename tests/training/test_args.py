from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from training._args import TrainerArguments, check_output, is_main_process, mapping, numbers, parse_recipe, parsed, run


@dataclass
class Options:
    """Some options."""

    _argument_group_name = "things"

    number: int = field(default=1, metadata={"help": "A number."})
    rate: float = field(default=0.5, metadata={"help": "A rate."})
    settings: str = field(default="{}", metadata={"help": "A mapping."})

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError(f"--number is {self.number}: it must not be negative")


def recipe(tmp_path, text: str) -> list[str]:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return ["--recipe", str(path)]


def complaint(capsys, argv: list[str], types=(Options,)) -> str:
    with pytest.raises(SystemExit) as stop:
        parse_recipe(types, argv)
    assert stop.value.code == 2
    *usage, message = capsys.readouterr().err.strip().splitlines()
    assert len(usage) == 1, "one usage line, one line that says what is wrong"
    return message


def test_a_recipe_stands_under_the_command_line(tmp_path):
    argv = recipe(tmp_path, "number: 7\nrate: 1e-3\nsettings: {a: 2}\n")
    (options,) = parse_recipe((Options,), argv)
    assert (options.number, options.rate, options.settings) == (7, 0.001, {"a": 2})
    (options,) = parse_recipe((Options,), [*argv, "--number", "8"])
    assert (options.number, options.rate) == (8, 0.001)
    (options,) = parse_recipe((Options,), ["--number=9"], default_recipe=argv[1])
    assert (options.number, options.rate) == (9, 0.001)
    (options,) = parse_recipe((Options,), [f"--recipe={argv[1]}"])
    assert options.number == 7


def test_help_has_groups_and_defaults_with_the_scripts_own_options_first(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        parse_recipe((Options, TrainerArguments), [*recipe(tmp_path, "number: 7"), "--help"], "First.\n\n    code")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "First.\n\n    code" in text
    assert "A number. (default: 7)" in text
    assert text.index("things:") < text.index("transformers.TrainingArguments")
    assert len(text.split("\n\n")[0].splitlines()) == 1, "the usage does not list a hundred options"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("numbr: 7", "sets 'numbr', which is no option of this command; did you mean 'number'?"),
        ("- 1", "must be a mapping of option: value"),
        ("a: [", "is no valid YAML"),
        ("number: [1]", "sets number to [1]: it must be a number"),
        ("number: seven", "invalid int value: 'seven'"),
        ("number: -1", "--number is -1: it must not be negative"),
    ],
)
def test_a_bad_recipe_is_said_in_one_line(tmp_path, capsys, text, message):
    assert message in complaint(capsys, recipe(tmp_path, text))


def test_a_missing_recipe_and_an_unknown_option(tmp_path, capsys):
    assert "cannot be read: No such file" in complaint(capsys, ["--recipe", str(tmp_path / "no.yaml")])
    assert "there is no option --numbr; did you mean '--number'?" in complaint(capsys, ["--numbr", "3"])
    contradiction = ["--output_dir", str(tmp_path), "--load_best_model_at_end", "true", "--save_strategy", "epoch"]
    assert "strategy to match" in complaint(capsys, contradiction, (Options, TrainerArguments))


def test_mappings_and_lists():
    assert mapping("model", "{dropout: 0.2}", ["dropout"]) == {"dropout": 0.2}
    assert mapping("model", {}, []) == {}
    assert numbers("edges", "[1, 2.5]") == [1, 2.5]
    assert parsed("[1]") == [1]
    for wrong in ("[1]", "word"):
        with pytest.raises(SystemExit, match="--model must be a mapping"):
            mapping("model", wrong)
    with pytest.raises(SystemExit, match="--model has no setting 'dropuot'; did you mean 'dropout'"):
        mapping("model", "{dropuot: 0.2}", ["dropout", "pooling"])
    for wrong in ("3", "[a]", "{a: 1}", "[true]"):
        with pytest.raises(SystemExit, match="--edges must be a list of numbers"):
            numbers("edges", wrong)
    with pytest.raises(SystemExit, match="no valid YAML"):
        parsed("{a: [")


def test_an_output_directory_is_tried_before_anything_is_done(tmp_path, monkeypatch):
    assert check_output(tmp_path / "a" / "b").is_dir()
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"error: --output_dir .*file/run cannot be written to: Not a directory"):
        check_output(tmp_path / "file" / "run")
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process()
    assert not check_output(tmp_path / "other").exists()


def test_expected_errors_are_one_line_and_faults_keep_their_traceback(tmp_path, monkeypatch):
    def a_check_of_the_library() -> None:
        from higr_hf.data import read_table

        read_table(str(tmp_path / "none.csv"))

    def a_file() -> None:
        (tmp_path / "none").read_text()

    def a_fault() -> None:
        int("seven")

    with pytest.raises(SystemExit, match=r"error: .*none\.csv: no such file"):
        run(a_check_of_the_library)
    with pytest.raises(SystemExit, match=r"error: .*No such file"):
        run(a_file)
    with pytest.raises(ValueError, match="invalid literal"):
        run(a_fault)
    monkeypatch.setenv("HIGR_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no such file"):
        run(a_check_of_the_library)
