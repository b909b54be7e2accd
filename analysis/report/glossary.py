"""What the terms of attacks on cohorts mean. The page has them if there is such an attack."""

from __future__ import annotations

COHORT_TERMS = (
    (
        "Primary attack",
        "The one attack that every verdict rests on. The number of seeds alone decides which: LiRA from 8 seeds on, RMIA’s ratio "
        "from 4, otherwise the best of the attacks on one target. The defense with the fewest seeds decides for all that are "
        "compared. No result is looked at, so nothing is chosen on the data it is reported on.",
    ),
    (
        "References",
        "The other seeds of the same defense: trained alike, each on members drawn by its own coins. An example is hard or easy "
        "for all of them, so the attack sees what the target alone does differently. Under paired coins the seed with the opposite "
        "members is not used. References of another defense would hide leaks.",
    ),
    (
        "LiRA",
        "Likelihood ratio attack (Carlini et al. 2022): how much likelier the target’s log-odds of the true class are under the "
        "references trained with the example than under those without it, each side a Gaussian. With few references each "
        "example’s spread, and the distance between its two Gaussians, are shrunk toward those of all examples.",
    ),
    (
        "RMIA’s ratio",
        "The target’s probability of the true class over the references’ mean (Zarifzadeh et al. 2024). It needs fewer references "
        "than LiRA.",
    ),
    (
        "Null",
        "The same attack on a membership that fair coins tossed anew and by which no model was trained. Its AUC must be 0.5 within "
        "its interval. If it is not, the attack measures something other than membership, and no verdict rests on it.",
    ),
    (
        "Pooled and calibrated TPR",
        "Pooled: the TPR at one threshold for all targets of a cell together. That allows a lower FPR than one target’s "
        "non-members can show, but a few examples then make most false positives. Calibrated: each example’s scores are first "
        "standardized by those in targets without it, so that its own FPR is about the nominal one if scores are near Gaussian. "
        "That needs targets that are not each other’s references, so half of the seeds are references, and the attack is weaker.",
    ),
    (
        "Exposure",
        "An example’s mean score in targets trained with it minus that in targets without it, in units of the score’s spread. "
        "Even if nothing leaks, some examples come first by chance, with few seeds far from 0, and the most exposed 1 % carry some "
        "percent of the true positives.",
    ),
    (
        "ε shown",
        "A lower bound on the ε that all seeds of a defense have, at 95 % confidence, from how many guesses of the primary attack "
        "are right (an audit). Half of the seeds are guessed about with the other half as references. The true ε lies between this "
        "and a proved one. A bound above the proof would mean that the proof or the code is wrong.",
    ),
)
