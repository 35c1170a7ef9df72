"""Tests of records: JSON files that only grow whole."""
import json
import os

import pytest

from pyro_advbnn.system import json_files
from pyro_advbnn.system.errors import InputError


def test_json_lines_come_back_and_one_that_a_crash_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert json_files.read_jsonl(path) == []
    rows = [{"epoch": 1, "kl": 1 / 3, "held_out_accuracy": None}, {"epoch": 2, "kl": 1e300}]
    for row in rows:
        json_files.append_jsonl(path, row)
    assert json_files.read_jsonl(path) == rows
    with path.open("a") as file:
        file.write('{"epoch": 3, "kl": 0.1')
    assert json_files.read_jsonl(path) == rows
    json_files.append_jsonl(path, {"epoch": 3})
    assert json_files.read_jsonl(path) == [*rows, {"epoch": 3}]


@pytest.mark.parametrize("line", [b'{"epoch": ', b"", b"\xff", b"1", b"null", b'{"a": {"b": 1, "b": 2}}', b"[" * 10**5,
                                  b"9" * 5000])
def test_a_line_of_json_that_is_no_object_is_refused_with_its_number(tmp_path, line):
    (tmp_path / "log.jsonl").write_bytes(b'{"a": "\xe2\x80\xa8"}\r\n' + line + b'\n{"a": 1}\n')
    with pytest.raises(InputError, match="log.jsonl, line 2: expected a row in JSON, found .*; mend or remove the line$"):
        json_files.read_jsonl(tmp_path / "log.jsonl")


def test_a_last_line_of_json_that_only_lacks_its_end_is_kept_when_one_is_added(tmp_path):
    path = tmp_path / "log.jsonl"
    for text, rows in (('{"a": 1}\n{"a": 2}', [{"a": 1}, {"a": 2}]), ('{"a": 1}', [{"a": 1}]), ('{"a": 1}\n3', [{"a": 1}])):
        path.write_text(text)
        assert json_files.read_jsonl(path) == rows
        json_files.append_jsonl(path, {"a": 3})
        assert json_files.read_jsonl(path) == [*rows, {"a": 3}]
        assert path.read_text() == "".join(json.dumps(row) + "\n" for row in [*rows, {"a": 3}])


def test_the_lines_of_a_key_are_told_where_they_are_found(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": {"b": 1,\n"é" : 2, "x": "b"},\n"b":\n3}')
    assert json_files.place_of_key(path, "b") == f"{path}, lines 1, 3"
    assert json_files.place_of_key(path, "é") == f"{path}, line 2"
    assert json_files.place_of_key(path, "z") == str(path)
    assert json_files.place_of_key(path, "b", ()) == f"{path}, line 3"
    assert json_files.place_of_key(path, "b", ("a",)) == f"{path}, line 1"
    assert json_files.place_of_key(path, "b", ("x",)) == str(path)
    path.write_text('{"a": "{\\"b\\": 1 {[",\n"\\u0062": 1}')
    assert json_files.place_of_key(path, "b") == json_files.place_of_key(path, "b", ()) == f"{path}, line 2"
    path.write_text('{"b": [' + '{"b":\n1},' * 8 + "0]}")
    assert json_files.place_of_key(path, "b") == f"{path}, lines 1, 2, 3, 4"


@pytest.mark.parametrize("write", [json_files.write_json, lambda path, content: json_files.write_jsonl(path, [content])])
def test_replacing_a_file_happens_in_one_step(tmp_path, monkeypatch, write):
    write(tmp_path / "file", {"a": 1})
    assert json.loads((tmp_path / "file").read_text()) == {"a": 1}

    def crash(*_):
        raise OSError("no power")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="no power"):
        write(tmp_path / "file", {"a": 2})
    assert json.loads((tmp_path / "file").read_text()) == {"a": 1}


@pytest.mark.parametrize(("text", "message"), [
    (None, "does not exist"), ("{", "cannot be read"), ("\xff", "cannot be read"),
])
def test_a_file_that_is_no_json_is_refused(tmp_path, text, message):
    if text:
        (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        json_files.read_json(tmp_path / "config.json")


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / f".config.json.{os.getpid()}.tmp").symlink_to(tmp_path / "mine")
    json_files.write_json(tmp_path / "config.json", {"a": 1})
    assert json_files.read_json(tmp_path / "config.json") == {"a": 1} and not (tmp_path / "config.json").is_symlink()
    assert (tmp_path / "mine").read_text() == "mine" and len(list(tmp_path.iterdir())) == 2
