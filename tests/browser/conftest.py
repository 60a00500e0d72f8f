"""A real browser before the real application. Without Chromium and its driver the tests here are skipped."""

import os
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def url(serve_app: Callable[..., str]) -> str:
    return serve_app({"model": "mini", "threads": 1})


@pytest.fixture
def browse() -> Iterator[Callable[..., "Chrome"]]:
    """Opens a window: width and height in CSS pixels, and whether the system is dark -> the driver."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        if os.environ.get("CI"):
            pytest.fail("chromium and chromedriver are missing: CI must install them.")
        pytest.skip("NOT TESTED: the page. Install chromium and chromedriver.")
    from selenium import webdriver

    opened = []

    def open_window(width: int = 1280, height: int = 900, dark: bool = False) -> "Chrome":
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        opened.append(window)
        size: dict[str, Any] = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        return window

    yield open_window
    for window in opened:
        window.quit()
