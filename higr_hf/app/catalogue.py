"""What the page says of a catalogue: names to choose from, and the tree of semantic IDs, a node at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..inspection import describe_prefix
from ..item_categories import names_of
from ..item_table_higr import UnknownItemError
from ..pipeline_higr import ItemNames
from ..vocabulary_higr import LEVEL_LETTERS

if TYPE_CHECKING:
    from ..tokenization_higr import HiGRTokenizer

_EXAMPLES = 3


class CatalogueView:
    """A tokenizer's catalogue as people look at it.

    Args:
        tokenizer: whose catalogue it is.
        categories: categories by item id, where they are known.

    Example:
        >>> view = CatalogueView(tokenizer)
        >>> [node["prefix"] for node in view.children([])][:2]
        [[0], [1]]
    """

    def __init__(self, tokenizer: HiGRTokenizer, categories: Mapping[str, Sequence[str]] | None = None) -> None:
        self.tokenizer = tokenizer
        self._names = ItemNames(tokenizer)
        self.categories = categories or {}
        self.category_names = names_of(self.categories)

    def title(self, index: int) -> str:
        """What an item is called: its title, or its id where it has none."""
        titles = self.tokenizer.titles
        return (titles[index] if titles else "") or self.tokenizer.item_ids[index]

    def title_of(self, name: str) -> str:
        """The same for an item id; what is no id stays as it is."""
        index = self.tokenizer.items_to_indices([name], on_unknown="skip")
        return self.title(int(index[0])) if index[0] >= 0 else name

    def choices(self, limit: int) -> list[tuple[str, str]]:
        """`(label, item id)` of the items that may be recommended, by title; at most `limit`."""
        offered = np.flatnonzero(self.tokenizer.active).tolist()
        ids = self.tokenizer.item_ids
        labels = [(self.title(index), ids[index]) for index in offered]
        repeated = {title for title, count in Counter(title for title, _ in labels).items() if count > 1}
        shown = [(f"{title} · id {item}" if title in repeated else title, item) for title, item in labels]
        return sorted(shown, key=lambda choice: choice[0].casefold())[:limit]

    def complete(self, name: str) -> str:
        """The item id of what was typed: an id, a title, or how one title alone begins; else the words as they are.

        Example:
            >>> CatalogueView(tokenizer).complete(tokenizer.titles[0])
            'i0'
        """
        try:
            return self.tokenizer.item_ids[self.find(name)]
        except UnknownItemError:
            typed = name.strip().casefold()
            begun = [row for row, title in enumerate(self._names.titles) if title.casefold().startswith(typed)]
            return self.tokenizer.item_ids[begun[0]] if len(begun) == 1 and typed else name

    def find(self, name: str, where: str = "The tree") -> int:
        """The index of an item, by id or title.

        Raises:
            UnknownItemError: beginning with `where`, with the nearest names.
        """
        return self._names.index(name.strip(), where)

    def codes(self, index: int) -> list[int]:
        """An item's semantic ID."""
        return self.tokenizer.codes[index].tolist()

    def children(self, prefix: Sequence[int]) -> list[dict[str, Any]]:
        """The nodes below a prefix, most items first.

        Args:
            prefix: codes, coarse to fine; none for the root.

        Returns:
            A dictionary a node, JSON-able: `prefix`, `token`, `items`, `removed` (how many of them are not offered),
            `item_id` (of a node with one item, else None), `label` (its title, or titles of some items below it), and
            `categories` (the commonest below it with their share, in words).

        Raises:
            ValueError: for a prefix that no item has, or one as long as a semantic ID.
        """
        tokenizer, depth = self.tokenizer, len(prefix)
        if depth >= tokenizer.num_levels or not all(isinstance(code, int) for code in prefix):
            raise ValueError(f"{list(prefix)} is no inner node of a tree of {tokenizer.num_levels} levels.")
        found = describe_prefix(tokenizer, prefix, limit=tokenizer.codebook_sizes[depth])
        if not found["items"]:
            raise ValueError(f"No item's semantic ID begins with {list(prefix)}.")
        return [self._node([*prefix, child["code"]], child) for child in found["children"]]

    def _node(self, prefix: list[int], child: Mapping[str, int]) -> dict[str, Any]:
        tokenizer = self.tokenizer
        below = np.flatnonzero((tokenizer.codes[:, : len(prefix)] == prefix).all(axis=1)).tolist()
        alone = len(below) == 1
        return {
            "prefix": prefix,
            "token": f"<{LEVEL_LETTERS[len(prefix) - 1]}_{prefix[-1]}>",
            "items": child["items"],
            "removed": child["items"] - child["legal_items"],
            "item_id": tokenizer.item_ids[below[0]] if alone else None,
            "label": ", ".join(self.title(index) for index in below[:_EXAMPLES]),
            "categories": self._categories(below),
        }

    def _categories(self, items: Sequence[int]) -> str:
        """The names of one item; of several the two commonest with their share."""
        found = [self.categories.get(self.tokenizer.item_ids[index], ()) for index in items]
        if len(found) == 1:
            return ", ".join(found[0])
        common = Counter(name for names in found for name in set(names)).most_common(2)
        return ", ".join(f"{name} {count / len(found):.0%}" for name, count in common)
