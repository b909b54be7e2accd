"""Imported once by the fork server of a worker: what a trial's process needs, there before it is forked."""

import gc

import sweeper.trial.run
import sweeper.workers.staging  # noqa: F401
from sweeper.trial import provenance, sources

sources.read_all()
provenance.checkout()

# A child's garbage collector would write into the pages of all these objects, and so copy them.
gc.collect()
gc.freeze()
