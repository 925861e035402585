"""Functions evaluated primitive by primitive, for tests of many functions.

Compiling a function costs far more than anything else that is done with it in a test.
Here a function is traced once and its equations run one after another, bodies of calls
and loops included, so that a primitive is compiled once per shape and parameters, for
all functions of a process together. (`jax.disable_jit` is no way to do this: functions
trace differently under it.)
"""

import jax
import jax.numpy as jnp

from jaxlift import _compat


def stepwise(f, *example):
    """`f`, traced for arguments like the example, each of its equations on its own."""
    closed, shape = jax.make_jaxpr(f, return_shape=True)(*example)
    tree = jax.tree.structure(shape)

    def evaluated(*args):
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(args)]
        return jax.tree.unflatten(tree, _run(closed, leaves))

    return evaluated


def _run(jaxpr, operands):
    jaxpr, consts = _compat.open_jaxpr(jaxpr)
    env = dict(zip(jaxpr.constvars, consts, strict=True))
    env |= zip(jaxpr.invars, operands, strict=True)
    read = lambda atom: atom.val if hasattr(atom, "val") else env[atom]
    for eqn in jaxpr.eqns:
        one = _BODIES.get(eqn.primitive.name, _single)
        outputs = one(eqn, [read(atom) for atom in eqn.invars])
        env |= zip(eqn.outvars, outputs, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _single(eqn, operands):
    return _compat.bind(eqn.primitive, eqn.params, *operands)


def _call(key):
    return lambda eqn, operands: _run(eqn.params[key], operands)


def _cond(eqn, operands):
    index, *operands = operands
    branches = eqn.params["branches"]
    return _run(branches[min(max(int(index), 0), len(branches) - 1)], operands)


def _scan(eqn, operands):
    n_consts, n_carry = _compat.scan_sizes(eqn)
    consts, xs = operands[:n_consts], operands[n_consts + n_carry :]
    carry = operands[n_consts : n_consts + n_carry]
    length = eqn.params["length"]
    steps = range(length)[::-1] if eqn.params["reverse"] else range(length)
    if not length:
        return _single(eqn, operands)
    rows = {}
    for k in steps:
        outputs = _run(eqn.params["jaxpr"], [*consts, *carry, *(x[k] for x in xs)])
        carry, rows[k] = outputs[:n_carry], outputs[n_carry:]
    columns = zip(*(rows[k] for k in range(length)), strict=True)
    return [*carry, *map(jnp.stack, columns)]


def _while(eqn, operands):
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    consts, carry = operands[: n_cond + n_body], operands[n_cond + n_body :]
    while _run(eqn.params["cond_jaxpr"], [*consts[:n_cond], *carry])[0]:
        carry = _run(eqn.params["body_jaxpr"], [*consts[n_cond:], *carry])
    return carry


_BODIES = {
    "jit": _call("jaxpr"),
    "pjit": _call("jaxpr"),
    "remat2": _call("jaxpr"),
    "checkpoint": _call("jaxpr"),
    "closed_call": _call("call_jaxpr"),
    "custom_jvp_call": _call("call_jaxpr"),
    "custom_vjp_call": _call("call_jaxpr"),
    "cond": _cond,
    "scan": _scan,
    "while": _while,
}
