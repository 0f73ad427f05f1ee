"""Feedback rules: conditions such as `rating >= 4` or `long_view or like and not dislike`, evaluated on a table.

A rule is written once a source, travels in the log's info and in the report of a split, and is applied by the one
function below; nothing is ever passed to `eval`.
"""

from __future__ import annotations

import operator
import re

import numpy as np
import pandas as pd

from .errors import DataError

_OPERATORS = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"^(?P<negated>not\s+)?(?P<column>\w+)(?:\s*(?P<op>>=|<=|==|!=|>|<)\s*(?P<value>[-+.\w]+))?$")


def apply_rule(rule: str, table: pd.DataFrame) -> np.ndarray:
    """Evaluate `rule` on every row of `table`.

    Args:
        rule: conditions joined by `and` and `or` (`and` binds tighter); a condition is `column`, `not column` (flags)
            or `column <op> number`.
        table: any table with the named columns.

    Returns:
        bool array `[rows]`. A missing value satisfies no condition: what is unknown is neither liked nor disliked.

    Raises:
        DataError: the rule cannot be read, or names a column that the table has not.

    Example:
        >>> apply_rule("rating >= 4 or like", pd.DataFrame({"rating": [5.0, 2.0, 3.0], "like": [None, False, True]}))
        array([ True, False,  True])
    """
    result = np.zeros(len(table), dtype=bool)
    for alternative in re.split(r"\s+or\s+", rule.strip()):
        holds = np.ones(len(table), dtype=bool)
        for condition in re.split(r"\s+and\s+", alternative):
            holds &= _condition(condition, rule, table)
        result |= holds
    return result


def _condition(text: str, rule: str, table: pd.DataFrame) -> np.ndarray:
    match = _CONDITION.match(text.strip())
    if match is None or (match["negated"] and match["op"]):
        raise DataError(
            f"cannot read the condition {text!r} of the rule {rule!r}: write conditions such as 'rating >= 4', "
            "'like' or 'not like', joined by ' and ' and ' or '"
        )
    if match["column"] not in table.columns:
        raise DataError(f"the rule {rule!r} needs the column {match['column']!r}; the table has {list(table.columns)}")
    values = pd.to_numeric(table[match["column"]], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    known = ~np.isnan(values)
    if not match["op"]:
        return known & ((values == 0) if match["negated"] else (values != 0))
    try:
        return known & _OPERATORS[match["op"]](values, float(match["value"]))
    except ValueError:
        raise DataError(f"{match['value']!r} in the rule {rule!r} is not a number") from None
