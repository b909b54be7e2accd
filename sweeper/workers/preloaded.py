"""Imported once by a worker's fork server, so that a trial's process has its imports when it is forked."""

import gc

import sweeper.trial.run
import sweeper.workers.staging  # noqa: F401
from sweeper.trial import provenance, sources

sources.read_all()
provenance.checkout()

# Otherwise a child's garbage collector would write to these objects' pages, and so copy them.
gc.collect()
gc.freeze()
