"""GSM8K's training problems as (question, answer) pairs, without the calculator's annotations."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

_ANNOTATION = re.compile(r"<<[^>]*>>")


def read_gsm8k(path: Path) -> list[tuple[str, str]]:
    """Read JSON lines with "question" and "answer", gzipped or not.

    Raises:
      ValueError: a line is not such an object; names the line.
      OSError: the file cannot be read.
    """
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    pairs = []
    for index, line in enumerate(text.decode().splitlines(), 1):
        row = json.loads(line)
        if not isinstance(row, dict) or not {"question", "answer"} <= row.keys():
            raise ValueError(f'{path}, line {index}: no object with "question" and "answer"')
        pairs.append((row["question"].strip(), _ANNOTATION.sub("", row["answer"]).strip()))
    return pairs
