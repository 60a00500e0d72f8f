#!/usr/bin/env bash
# Prepares the system of an image: a compiler for DeepSpeed's CPU parts, wget for KubeRay's probes, and the user `ray`.
set -euo pipefail
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends g++ ninja-build wget
rm -rf /var/lib/apt/lists/*
useradd --uid 1000 --gid users --create-home --shell /bin/bash ray
