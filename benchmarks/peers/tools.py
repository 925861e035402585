"""How each tool is asked for contributions, in the way that is fastest for it.

A tool is a function of a `Problem` that returns calls by the number of (row, reference)
pairs that are in flight at once: the worker keeps the fastest.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from twins import TWINS, Layers, Product, Reshaped, WrittenOutLstm

Calls = dict[int, Callable[[], Tensor]]


class Cannot(Exception):
    """What a tool does not do, in a phrase."""


class Problem(NamedTuple):
    """Rows of a network to explain."""

    network: str
    weights: dict
    rows: Tensor
    references: Tensor  # (1, ...) or (R, ...) for all rows, (N, ...) if `own`
    own: bool

    @property
    def per_row(self) -> int:
        return 1 if self.own else len(self.references)

    def twin(self) -> nn.Module:
        return TWINS[self.network](Layers(self.weights), Product)

    def batch_sizes(self) -> list[int]:
        """All pairs at once, a quarter, and a sixteenth."""
        pairs = len(self.rows) * self.per_row
        return sorted({max(self.per_row, pairs // part) for part in (1, 4, 16)})


class Copy(nn.Module):
    """The same values in a tensor of their own."""

    def forward(self, x):
        return x.clone()


def separated(model: nn.Module) -> nn.Module:
    """A chain with a copy between each ReLU and the max-pooling right after it.

    Captum hooks the tensor between the two for both of them, and its contributions
    are wrong (by more than the largest of them, in the DNA network here).
    """
    if not isinstance(model, nn.Sequential):
        return model
    steps = [model[0]]
    for before, step in itertools.pairwise(model):
        adjacent = isinstance(before, nn.ReLU) and isinstance(step, nn.MaxPool1d)
        steps += [Copy(), step] if adjacent else [step]
    return nn.Sequential(*steps)


def frozen(model: nn.Module, problem: Problem) -> nn.Module:
    """A model of which nothing but the input needs a gradient."""
    return model.eval().requires_grad_(False).to(problem.rows.dtype)


def captum(problem: Problem) -> Calls:
    from captum.attr import DeepLift, DeepLiftShap

    model = frozen(separated(problem.twin()), problem)
    explain = (DeepLiftShap if problem.per_row > 1 else DeepLift)(model).attribute

    def call(pairs: int) -> Tensor:
        count = pairs // problem.per_row
        rows = problem.rows.split(count)
        references = (
            problem.references.split(count)
            if problem.own
            else [problem.references] * len(rows)
        )
        parts = zip(rows, references, strict=True)
        return torch.cat([explain(row, r, target=0).detach() for row, r in parts])

    return {n: functools.partial(call, n) for n in problem.batch_sizes()}


def shap(problem: Problem) -> Calls:
    from shap import DeepExplainer

    if problem.own:
        raise Cannot("takes one set of references for all rows")
    explainer = DeepExplainer(frozen(problem.twin(), problem), problem.references)

    def call() -> Any:
        values = explainer.shap_values(problem.rows, check_additivity=False)
        return torch.from_numpy(values[..., 0])

    return {problem.per_row: call}  # it goes from row to row


def tangermeme(problem: Problem) -> Calls:
    """Its attributions are projected on the bases, so the multipliers are taken.

    It expects rows of the shape (channels, length) and says so only (`only_warn`) where
    they are not one-hot.
    """
    from tangermeme.deep_lift_shap import BilinearOp, deep_lift_shap

    layers, shape = Layers(problem.weights), problem.rows.shape[1:]
    if problem.network == "lstm":
        times = functools.partial(BilinearOp, "...,...->...")
        model = WrittenOutLstm(layers, times)
    else:
        model = TWINS[problem.network](layers, BilinearOp)
    model = frozen(Reshaped(model, shape), problem)
    rows, references = (
        values.reshape(len(values), shape[0], -1)
        for values in (problem.rows, problem.references)
    )
    each = len(rows), problem.per_row, *rows.shape[1:]
    references = references[:, None] if problem.own else references.expand(each)

    def call(pairs: int) -> Tensor:
        multipliers = deep_lift_shap(
            model, rows, references=references, batch_size=pairs,
            raw_outputs=True, only_warn=True, warning_threshold=float("inf"),
            device="cpu",
        )  # fmt: skip
        contributions = (multipliers * (rows[:, None] - references)).mean(1)
        return contributions.reshape(problem.rows.shape)

    return {n: functools.partial(call, n) for n in problem.batch_sizes()}


TOOLS = {"captum": captum, "shap": shap, "tangermeme": tangermeme}
