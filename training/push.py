"""Share what a run made: model, tokenizer, quantiser, preferences and a page to look at it, each with its card.

    python -m training.push --model runs/quickstart/model --quantizer runs/quickstart/quantizer \\
        --report runs/quickstart --repo_id me/higr-movielens --private true

Only files that loading needs, the card and its plots are uploaded, in one commit a repository; `--dry_run true` lists
them and stops. The token is read from HF_TOKEN, or is the one that `hf auth login` stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from higr_hf.cards import write_card
from higr_hf.hub import PushResult, ReleaseFile, dataset_files, push_files, release_files, space_files

from ._args import parse_recipe, run


@dataclass
class PushArguments:
    """What goes where."""

    repo_id: str = field(default="", metadata={"help": "Repository of the model: name, or owner/name."})
    model: str | None = field(
        default=None, metadata={"help": "Directory of a model with its tokenizer, as training leaves it in model/."}
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Directory of a tokenizer, to share it alone; a model brings its own."}
    )
    quantizer: str | None = field(
        default=None, metadata={"help": "Directory of the quantiser; beside a model it goes to quantizer/."}
    )
    preferences: str | None = field(
        default=None,
        metadata={"help": "Directory of a preference dataset, as write_dataset_card left it."},
    )
    preferences_repo_id: str | None = field(
        default=None, metadata={"help": "Its repository; by default --repo_id with -preferences at the end."}
    )
    space: str | None = field(
        default=None, metadata={"help": "Directory of a Space, as `higr app MODEL --space` left it."}
    )
    space_repo_id: str | None = field(
        default=None, metadata={"help": "Its repository; by default --repo_id with -space at the end."}
    )
    report: str | None = field(
        default=None, metadata={"help": "report.json of the run, or its directory: the card is written from it first."}
    )
    private: bool = field(default=False, metadata={"help": "Make new repositories private."})
    branch: str = field(default="main", metadata={"help": "Branch to push to; made when it is missing."})
    tag: str | None = field(default=None, metadata={"help": "Name for the commit, such as v1.0."})
    message: str = field(default="Upload a release of higr_hf", metadata={"help": "Message of the commit."})
    replace: bool = field(default=False, metadata={"help": "Push into a repository that holds something else."})
    dry_run: bool = field(default=False, metadata={"help": "List the files and stop; nothing is sent."})

    def __post_init__(self) -> None:
        if not any((self._releases, self.preferences, self.space)):
            raise ValueError(
                "there is nothing to push: give --model, --tokenizer, --quantizer, --preferences or --space"
            )
        unnamed = (
            self._releases,
            self.preferences and not self.preferences_repo_id,
            self.space and not self.space_repo_id,
        )
        if not self.repo_id and any(unnamed):
            raise ValueError("--repo_id is missing: the repository to push to, owner/name")
        if self.report and not self._releases:
            raise ValueError("--report makes the card of a model, tokenizer or quantiser, and none is given")

    @property
    def _releases(self) -> bool:
        return any((self.model, self.tokenizer, self.quantizer))


def main(argv: list[str] | None = None) -> list[PushResult]:
    """Push what the arguments name; returns where it is."""
    (options,) = parse_recipe((PushArguments,), argv, description=__doc__ or "")
    uploads: list[tuple[str, str, list[ReleaseFile]]] = []
    root = options.model or options.tokenizer or options.quantizer
    if root is not None:
        # First the files without a card: whatever is wrong with them is said before anything is written.
        release_files(options.model, options.tokenizer, options.quantizer)
        if options.report:
            print(f"wrote {write_card(root, options.report)}", flush=True)
        uploads.append(("model", options.repo_id, release_files(options.model, options.tokenizer, options.quantizer)))
    if options.preferences:
        target = options.preferences_repo_id or f"{options.repo_id}-preferences"
        uploads.append(("dataset", target, dataset_files(options.preferences)))
    if options.space:
        uploads.append(("space", options.space_repo_id or f"{options.repo_id}-space", space_files(options.space)))
    for repo_type, repo_id, files in uploads:
        _list(repo_type, repo_id, files)
    if options.dry_run:
        print("nothing was sent: --dry_run is set")
        return []
    return [_push(options, *upload) for upload in uploads]


def _list(repo_type: str, repo_id: str, files: list[ReleaseFile]) -> None:
    print(f"{repo_type} {repo_id}, {sum(file.size for file in files) / 2**20:.1f} MiB:")
    for file in sorted(files, key=lambda file: file.path):
        print(f"  {file.size:>12,}  {file.path}", flush=True)


def _push(options: PushArguments, repo_type: str, repo_id: str, files: list[ReleaseFile]) -> PushResult:
    result = push_files(
        files,
        repo_id,
        repo_type=repo_type,
        branch=options.branch,
        tag=options.tag,
        private=options.private or None,
        message=options.message,
        replace=options.replace,
    )
    print(f"{result.url}" if result.changed else f"{result.repo_id} holds exactly this already, at {result.commit}")
    if repo_type == "dataset":
        print(f'load it with load_dataset("{result.repo_id}", revision="{result.commit}")')
    elif repo_type == "model":
        print(f'load it with from_pretrained("{result.repo_id}", revision="{result.commit}", trust_remote_code=True)')
    return result


if __name__ == "__main__":
    run(main)
