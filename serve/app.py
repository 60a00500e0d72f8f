"""The application that `serve run serve.app:app` runs. Settings follow as name=value, such as model=mini."""

from spanlake.serving.deployment import app

__all__ = ["app"]
