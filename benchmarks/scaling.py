"""How the cost of jaxlift grows: with batch, references, depth, length and devices.

python benchmarks/scaling.py --json scaling.json
"""

import argparse
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from networks import MLP, NAMES, BpNet, Network, build, network
from timing import (
    compile_seconds,
    interleaved,
    memory_bytes,
    seconds,
    surroundings,
    write_json,
)
from vs_grad import gradient

import jaxlift

BATCHES = (1, 4, 16, 64, 256)
REFERENCES = (1, 4, 16, 64)
DEPTHS = (1, 2, 4, 8, 16, 32)
LENGTHS = (250, 500, 1000, 2000, 4000)
DEVICES = (1, 2, 4, 8)
STREAMED = (8, 32, 128, 512)
CHUNK = 8
CHUNKS = (16, 8, 4, 1)

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute")


def shared_reference(net: Network) -> Callable:
    """Contributions of rows against one reference, (weights, rows, reference)."""

    def contributions(weights, rows, reference):
        f = functools.partial(net.apply, weights)
        return jax.vmap(jaxlift.deeplift(f), (0, None))(rows, reference)

    return contributions


def reference_set(net: Network, batch_size: int | None = None) -> Callable:
    """Mean contributions of rows against a set of references."""

    def contributions(weights, rows, references):
        f = functools.partial(net.apply, weights)
        explain = jaxlift.deeplift_shap(f, batch_size=batch_size)
        return jax.vmap(explain, (0, None))(rows, references)

    return contributions


def compare(net, explain, reference, rounds, pairs=1, **labels) -> dict[str, Any]:
    """Cost and compile time of an explanation per pair, beside the gradient's."""
    rows = net.rows(net.batch, seed=1)
    grad = jax.jit(gradient(net)).lower(net.weights, rows).compile()
    mine = jax.jit(explain).lower(net.weights, rows, reference).compile()

    def clock():
        return seconds(grad, net.weights, rows)

    def other():
        return seconds(mine, net.weights, rows, reference)

    clock(), other()  # warm
    grad_seconds, cost = interleaved(clock, other, rounds)
    return labels | {
        "gradient_ms": 1e3 * grad_seconds.median,
        "cost": (cost / pairs).median,
        "compile_ms": 1e3 * compile_seconds(explain, net.weights, rows, reference),
    }


def over_batch(rounds: int) -> Iterator[dict[str, Any]]:
    """One shared reference, more and more rows."""
    mlp = network("mlp")
    for batch in BATCHES:
        net = Network(mlp.name, mlp.apply, mlp.weights, mlp.shape, batch)
        yield compare(
            net, shared_reference(net), net.rows(1, 2)[0], rounds, batch=batch
        )


def over_references(rounds: int) -> Iterator[dict[str, Any]]:
    """A set of shared references, per (input, reference) pair."""
    mlp = network("mlp")
    net = Network(mlp.name, mlp.apply, mlp.weights, mlp.shape, 64)
    for count in REFERENCES:
        references = net.rows(count, seed=2)
        yield compare(
            net, reference_set(net), references, rounds, count, references=count
        )


def over_depth(rounds: int) -> Iterator[dict[str, Any]]:
    """Deeper and deeper networks: cost and compile time stay in proportion."""
    for depth in DEPTHS:
        net = build("mlp", MLP(depth, 256), (256,), 256)
        yield compare(
            net, shared_reference(net), net.rows(1, 2)[0], rounds, depth=depth
        )


def over_length(rounds: int) -> Iterator[dict[str, Any]]:
    """Longer and longer sequences."""
    for length in LENGTHS:
        net = build("bpnet", BpNet(), (length, 4), 4)
        yield compare(
            net, shared_reference(net), net.rows(1, 2)[0], rounds, length=length
        )


def over_devices(rounds: int) -> Iterator[dict[str, Any]]:
    """Rows sharded over devices (simulated on a CPU): no communication is needed."""
    net = network("bpnet")
    reference = net.rows(1, seed=2)[0]
    for count in DEVICES:
        if count > jax.device_count():
            break
        mesh = jax.make_mesh((count,), ("rows",))
        whole = NamedSharding(mesh, PartitionSpec())
        split = NamedSharding(mesh, PartitionSpec("rows"))
        rows = jax.device_put(net.rows(net.batch, seed=1), split)
        weights, r = jax.device_put((net.weights, reference), whole)
        mine = jax.jit(shared_reference(net)).lower(weights, rows, r).compile()
        grad = jax.jit(gradient(net)).lower(weights, rows).compile()
        seconds(grad, weights, rows), seconds(mine, weights, rows, r)  # warm
        grad_seconds, cost = interleaved(
            functools.partial(seconds, grad, weights, rows),
            functools.partial(seconds, mine, weights, rows, r),
            rounds,
        )
        text = mine.as_text()
        yield {
            "devices": count,
            "gradient_ms": 1e3 * grad_seconds.median,
            "cost": cost.median,
            "collectives": sum(text.count(f" {name}(") for name in COLLECTIVES),
        }


def over_streamed(rounds: int) -> Iterator[dict[str, Any]]:
    """Peak memory against the number of references, all at once and in chunks."""
    del rounds
    net = network("dna_cnn")
    rows = net.rows(2, seed=1)
    for count in STREAMED:
        references = jax.ShapeDtypeStruct((count, *net.shape), jnp.float32)
        sizes = {
            name: memory_bytes(
                jax.jit(reference_set(net, batch_size))
                .lower(net.weights, rows, references)
                .compile()
            )
            for name, batch_size in (("at_once", None), ("streamed", CHUNK))
        }
        yield {
            "references": count,
            "references_mib": references.size * 4 / 2**20,
            **{f"{name}_mib": size and size / 2**20 for name, size in sizes.items()},
        }


def over_chunks(rounds: int) -> Iterator[dict[str, Any]]:
    """A set of references, fewer and fewer of them in flight at once."""
    for name in NAMES:
        net = network(name)
        references = net.rows(max(CHUNKS), seed=2)
        for size in CHUNKS:
            yield compare(
                net,
                reference_set(net, size),
                references,
                rounds,
                len(references),
                network=name,
                batch_size=size,
            )


AXES = {
    "batch": over_batch,
    "references": over_references,
    "depth": over_depth,
    "length": over_length,
    "devices": over_devices,
    "memory": over_streamed,
    "chunks": over_chunks,
}


def text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value or "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axes", nargs="+", choices=AXES, default=tuple(AXES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", metavar="PATH")
    options = parser.parse_args()
    if "devices" in options.axes:
        jax.config.update("jax_num_cpu_devices", max(DEVICES))

    about, rows = surroundings(), []
    print(*(f"{key}: {value}" for key, value in about.items()), sep="\n")
    for axis in options.axes:
        print(f"\n{axis}: {AXES[axis].__doc__}")
        for row in AXES[axis](options.rounds):
            cells = (f"{key} {text(value)}" for key, value in row.items())
            print("  ", ", ".join(cells), flush=True)
            rows.append({"axis": axis, **row})
    if options.json:
        write_json(options.json, rows, about)


if __name__ == "__main__":
    main()
