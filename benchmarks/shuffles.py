"""Shuffled sequences: what they cost here, and in tangermeme on the same machine.

python benchmarks/shuffles.py --peers PYTHON --json shuffles.json

PYTHON is the interpreter of an environment with tangermeme; without it only ours is
measured. Both sides make `n` float32 one-hot shuffles of each of the same sequences, on
the same cores, in turns; each from its own caller's view: one call, results at hand.
"""

import argparse
import functools
import itertools
import json
import os
import subprocess
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from timing import Spread, interleaved, seconds, surroundings, write_json

from jaxlift import references

LENGTHS = (200, 1000, 2114)
SEQUENCES = (1, 64)
SHUFFLES = 20
OURS_TO_PEERS = {
    "shuffle_dinucleotides": "dinucleotide_shuffle",
    "shuffle_positions": "shuffle",
}

# The other side: told on each line what to time once, it answers in seconds.
PEER = """
import json, sys, time, warnings
from importlib import metadata
from inspect import signature
import numpy, torch
from tangermeme import ersatz
warnings.simplefilter("ignore")
cores = int(sys.argv[1])
torch.set_num_threads(cores)
names = "tangermeme", "torch", "numba"
print(json.dumps({name: metadata.version(name) for name in names}), flush=True)
for line in sys.stdin:
    name, letters, n, seed = json.loads(line)
    shuffle = getattr(ersatz, name)
    threads = {"n_jobs": cores} if "n_jobs" in signature(shuffle).parameters else {}
    one_hot = numpy.eye(4, dtype="float32")[numpy.array(letters)].transpose(0, 2, 1)
    x = torch.tensor(numpy.ascontiguousarray(one_hot))
    start = time.perf_counter()
    shuffle(x, n=n, random_state=seed, **threads)
    print(time.perf_counter() - start, flush=True)
"""


class Peer:
    """tangermeme in an interpreter of its own."""

    def __init__(self, python: str, cores: int):
        # Its threads: as many as ours.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), str(cores))
        self.process = subprocess.Popen(
            [python, "-c", PEER, str(cores)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | threads,
        )
        self.versions = self._answer()

    def seconds(self, name: str, letters: np.ndarray, seed: int) -> float:
        question = json.dumps((name, letters.tolist(), SHUFFLES, seed))
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer ended with {self.process.wait()}")
        return json.loads(line)


def ours(name: str) -> Callable:
    """A jitted function of a key and a batch of sequences."""
    shuffle = functools.partial(getattr(references, name), n=SHUFFLES)

    @jax.jit
    def shuffles(key, x):
        return jax.vmap(shuffle)(jax.random.split(key, len(x)), x)

    return shuffles


def measure(
    name: str, length: int, count: int, peer: Peer | None, rounds: int
) -> dict[str, Any]:
    """One row of the table."""
    letters = np.random.default_rng(0).integers(0, 4, (count, length))
    x, shuffles = jax.nn.one_hot(letters, 4), ours(name)
    seeds = itertools.count()

    def here():
        return seconds(shuffles, jax.random.key(next(seeds)), x)

    def there():
        return peer.seconds(OURS_TO_PEERS[name], letters, next(seeds))

    for _ in range(2):  # warm, and compile
        here()
        if peer:
            there()
    time, ratio = (
        interleaved(here, there, rounds)
        if peer
        else (Spread.of([here() for _ in range(rounds)]), None)
    )
    return {
        "shuffle": name,
        "length": length,
        "sequences": count,
        "shuffles": SHUFFLES,
        "ours_ms": 1e3 * time.median,
        "peer_to_ours": ratio and ratio._asdict(),
    }


HEADER = (
    f"{'shuffle':24}{'length':>7}{'sequences':>11}{'ours':>12}"
    f"   {'tangermeme / ours [quartiles]'}"
)


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    text = (
        f"{row['shuffle']:24}{row['length']:7}{row['sequences']:11}"
        f"{row['ours_ms']:9.2f} ms"
    )
    if row["peer_to_ours"] is None:
        return text
    return text + "   {median:.2f} [{low:.2f}, {high:.2f}]".format(
        **row["peer_to_ours"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", metavar="PYTHON", help="has tangermeme installed")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", metavar="PATH")
    options = parser.parse_args()

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    peer = Peer(options.peers, options.cores) if options.peers else None
    about = surroundings() | (peer.versions if peer else {})
    print(*(f"{key}: {value}" for key, value in about.items()), sep="\n")
    if not peer:
        print("tangermeme was not measured: name its interpreter by --peers PYTHON")
    print(HEADER)
    rows = []
    for case in itertools.product(OURS_TO_PEERS, options.lengths, SEQUENCES):
        rows.append(measure(*case, peer, options.rounds))
        print(line(rows[-1]), flush=True)
    if options.json:
        write_json(options.json, rows, about)


if __name__ == "__main__":
    main()
