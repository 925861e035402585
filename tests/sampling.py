"""What the default run takes of long lists of cases; `JAXLIFT_ALL=1` takes them all."""

import os

ALL = bool(os.environ.get("JAXLIFT_ALL"))


def alternating(names, dtypes=("float64", "float32")):
    """Each name with one dtype, the dtypes in turn; ordered by dtype."""
    return [
        (name, dtype)
        for k, dtype in enumerate(dtypes)
        for n, name in enumerate(names)
        if ALL or n % len(dtypes) == k
    ]


def every(k, names):
    """Each k-th name."""
    return list(names)[:: 1 if ALL else k]
