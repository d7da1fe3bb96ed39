"""A comparison of answers for `test_grading.py` that hangs or dies as told; light to import."""

from __future__ import annotations

import os
import time


def hangs_or_dies(found: str, wanted: str) -> bool:
    if found == "hang":
        time.sleep(60)
    if found == "die":
        os._exit(1)
    return found == wanted.upper()
