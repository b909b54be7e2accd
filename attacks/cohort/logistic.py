"""Many small logistic regressions at once: one for each example and each set of references."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from attacks.base import AttackError, BoolArray

FloatArray = npt.NDArray[np.float64]

TOLERANCE = 1e-5
"""A fit has converged if no component of its gradient exceeds this."""

_BOUND_STEPS = 12
_LONGEST = 10.0
_MOST_STEPS = 100
_MOST_HALVINGS = 30
_ROUNDING = 1e-12
_TINY = np.finfo(np.float64).tiny


def leave_out_fits(bits: BoolArray, member: BoolArray, kept: BoolArray, ridge: float) -> FloatArray:
    """Logistic regressions of membership on bits: weights and, last, the intercept (examples, sets, features + 1).

    `bits` is (examples, references, features), `member` (examples, references), and `kept` (sets, references) says which
    references each fit uses. A fit minimizes the sum of the references' log-losses + ridge/2 · ‖weights‖²; the intercept is
    not penalized. If its references are all members or all non-members, there is no finite intercept, and the fit is 0.

    A fit never depends on the membership of a reference that it leaves out, not even by its remaining error: it starts at
    weights of 0, stops by its own gradient, and shares with the example's other fits only an upper bound of the Hessian,
    which does not depend on memberships. The first steps replace the Hessian by this bound, stretched by the curvature along
    the step before, which is enough for most fits. All further steps are Newton's, halved until they do not raise the objective.

    Raises:
        AttackError: a fit does not converge.

    Source: Böhning & Lindsay 1988, for the bound; Barzilai & Borwein 1988, for the lengths.
    """
    n_examples, n_references, n_features = bits.shape
    x = np.concatenate([bits, np.ones((n_examples, n_references, 1))], axis=2)
    penalty = np.append(np.full(n_features, ridge), 0.0)
    inverse_bound = np.linalg.inv(x.swapaxes(1, 2) @ x / 4 + np.diag(penalty))
    prior = prior_log_odds(member, kept)
    has_both = ~np.isnan(prior)
    fits = np.zeros((n_examples, len(kept), n_features + 1))
    fits[..., -1] = np.nan_to_num(prior)
    length, last_gradient, last_step = np.ones(has_both.shape), np.zeros_like(fits), np.zeros_like(fits)
    left = np.flatnonzero(has_both.any(axis=1))
    for number in range(_MOST_STEPS):
        if not len(left):
            return fits
        features, truth, fit = x[left], member[left][:, None, :], fits[left]
        probability = _probability(features, fit)
        gradient = ((probability - truth) * kept) @ features + penalty * fit
        moving = has_both[left] & (np.abs(gradient).max(axis=2) > TOLERANCE)
        if number < _BOUND_STEPS:
            step = -gradient @ inverse_bound[left]
            bound = -length[left] * (last_gradient[left] * last_step[left]).sum(axis=2)
            curvature = ((gradient - last_gradient[left]) * last_step[left]).sum(axis=2)
            length[left] = np.maximum(bound / np.maximum(curvature, np.maximum(bound / _LONGEST, _TINY)), 1)
            step *= length[left][..., None]
            last_gradient[left], last_step[left] = gradient, step
        else:
            step = np.zeros_like(fit)
            hessian = _hessian(features, probability * (1 - probability) * kept, penalty, moving)
            step[moving] = np.linalg.solve(hessian, -gradient[moving][..., None])[..., 0]
            most = _objective(probability, truth, kept, fit, penalty) * (1 + _ROUNDING)
            for _ in range(_MOST_HALVINGS):
                after = _objective(_probability(features, fit + step), truth, kept, fit + step, penalty)
                if (after <= most).all():
                    break
                step[after > most] /= 2
        fits[left] = np.where(moving[..., None], fit + step, fit)
        left = left[moving.any(axis=1)]
    raise AttackError(f"A logistic regression did not converge in {_MOST_STEPS} steps. Regularize it more.")


def prior_log_odds(member: BoolArray, kept: BoolArray) -> FloatArray:
    """log(members / non-members) among each set's references (examples, sets); NaN if there are none of either."""
    n_in = member.astype(np.float64) @ kept.T
    n_out = kept.sum(axis=1) - n_in
    return np.where((n_in > 0) & (n_out > 0), np.log(np.maximum(n_in, 1) / np.maximum(n_out, 1)), np.nan)


def _probability(features: FloatArray, fit: FloatArray) -> FloatArray:
    """Each fit's probability of membership (examples, sets, references). NumPy's tanh is faster than SciPy's expit."""
    result: FloatArray = np.tanh((fit / 2) @ features.swapaxes(1, 2)) / 2 + 0.5
    return result


def _hessian(features: FloatArray, curvature: FloatArray, penalty: FloatArray, moving: BoolArray) -> FloatArray:
    """The Hessians of the fits that are `moving`, from their upper triangles; `curvature` is (examples, sets, references)."""
    row, column = np.triu_indices(len(penalty))
    upper = (curvature @ (features[..., row] * features[..., column]))[moving] + np.diag(penalty)[row, column]
    place = np.empty((len(penalty), len(penalty)), dtype=np.intp)
    place[row, column] = place[column, row] = np.arange(len(row))
    return upper[:, place]


def _objective(
    probability: FloatArray, truth: BoolArray, kept: BoolArray, fit: FloatArray, penalty: FloatArray
) -> FloatArray:
    of_truth = np.maximum(np.abs(probability - ~truth), _TINY)
    result: FloatArray = fit**2 @ penalty / 2 - np.einsum("esr,sr->es", np.log(of_truth), kept.astype(np.float64))
    return result
