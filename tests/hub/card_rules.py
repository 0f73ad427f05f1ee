"""What the Hub refuses in the metadata of a README.md, as far as this library writes any."""

from __future__ import annotations

import re
from typing import Any

import yaml

LICENCES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "other", "unknown"}
REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_BLOCK = re.compile(r"\A\s*---\r?\n(.*?)\r?\n---(\r?\n|\Z)", re.DOTALL)


def validate(content: str, repo_type: str) -> tuple[list[str], list[str]]:
    """Errors and warnings, in words."""
    match = _BLOCK.match(content)
    if match is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        metadata = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"the metadata is no valid YAML: {error}"], []
    if not isinstance(metadata, dict):
        return ["the metadata must be a mapping"], []
    errors = [*_licence(metadata), *_lists(metadata)]
    if repo_type == "model":
        errors += _model_index(metadata.get("model-index", []))
        if "base_model" in metadata and not REPO_ID.fullmatch(str(metadata["base_model"])):
            errors.append('"base_model" must be a repository id')
    if repo_type == "space":
        errors += _space(metadata)
    if repo_type == "dataset":
        for config in metadata.get("configs", []):
            if not isinstance(config, dict) or not {"config_name", "data_files"} <= config.keys():
                errors.append('every one of "configs" needs "config_name" and "data_files"')
    return errors, []


def _space(metadata: dict[str, Any]) -> list[str]:
    errors = [f'"{name}" is required' for name in ("title", "sdk", "sdk_version") if not metadata.get(name)]
    if len(str(metadata.get("short_description", ""))) > 60:
        errors.append('"short_description" must have at most 60 characters')
    if not all(REPO_ID.fullmatch(entry) for entry in metadata.get("models", [])):
        errors.append('"models" must be ids of models')
    return errors


def _licence(metadata: dict[str, Any]) -> list[str]:
    licence = metadata.get("license")
    if licence is None:
        return []
    if licence not in LICENCES:
        return [f'"license" must be one of {sorted(LICENCES)}, got {licence!r}']
    if licence != "other":
        return []
    errors = []
    if not re.fullmatch(r"[a-z0-9-.]+", str(metadata.get("license_name", ""))):
        errors.append('"license_name" must be lower case letters, digits, dashes and dots where "license" is other')
    link = str(metadata.get("license_link", ""))
    if not (link.startswith(("http://", "https://")) or link in ("LICENSE", "LICENSE.md")):
        errors.append('"license_link" must be LICENSE, LICENSE.md or an address where "license" is other')
    return errors


def _lists(metadata: dict[str, Any]) -> list[str]:
    errors = []
    for name in ("tags", "datasets", "metrics", "language"):
        value = metadata.get(name, [])
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(entry, str) and entry for entry in value):
            errors.append(f'"{name}" must be a list of strings')
        elif name == "datasets" and not all(REPO_ID.fullmatch(entry) for entry in value):
            errors.append('"datasets" must be ids of datasets')
    return errors


def _model_index(index: Any) -> list[str]:
    if not isinstance(index, list):
        return ['"model-index" must be a list']
    errors = []
    for number, entry in enumerate(index):
        where = f"model-index[{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"]:
            errors.append(f"{where}.name must be a string")
            continue
        for result in entry.get("results") or []:
            task, dataset, metrics = (result.get(name) for name in ("task", "dataset", "metrics"))
            if not isinstance(task, dict) or not isinstance(task.get("type"), str):
                errors.append(f"{where}.task.type must be a string")
            if not isinstance(dataset, dict) or not all(isinstance(dataset.get(n), str) for n in ("type", "name")):
                errors.append(f"{where}.dataset needs a type and a name")
            if not metrics or not isinstance(metrics, list):
                errors.append(f"{where}.metrics must not be empty")
                continue
            for metric in metrics:
                value = metric.get("value")
                if not isinstance(metric.get("type"), str) or isinstance(value, bool) or value is None:
                    errors.append(f"{where}: a metric needs a type and a value")
                elif isinstance(value, float) and value != value:
                    errors.append(f"{where}: the value of {metric['type']} is not a number")
    return errors
