import warnings

from dagster import BetaWarning

# `backfill_policy` and `owners`, once for each use of them, in front of every command.
warnings.filterwarnings("ignore", category=BetaWarning)
