"""A journal loses and repeats nothing, wherever it was cut."""

import errno
import json
import os
import subprocess
import sys

import pytest

from r2jax.journal import Journal

SETTINGS = {"decode": {"threshold": 0.9, "eos_id": (0, 5)}, "seed": 0, "prompts": "ab" * 32}
RECORDS = {3: {"text": "drei"}, 0: {"text": "nüll\n"}, 2: [1, 2], 1: {"x": 0.1}}


def finished(path):
    """What a run leaves that was never interrupted."""
    with Journal(path, SETTINGS, 4) as journal:
        journal.append(RECORDS)
        journal.finish()
    return path.read_bytes()


def test_records_come_out_in_order(tmp_path):
    path = tmp_path / "out.jsonl"
    finished(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [RECORDS[i] for i in range(4)]
    assert "nüll" in lines[0]
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]


def test_any_cut_is_recovered(tmp_path):
    """A crash leaves some first bytes of what was written; each such file is gone on from."""
    want = finished(tmp_path / "want.jsonl")
    with Journal(tmp_path / "whole", SETTINGS, 4) as journal:
        for index, record in RECORDS.items():
            journal.append({index: record})
        written = journal.partial.read_bytes()
    ends = [i + 1 for i, byte in enumerate(written) if byte == ord("\n")]
    for cut in range(len(written) + 1):
        path = tmp_path / f"cut-{cut}.jsonl"
        path.with_name(f"{path.name}.partial").write_bytes(written[:cut])
        with Journal(path, SETTINGS, 4) as journal:
            whole = sum(end <= cut for end in ends[1:])
            assert list(journal.done) == list(RECORDS)[:whole]
            journal.append({i: r for i, r in RECORDS.items() if i not in journal.done})
            journal.finish()
        assert path.read_bytes() == want


@pytest.mark.parametrize(
    "damage", [b"\0" * 11 + b"\n", b'[1, "lo\n', b'[7, "lost"]\n', b'[0, "x"]\n']
)
def test_a_damaged_line_costs_its_own_record_alone(tmp_path, damage):
    """A page that did not reach the disk, an index that cannot be, one that is there already."""
    path = tmp_path / "out"
    with Journal(path, SETTINGS, 4) as journal:
        journal.append({0: "kept"})
        journal.append({1: "lost", 2: "kept too"})
        data = journal.partial.read_bytes()
    assert data.count(b'[1, "lost"]\n') == 1
    journal.partial.write_bytes(data.replace(b'[1, "lost"]\n', damage) + b'[3, "cut sho')
    with pytest.warns(UserWarning, match=r"out\.partial: 1 damaged lines are passed over"):
        journal = Journal(path, SETTINGS, 4)
    with journal:
        assert list(journal.done) == [0, 2]
        journal.append({1: "again", 3: "new"})
        journal.finish()
    assert path.read_text() == '"kept"\n"again"\n"kept too"\n"new"\n'


def test_killed_between_the_last_two_steps(tmp_path):
    path = tmp_path / "out"
    want = finished(path)
    path.unlink()
    with Journal(path, SETTINGS, 4) as journal:
        journal.append(RECORDS)
        whole = journal.partial.read_bytes()
        journal.finish()
    journal.partial.write_bytes(whole)  # the final file is there, the journal not yet removed
    with Journal(path, SETTINGS, 4) as journal:
        assert len(journal.done) == 4
        journal.finish()
    assert path.read_bytes() == want and not journal.partial.exists()


def test_records_for_another_final_file(tmp_path):
    with Journal(tmp_path / "out", SETTINGS, 4) as journal:
        journal.append({2: "c", 0: "a"})
        with pytest.raises(ValueError, match="holds 2 of 4 records"):
            journal.records()
        journal.append({3: "d", 1: "b"})
        assert list(journal.records()) == ["a", "b", "c", "d"]
        journal.discard()
    assert list(tmp_path.iterdir()) == []


def test_other_settings_are_refused_by_name(tmp_path):
    Journal(tmp_path / "out", SETTINGS, 4).__exit__(None, None, None)
    changed = {"decode": {"threshold": 0.8, "eos_id": [0, 5]}, "seed": 0, "prompts": "cd" * 32}
    with pytest.raises(ValueError) as error:
        Journal(tmp_path / "out", changed, 4)
    message = str(error.value)
    assert (
        "out.partial holds the results of other settings: decode.threshold was 0.9, is now 0.8"
        in message
    )
    assert 'prompts was "abababababab..."' in message and "remove the file to start anew" in message
    assert "seed" not in message and "eos_id" not in message
    Journal(tmp_path / "out", SETTINGS, 4).__exit__(None, None, None)  # nothing was harmed


@pytest.mark.parametrize("content", ["a file of somebody else", "[1]\n", '{"x": 1}\n', "{}"])
def test_other_files_are_left_alone(tmp_path, content):
    file = tmp_path / "out.partial"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"out\.partial is not a journal"):
        Journal(tmp_path / "out", SETTINGS, 4)
    assert file.read_text() == content


def test_a_result_is_not_overwritten(tmp_path):
    path = tmp_path / "out"
    path.write_text("precious")
    with pytest.raises(ValueError, match="out exists already; remove it or choose another name"):
        Journal(path, SETTINGS, 4)
    assert [file.name for file in tmp_path.iterdir()] == ["out"] and path.read_text() == "precious"


def test_one_writer_at_a_time(tmp_path):
    code = (
        "import sys; from r2jax.journal import Journal; j = Journal(sys.argv[1], {}, 1); "
        "print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        with pytest.raises(ValueError, match="is being written by another process"):
            Journal(tmp_path / "out", {}, 1)
        process.kill()
        process.wait()
    Journal(tmp_path / "out", {}, 1).__exit__(None, None, None)  # the lock went with it


def test_misuse(tmp_path):
    with Journal(tmp_path / "out", {}, 2) as journal:
        journal.append({1: "x"})
        for index in (1, 2, -1):
            with pytest.raises(ValueError, match=f"record {index} of 2"):
                journal.append({index: "y"})
        with pytest.raises(ValueError, match="holds 1 of 2 records"):
            journal.finish()
    with pytest.raises(OSError):
        Journal(tmp_path / "no" / "such" / "directory", {}, 2)


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Journal(tmp_path / "out", {}, 2) as journal:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: .*out\.partial"):
            journal.append({0: "x"})
        assert not journal.done
