from __future__ import annotations

from pathlib import Path

import pytest

from racm3.data import read, write_webdataset
from racm3.errors import RACM3Error, SourceError
from racm3.util.s3 import Remote, is_remote, matching
from tests.training.test_prepare import items


def put(file: Remote, data: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(data)


@pytest.fixture(scope="module")
def shards(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Three shards of two documents each, in a bucket and in a folder."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(3):
        write_webdataset(items(2, start=2 * number), folder / "made")
        (made,) = (folder / "made").glob("*.tar")
        made.rename(folder / f"{number + 8:03}.tar")
        put(Remote(f"{bucket}/shards/{number + 8:03}.tar"), (folder / f"{number + 8:03}.tar").read_bytes())
    (folder / "made").rmdir()
    put(Remote(f"{bucket}/shards/008.json"), b"{}")
    put(Remote(f"{bucket}/shards/deeper/011.tar"), b"")
    return f"{bucket}/shards", folder


def test_a_path_of_this_machine_is_not_remote() -> None:
    assert is_remote("s3://bucket/name")
    assert is_remote(Path("s3://bucket/name"))
    assert not is_remote("s3/name")
    assert not is_remote(Path("data/s3:/name"))
    assert str(Remote(Path("s3://bucket/name")) / "file") == "s3://bucket/name/file"


def test_what_was_written_is_read(bucket: str) -> None:
    file = Remote(bucket) / "written" / "file"
    assert not file.exists()
    data = bytes(range(256)) * 9
    put(file, data)
    assert file.exists()
    assert not (Remote(bucket) / "written").exists()  # which is no file
    with file.open() as stream:
        assert stream.read(3) == data[:3]
        stream.seek(0)
        assert stream.read() == data
    ((found, (size, _)),) = (Remote(bucket) / "written").files().items()
    assert (found, size) == (file, len(data))
    with pytest.raises(FileNotFoundError):
        Remote(f"{bucket}/written/none").open()


@pytest.mark.parametrize("pattern", ["*.tar", "0??.tar", "{008..010}.tar", "{08..10}.tar"])
def test_shards_in_a_bucket_are_read_as_those_in_a_folder(shards: tuple[str, Path], pattern: str) -> None:
    address, folder = shards
    pattern = pattern.replace("{08", "0{08")
    remote = list(read(Path(f"{address}/{pattern}"), strict=True))
    local = list(read(folder / "*.tar", strict=True))
    assert [(item.id, item.document, item.metadata) for item in remote] == [
        (item.id, item.document, item.metadata) for item in local
    ]
    assert remote[0].origin.startswith(f"{address}/008.tar#")


def test_a_shard_by_its_name(shards: tuple[str, Path]) -> None:
    assert len(list(read(f"{shards[0]}/009.tar"))) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{008..011}.tar", "there is no s3://tests/shards/011.tar; name what lies in s3://tests/shards"),
        ("[a-z].tar", r"there is no s3://tests/shards/\[a-z\].tar"),
        ("008.*", "only WebDataset shards .* are read from s3://, and s3://tests/shards/008.json is none"),
        ("", "there is no s3://tests/shards"),
    ],
)
def test_what_is_not_there(shards: tuple[str, Path], name: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read(f"{shards[0]}/{name}")


def test_a_store_that_is_not_reached_is_not_taken_for_damage(
    shards: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SourceError, match="names no bucket"):
        matching("s3://*.tar")
    found = read(f"{shards[0]}/*.tar")
    next(found)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(RACM3Error, match="cannot be reached: .* check the bucket's name"):
        list(found)
