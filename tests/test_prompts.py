"""Prompts of every source; what is no prompt is refused by file, line and field."""

import io

import pytest

from r2jax.prompts import RESULTS, read_prompts


class Terminal(io.StringIO):
    def isatty(self):
        return True


def read(tmp_path, content, name="prompts.jsonl"):
    path = tmp_path / name
    path.write_bytes(content)
    return read_prompts([], [str(path)], Terminal())


def test_all_sources(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text('One egg\n\n{"question": "Two\\neggs", "answer": "2"}\n')
    stdin = io.StringIO('{"prompt": "Three", "question": "no"}\nFour\n')
    prompts = read_prompts(["Zero", "-"], [str(path)], stdin)
    assert [prompt.text for prompt in prompts] == ["Zero", "Three", "Four", "One egg", "Two\neggs"]
    assert [prompt.where for prompt in prompts] == [
        "prompt 1",
        'standard input, line 1, field "prompt"',
        "standard input, line 2",
        f"{path}, line 1",
        f'{path}, line 3, field "question"',
    ]
    assert [prompt.fields for prompt in prompts] == [
        {},
        {"prompt": "Three", "question": "no"},
        {},
        {},
        {"question": "Two\neggs", "answer": "2"},
    ]
    piped = read_prompts([], [], io.StringIO("Piped\n"))
    assert [prompt.text for prompt in piped] == ["Piped"]


def test_a_byte_order_mark_is_no_prompt(tmp_path):
    (prompt,) = read(tmp_path, b'\xef\xbb\xbf{"prompt": "Eggs?"}\n')
    assert prompt.text == "Eggs?"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"fine\n{broken\n", "prompts.jsonl, line 2 starts with a brace"),
        (b'{"a": ' + b"[" * 100_000 + b"\n", "line 1 starts with a brace"),
        (b'{"text": "x"}\n', 'line 1 needs a text in the field "prompt" or "question"'),
        (b'{"prompt": 3}\n', 'line 1 needs a text in the field "prompt" or "question"'),
        (b'{"prompt": "x", "nfe": 3}\n', 'line 1 has a field "nfe", where the result stands'),
        (b'{"prompt": "\\ud800"}\n', 'line 1, field "prompt" holds half a character'),
        (b'{"prompt": "x", "y": "\\udfff"}\n', "holds half a character"),
        (b"\xff\xfe\n", "is not UTF-8"),
        (b"\n", "no prompt"),
    ],
)
def test_what_is_no_prompt(tmp_path, content, message):
    with pytest.raises(ValueError) as error:
        read(tmp_path, content)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_every_result_is_reserved(tmp_path):
    for name in RESULTS:
        with pytest.raises(ValueError, match=f'field "{name}"'):
            read(tmp_path, b'{"prompt": "x", "%s": 1}' % name.encode())


def test_no_prompt():
    with pytest.raises(ValueError, match="no prompt: give one"):
        read_prompts([], [], Terminal())
