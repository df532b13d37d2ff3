"""Downloads from a server on this machine: cut, resumed, refused, of another content, and what is told."""

import hashlib
import json
import os
import re
import shutil
import sys
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from common.cli import run_command
from dataset import download as downloads
from dataset import fetch
from dataset.download import Progress, download
from dataset.sources import HUB, SOURCES, File, Source

BODY = "".join(json.dumps({"text": f"Text {n} of {n * n}."}) + "\n" for n in range(3000)).encode()
SHA = hashlib.sha256(BODY).hexdigest()


class Server(BaseHTTPRequestHandler):
    """Answers /NAME as `faults` says; `seen` gets the range of every request."""

    faults: dict = {}
    seen: list = []

    def do_GET(self):
        fault = self.faults.get(self.path.rsplit("/", 1)[-1])
        self.seen.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
        if isinstance(fault, int):
            return self.send_error(fault)
        if fault == "redirect" and not self.path.startswith("/store"):
            self.send_response(302)
            self.send_header("Location", f"http://{self.headers['Host']}/store{self.path}")
            self.send_header("X-Linked-Etag", f'"{SHA}"')
            return self.end_headers()
        body, begin = (BODY[::-1] if fault == "other" else BODY), 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and fault != "no ranges" and self.headers.get("If-Range") in (None, '"1"'):
            begin = int(asked[1])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("ETag", '"2"' if fault == "changed" else '"1"')
        if fault != "no length":
            self.send_header("Content-Length", str(len(body) - begin))
        self.end_headers()
        rest = body[begin:]
        self.wfile.write(rest[: len(BODY) // 3] if fault in ("cut", "no ranges") and len(self.seen) < 3 else rest)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(Server, "faults", {})
    monkeypatch.setattr(Server, "seen", [])
    monkeypatch.setattr(downloads, "PAUSE", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


@pytest.fixture
def said():
    return []


def test_a_download_is_whole_checked_and_not_repeated(server, tmp_path, said):
    file = File(f"{server}/a.jsonl", len(BODY), SHA)
    path = download(file, tmp_path, said.append)
    assert path.read_bytes() == BODY and os.listdir(tmp_path) == ["a.jsonl"]
    assert said[-1] == "size and checksum are right" and re.search(r"a.jsonl: 0\.\d MB of|a.jsonl: 0\.\d of", said[0])
    download(file, tmp_path, said.append)
    assert len(Server.seen) == 1 and "is there already" in said[-1]


@pytest.mark.parametrize("fault", ["cut", "no ranges"])
def test_a_cut_connection_goes_on_or_starts_over_where_ranges_are_unknown(server, tmp_path, said, fault):
    Server.faults = {"a": fault}
    assert download(File(f"{server}/a", None, SHA), tmp_path, said.append).read_bytes() == BODY
    ranges = [asked for _, asked, _ in Server.seen]
    assert ranges[:2] == [None, f"bytes={len(BODY) // 3}-"] and len(ranges) == 3
    assert sum("the connection was cut" in line for line in said) == 2


def test_what_a_killed_program_left_is_continued(server, tmp_path, said):
    note = {"url": f"{server}/a", "total": len(BODY), "tag": '"1"', "sha256": None}
    (tmp_path / "a.part").write_bytes(BODY[:5000])
    (tmp_path / "a.part.json").write_text(json.dumps(note))
    assert download(File(f"{server}/a", None, SHA), tmp_path, said.append).read_bytes() == BODY
    assert Server.seen == [("/a", "bytes=5000-", '"1"')]


def test_a_part_of_an_earlier_content_is_thrown_away(server, tmp_path, said):
    Server.faults = {"a": "changed"}
    (tmp_path / "a.part").write_bytes(b"x" * 5000)
    note = {"url": f"{server}/a", "total": len(BODY), "tag": '"0"', "sha256": None}
    (tmp_path / "a.part.json").write_text(json.dumps(note))
    assert download(File(f"{server}/a", None, SHA), tmp_path, said.append).read_bytes() == BODY


def test_the_checksum_that_the_hub_states_is_compared(server, tmp_path, said, monkeypatch):
    monkeypatch.setattr(downloads, "url_of", lambda file: file.address)
    Server.faults = {"a": "redirect"}
    assert download(File(f"{server}/a"), tmp_path, said.append).read_bytes() == BODY
    assert said[-1] == "size and checksum are right" and [path for path, *_ in Server.seen] == ["/a", "/store/a"]
    monkeypatch.setattr(sys.modules[__name__], "SHA", "0" * 64)
    with pytest.raises(ValueError, match="and 0{64} was expected"):
        download(File(f"{server}/a"), tmp_path / "again", said.append)
    assert os.listdir(tmp_path / "again") == []


def test_without_a_stated_checksum_that_is_told(server, tmp_path, said):
    Server.faults = {"a": "no length"}
    assert download(File(f"{server}/a"), tmp_path, said.append).read_bytes() == BODY
    assert said[-1] == f"sha256 {SHA}, but nothing states what it should be"


@pytest.mark.parametrize(
    "fault, file, sentence",
    [
        (404, {}, r"/a is not there any more \(404\): fetch the data by hand"),
        (403, {}, r"/a is not open to everybody \(403\)"),
        (503, {}, r"/a answers 503: try again later"),
        ("other", {"sha256": SHA}, "it came damaged, or is another file now; what came is deleted"),
        (None, {"size": 7}, f"has {len(BODY)} bytes now, and 7 were expected"),
    ],
)
def test_what_is_not_the_file_is_refused_in_a_sentence(server, tmp_path, said, fault, file, sentence):
    Server.faults = {"a": fault}
    with pytest.raises(ValueError, match=sentence):
        download(File(f"{server}/a", **file), tmp_path, said.append)
    assert not (tmp_path / "a").exists()
    assert len(Server.seen) == (downloads.TRIES if fault == 503 else 1)


def test_a_connection_that_is_cut_again_and_again_keeps_what_came(server, tmp_path, said, monkeypatch):
    monkeypatch.setattr(downloads, "TRIES", 2)
    Server.faults = {"a": "cut"}
    with pytest.raises(ValueError, match="was cut off 2 times, .* bytes are kept: the same command goes on"):
        download(File(f"{server}/a"), tmp_path, said.append)
    assert (tmp_path / "a.part").stat().st_size == len(BODY) // 3 * 2


def test_no_network_and_no_room_are_said(server, tmp_path, said, monkeypatch):
    with pytest.raises(ValueError, match="127.0.0.1:9 cannot be reached .*HF_ENDPOINT names a mirror"):
        download(File("http://127.0.0.1:9/a"), tmp_path, said.append)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000))
    with pytest.raises(OSError, match="no room for .*/a: it needs 0 MB"):
        download(File(f"{server}/a"), tmp_path, said.append)


def test_a_disk_that_fills_up_is_said_and_the_part_stays(server, tmp_path, said, monkeypatch):
    class Full:
        def __init__(self, *_):
            pass

        def __getattr__(self, _):
            raise OSError(28, os.strerror(28))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(downloads, "open", Full, raising=False)
    with pytest.raises(OSError, match="no room to write .*a.part: make room, and the same command goes on"):
        download(File(f"{server}/a"), tmp_path, said.append)


def test_the_address_of_the_hub_and_of_its_mirror(monkeypatch):
    assert downloads.url_of(File(HUB + "a/b@r/c/d.jsonl")).endswith("/datasets/a/b/resolve/r/c/d.jsonl")
    for source in SOURCES.values():
        for file in source.files:
            assert downloads.url_of(file).startswith("https://")
            assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)


