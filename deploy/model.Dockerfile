# Adds a model package to an image of Spanlake, so that a replica needs no network to start:
#
#   docker build -f deploy/model.Dockerfile --build-arg IMAGE=spanlake:cpu -t spanlake:cpu-mine DIRECTORY-OF-PACKAGE
#
# The model is then /models/default: `model: /models/default` in the settings of serving, `--model /models/default` in jobs.
ARG IMAGE=spanlake:cpu
# hadolint ignore=DL3006
FROM ${IMAGE}
COPY --chown=root:root . /models/default
RUN spanlake package verify /models/default
