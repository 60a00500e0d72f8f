"""Ray jobs, as seen by a process that has not imported Ray."""

import os

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the entrypoint of a job


def is_ray_job() -> bool:
    """Returns whether this process is the entrypoint of a Ray job, whose machine may have no room for work."""
    return JOB_CONFIG in os.environ