def run(*arguments) -> None:
    sys.argv = ["fetch", *map(str, arguments)]
    run_command(fetch.main)


def test_a_source_is_fetched_by_its_name_with_size_and_licence_first(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [])
    source = Source("words", "CC0", (File(f"{server}/a.jsonl", None, SHA),), ("b.jsonl",), "--data_path", megabytes=1)
    monkeypatch.setitem(SOURCES, "mine", source)
    run("mine", "--out", tmp_path / "out", "--downloads", tmp_path / "d")
    out, told = capsys.readouterr()
    assert out == f"{tmp_path}/out/b.jsonl: give to --data_path\n" and (tmp_path / "out/b.jsonl").read_bytes() == BODY
    assert told.startswith("mine: words; about 1 MB; licence: CC0\n")
    run("mine", "--out", tmp_path / "out", "--downloads", tmp_path / "d")
    assert len(Server.seen) == 1 and "there already" in capsys.readouterr().err


def test_the_list_and_the_help_name_the_command_that_was_given(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [])
    run()
    assert capsys.readouterr().out.splitlines()[-1] == "next: python -m dataset.fetch NAME"
    monkeypatch.setenv("DATA_COMMAND", "bash run_file/data.sh")
    run()
    assert capsys.readouterr().out.splitlines()[-1] == "next: bash run_file/data.sh NAME"
    with pytest.raises(SystemExit):
        run("--help")
    told = capsys.readouterr().out
    assert told.startswith("usage: bash run_file/data.sh [-h]") and "dataset.fetch" not in told
    assert 'DATA_COMMAND="bash run_file/data.sh"' in Path("run_file/data.sh").read_text()


