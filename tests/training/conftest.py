from __future__ import annotations

import pytest

from tests.training.workspace import write_log, write_tokenizer


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """Embeddings are kept where the tests end, in their subprocesses too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIGR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def own(tmp_path):
    """A folder with `log.csv`, `items.csv` and `tokenizer/`, and the log."""
    log = write_log(tmp_path)
    write_tokenizer(tmp_path, log)
    return tmp_path, log
