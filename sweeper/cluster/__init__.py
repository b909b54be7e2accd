"""Runs trials on Ray: the only package that imports it."""

import os

# Ray reads these when it is imported: no tables, banners or loggers of Tune's own; trials stay in the user's folder; as many
# trials may wait for a slot as we hand out; no snapshots of a state that is never restored.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "100000")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000000")