def test_an_address_or_a_path_of_one_s_own_is_described(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [])
    run(f"{server}/a.jsonl", "--out", tmp_path / "out", "--downloads", tmp_path / "d")
    assert "holds 3000 texts of 0.1 million characters: give it to --data_path" in capsys.readouterr().out
    (tmp_path / "k.json").write_text('["A is B.", "C is D."]')
    (tmp_path / "t.tsv").write_text("a\tb\tc\n")
    question = {"question": "A is ___.", "choices": ["B", "C"], "answer": "A", "subject": "A", "object": "B"}
    (tmp_path / "q.jsonl").write_text(json.dumps(question) + "\n")
    (tmp_path / "s.jsonl").write_text(json.dumps({"context": "A is", "choices": [" B"], "answer": "A"}) + "\n")
    for path, words in (("s.jsonl", "1 questions about language: give it to --language_sets"),
                        ("k.json", "2 sentences: give it to --database_init_path"), ("t.tsv", "holds 1 facts"),
                        ("q.jsonl", "1 questions: give it to --object_path")):  # fmt: skip
        run(f"file:{tmp_path / path}")
        assert words in capsys.readouterr().out
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n{"story": "x"}\n')
    with pytest.raises(SystemExit, match='bad.jsonl, line 2: no "text" field'):
        run(tmp_path / "bad.jsonl")
    with pytest.raises(SystemExit, match="'nothing' is neither a name of the list nor a file"):
        run("nothing")


def test_a_file_of_the_same_name_is_never_replaced(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [])
    places, mine = ("--out", tmp_path, "--downloads", tmp_path / "d"), '{"text": "mine"}\n'
    (tmp_path / "a.jsonl").write_text(mine)
    for address in (f"{server}/a.jsonl", f"{server}/x/a.jsonl"):
        with pytest.raises(SystemExit, match="a.jsonl is there, and .*/a.jsonl has another content: move it away"):
            run(address, *places)
    assert (tmp_path / "a.jsonl").read_text() == mine and len(Server.seen) == 2
    (tmp_path / "a.jsonl").unlink()
    for _ in range(2):  # the same content is no other
        run(f"{server}/a.jsonl", *places)
    assert (tmp_path / "a.jsonl").read_bytes() == BODY and "is there already" in capsys.readouterr().err
    (tmp_path / "b.jsonl").write_text(mine)
    files = (File(f"{server}/b"), File(f"{server}/c"))
    monkeypatch.setitem(SOURCES, "mine", Source("words", "CC0", files, ("b.jsonl", "c.jsonl"), "--data_path"))
    with pytest.raises(SystemExit, match="b.jsonl is there, and mine would replace it: move it away"):
        run("mine", *places)
    assert (tmp_path / "b.jsonl").read_text() == mine


def test_the_list_names_every_source(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [])
    run()
    lines = capsys.readouterr().out
    assert all(name in lines and source.what in lines for name, source in SOURCES.items())


def test_progress_is_one_line_now_and_then(capsys):
    say = Progress()
    for n in range(50):
        say(f"a: {n} MB, 1.0 MB/s")
    say("done")
    assert capsys.readouterr().err == "a: 0 MB, 1.0 MB/s\ndone\n"
