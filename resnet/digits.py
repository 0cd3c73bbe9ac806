"""The handwritten digits of scikit-learn, from the file in its package: to import the library takes two seconds."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from resnet.image_folder import DataError

Array = np.ndarray


def read_digits() -> tuple[Array, Array]:
    """Return 1,797 images, [N, 8, 8] float64 in 0 .. 16, and their labels [N] int64.

    Raises DataError if scikit-learn is not installed.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError("data set digits: expected scikit-learn, found none; pip install scikit-learn")
    with gzip.open(Path(package.origin).parent / "datasets/data/digits.csv.gz", "rt", encoding="ascii") as file:
        table = np.array(file.read().replace("\n", ",").rstrip(",").split(","), dtype=np.float64).reshape(-1, 65)
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)


def stratified(labels: Array, test: int) -> tuple[Array, Array]:
    """Return the indices for training, and `test` ones for testing in which each class has its share.

    They are those of scikit-learn's `train_test_split` with `random_state` 0, in its order.
    """
    random = np.random.RandomState(0)
    classes, of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(of, kind="stable"), np.cumsum(counts)[:-1])
    trained = _shares(counts, len(labels) - test, random)
    tested = _shares(counts - trained, test, random)
    first: list[Array] = []
    second: list[Array] = []
    for i in range(len(classes)):
        drawn = members[i][random.permutation(counts[i])]
        first.append(drawn[: trained[i]])
        second.append(drawn[trained[i] : trained[i] + tested[i]])
    return random.permutation(np.concatenate(first)), random.permutation(np.concatenate(second))


def _shares(counts: Array, total: int, random: np.random.RandomState) -> Array:
    """Divide `total` in proportion to `counts`: what rounding down leaves goes to the largest remainders."""
    exact = counts / counts.sum() * total
    shares = np.floor(exact)
    remainders = exact - shares
    left = int(total - shares.sum())
    for remainder in np.unique(remainders)[::-1]:
        if not left:
            break
        equal = np.flatnonzero(remainders == remainder)
        chosen = random.choice(equal, size=min(len(equal), left), replace=False)
        shares[chosen] += 1
        left -= len(chosen)
    return shares.astype(np.int64)
