"""channel_pruning: against scikit-learn's Lasso on the regression itself, penalty by penalty."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

import slim
from slim.criteria.channel_pruning import entries
from tests.criteria.networks import batches, residual, space


def test_what_a_lasso_uses_at_a_penalty_is_what_scores_above_it():
    model, graph = residual(inner=6)
    model.eval()
    data = batches(2)
    mine = space(graph, "first")
    values = slim.score(graph, "channel_pruning", loader=data, positions=64).values[mine]
    seen = []
    handle = model.second.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        for x, _ in data:
            model(x)
        handle.remove()
        x = torch.cat(seen)
        alone = [torch.nn.functional.conv2d(x[:, [c]], model.second.weight[:, [c]], padding=1) for c in range(6)]
    parts = torch.stack([part.flatten() for part in alone], 1).double().numpy()
    parts /= np.linalg.norm(parts.sum(1))
    edges = np.unique(values[values > 0])
    assert len(edges) >= 4
    for penalty in (edges[:-1] + edges[1:]) / 2:
        fit = Lasso(alpha=penalty / len(parts), fit_intercept=False, tol=1e-10, max_iter=100_000)
        used = np.abs(fit.fit(parts, parts.sum(1)).coef_) > 1e-9
        assert (used == (values > penalty)).all()
    assert values.max() == pytest.approx(np.abs(parts.T @ parts.sum(1)).max(), rel=1e-4)


def test_channels_that_others_span_are_not_needed():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(50, 4))
    x = np.concatenate([x, 0.3 * x[:, :1], np.zeros((50, 1))], 1)
    found = entries(x.T @ x)
    assert (found[:4] > 0).all() and (found[4:] == 0).all()
