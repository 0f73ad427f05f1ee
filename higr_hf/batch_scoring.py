"""Slates for a stream of JSON lines: a batch in memory at a time, and every error at its line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline_higr import SlateRecommendationPipeline


class LineError(ValueError):
    """A line that cannot be answered; the message names source and line."""


def recommend_lines(
    pipeline: SlateRecommendationPipeline,
    lines: Iterable[str],
    source: str = "input",
    common: Mapping[str, Any] | None = None,
    batch_size: int = 32,
    skip_errors: bool = False,
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    """Answer requests one after the other.

    Args:
        pipeline: what recommends.
        lines: JSON lines: a list of items, or an object as the pipeline takes it, with an optional `id`. Empty lines
            are passed over.
        source: what the lines are read from, for messages.
        common: entries of every request: `exclude` is added to a line's own, `allowed` narrows it.
        batch_size: lines decoded together.
        skip_errors: answer a bad line with its `error` instead of raising.
        **settings: arguments of the pipeline.

    Yields:
        A dictionary a line, in order: `line` (from 1), `id` where the line has one, and `slate`, or `error`.

    Raises:
        LineError: for a bad line, after all lines before it were answered.
    """
    numbered = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    while batch := list(itertools.islice(numbered, batch_size)):
        requests: list[tuple[dict[str, Any], dict[str, Any] | LineError]] = []
        for number, line in batch:
            heading: dict[str, Any] = {"line": number}
            try:
                heading, request = _parsed(number, line, common or {})
                requests.append((heading, request))
            except ValueError as error:
                requests.append((heading, LineError(f"{source}, line {number}: {error}")))
        good = [request for _, request in requests if not isinstance(request, LineError)]
        answers = iter(_answers(pipeline, good, settings))
        for heading, request in requests:
            answer = request if isinstance(request, LineError) else next(answers)
            if not isinstance(answer, ValueError):
                yield {**heading, "slate": answer}
                continue
            if not isinstance(answer, LineError):
                answer = LineError(f"{source}, line {heading['line']}: {answer}")
            if not skip_errors:
                raise answer
            yield {**heading, "error": str(answer)}


def _parsed(number: int, line: str, common: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What identifies the line, and its request."""
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"no valid JSON ({error}).") from error
    if not isinstance(content, (list, dict)):
        raise ValueError(f"expected a list of items or an object with a history, got {line.strip()[:60]}")
    request = {"history": content} if isinstance(content, list) else dict(content)
    heading = {"line": number, **({"id": request.pop("id")} if "id" in request else {})}
    if common.get("exclude"):
        request["exclude"] = [*(request.get("exclude") or []), *common["exclude"]]
    if common.get("allowed") is not None:
        own = request.get("allowed")
        request["allowed"] = [item for item in common["allowed"] if own is None or item in own]
    return heading, request


def _answers(
    pipeline: SlateRecommendationPipeline, requests: list[dict[str, Any]], settings: Mapping[str, Any]
) -> list[list[dict[str, Any]] | ValueError]:
    """A slate or the reason against it for every request; one bad request does not cost the others theirs."""
    if not requests:
        return []
    try:
        return list(pipeline(requests, batch_size=len(requests), **settings))
    except ValueError as error:
        if len(requests) == 1:
            return [error]
    return [answer for request in requests for answer in _answers(pipeline, [request], settings)]
