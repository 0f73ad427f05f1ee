"""A small log with known structure, for tests and demonstrations without any download."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .errors import DataError
from .schema import InteractionLog, LogInfo, read_log


def synthetic_log(
    *,
    num_users: int = 200,
    num_items: int = 60,
    num_topics: int = 6,
    length: int = 20,
    noise: float = 0.1,
    seed: int = 0,
) -> InteractionLog:
    """Users who walk through the items of a topic in order, and sometimes jump.

    Item i belongs to topic i mod `num_topics`. A user starts at an item of a random topic; each next event is the
    topic's next item in cyclic order, or with probability `noise` any item at all. Ratings are 5 on the walk and 2 off
    it, so views and negative feedback are known too: a model that learns the walk is right 1 − `noise` of the time.

    Args:
        num_users, num_items, num_topics: sizes; every topic needs at least two items.
        length: events of each user.
        noise: probability of a jump.
        seed: of the generator.

    Example:
        >>> log = synthetic_log(num_users=3, length=12, noise=0)
        >>> first, second = log.interactions["item_id"][:2].str[1:].astype(int)
        >>> (second - first) % 60
        6
    """
    if num_topics < 1 or num_items < 2 * num_topics or num_users < 1 or length < 1 or not 0 <= noise <= 1:
        raise DataError(
            f"cannot make a log of {num_users} users, {num_items} items in {num_topics} topics, {length} events and "
            f"noise {noise}: sizes must be positive, topics need two items each, noise lies between 0 and 1"
        )
    generator = np.random.default_rng(seed)
    item = generator.integers(num_items, size=num_users)
    items, ratings = [item], [np.full(num_users, 5.0)]
    for _ in range(length - 1):
        following = item + num_topics
        item = np.where(following < num_items, following, item % num_topics)
        jumps = generator.random(num_users) < noise
        item = np.where(jumps, generator.integers(num_items, size=num_users), item)
        items.append(item)
        ratings.append(np.where(jumps, 2.0, 5.0))
    table = pd.DataFrame(
        {
            "user_id": np.repeat([f"u{user}" for user in range(num_users)], length),
            "item_id": [f"i{item}" for item in np.stack(items, axis=1).ravel()],
            "timestamp": np.tile(1_600_000_000 + 3600 * np.arange(length), num_users),
            "rating": np.stack(ratings, axis=1).ravel(),
        }
    )
    catalogue = pd.DataFrame(
        {
            "item_id": [f"i{item}" for item in range(num_items)],
            "title": [f"Item {item}" for item in range(num_items)],
            "text": [f"Item {item} of topic {item % num_topics}" for item in range(num_items)],
            "categories": [[f"topic {item % num_topics}"] for item in range(num_items)],
        }
    )
    info = LogInfo(
        name="synthetic", licence="CC0", feedback="rating", view_rule="rating >= 4", negative_rule="rating <= 2"
    )
    return read_log(table, catalogue, info=info)
