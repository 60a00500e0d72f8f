"""Skips every test here, by name, on a machine without a GPU: `pytest tests/gpu` says which were not run."""

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            item.add_marker(pytest.mark.skip(reason="this machine has no GPU, so nothing about one was tested"))
