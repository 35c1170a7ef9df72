"""Tests of records: JSON files that only grow whole."""
import json
import os

import pytest

from pyro_advbnn.system import json_files
from pyro_advbnn.system.errors import InputError


def test_json_lines_come_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert json_files.read_jsonl(path) == []
    rows = [{"epoch": 1, "kl": 1 / 3, "held_out_accuracy": None}, {"epoch": 2, "kl": 1e300}]
    for row in rows:
        json_files.append_jsonl(path, row)
    assert json_files.read_jsonl(path) == rows


@pytest.mark.parametrize("line", [b'{"epoch": ', b"", b"\xff"])
def test_a_line_that_is_no_json_is_refused_with_the_file(tmp_path, line):
    (tmp_path / "log.jsonl").write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 1}\n')
    with pytest.raises(InputError, match="log.jsonl, line 2 cannot be read: "):
        json_files.read_jsonl(tmp_path / "log.jsonl")


@pytest.mark.parametrize("write", [json_files.write_json, lambda path, content: json_files.write_jsonl(path, [content]),
                                   json_files.append_jsonl])
def test_replacing_a_file_happens_in_one_step(tmp_path, monkeypatch, write):
    write(tmp_path / "file", {"a": 1})
    assert json.loads((tmp_path / "file").read_text()) == {"a": 1}

    def crash(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="No space left") as error:
        write(tmp_path / "file", {"a": 2})
    assert error.value.filename == str(tmp_path / "file") and os.listdir(tmp_path) == ["file"]
    assert json.loads((tmp_path / "file").read_text()) == {"a": 1}


@pytest.mark.parametrize("text", ["{", "\xff"])
def test_a_file_that_is_no_json_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="cannot be read"):
        json_files.read_json(tmp_path / "config.json")
