"""Names of the files that a report is made of."""

import re


def safe_name(name: str) -> str:
    """Turn any name into one that is safe as a file name and as an HTML id.

    >>> safe_name("cifar-mlp loss"), safe_name("../a/b"), safe_name("初始化")
    ('cifar-mlp-loss', 'a-b', 'unnamed')
    """
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "unnamed"
