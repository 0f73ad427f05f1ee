"""What a person runs: one script a stage, each with `--help` and recipes in `recipes/`."""
