"""combination: a weighted sum of scaled parts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata

import slim
from slim.errors import SlimError
from tests.criteria.networks import batches, residual


def test_means_are_scaled_and_summed():
    _, graph = residual()
    a, b = slim.score(graph, "gamma"), slim.score(graph, "l1")
    both = slim.score(graph, "combination", parts={"gamma": 1.0, "l1": 0.5}, scale="mean")
    assert (both.covered == (a.covered & b.covered)).all()
    expected = a.values / a.values[a.covered].mean() + 0.5 * b.values / b.values[b.covered].mean()
    assert both.values[both.covered] == pytest.approx(expected[both.covered])


def test_ranks_do_not_care_for_scale():
    _, graph = residual()
    a = slim.score(graph, "gamma")
    alone = slim.score(graph, "combination", parts={"gamma": 3.0})
    assert (rankdata(alone.values[alone.covered]) == rankdata(a.values[a.covered])).all()


def test_parts_have_options_and_share_the_loader():
    _, graph = residual()
    parts = {"taylor": {"weight": 1.0, "beta": True}, "random": {"weight": 0.1}}
    scores = slim.score(graph, "combination", parts=parts, loader=batches(), seed=3)
    assert np.isfinite(scores.values).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": {}}, "needs parts"),
        ({"parts": ["gamma"]}, "parts must be a Mapping"),
        ({"parts": {"gamma": "much"}}, "weight must be a number"),
        ({"parts": {"gama": 1.0}}, "Did you mean gamma"),
        ({"parts": {"gamma": 1.0}, "scale": "log"}, "scale must be one of"),
    ],
)
def test_bad_parts(options, message):
    _, graph = residual()
    with pytest.raises(SlimError, match=message):
        slim.score(graph, "combination", **options)
