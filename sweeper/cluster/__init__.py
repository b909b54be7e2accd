"""Runs trials on Ray: the only package that imports it."""

import os

# Ray reads these on import. They turn off Tune's own tables, banners and loggers, keep trials in the user's folder, let as
# many trials wait for a slot as we submit, and stop snapshots of a state that is never restored.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "100000")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000000")
