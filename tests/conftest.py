"""What all tests share: the data beside the repository, and the rule that continuous integration skips nothing
silently.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]

# The first example of a test pays for what is loaded and compiled once: a deadline for each measures the machine.
hypothesis.settings.register_profile("elm_neuro", deadline=None)
hypothesis.settings.load_profile("elm_neuro")

# With ELM_NEURO_STRICT_SKIPS=1 (or CI=true) every extra is installed, and a skip whose reason begins otherwise is a
# failure.
SKIP_REASONS = (
    "no GPU",
    "no ../shared",
    "no C++ compiler",
    "no compiler",
    "no NVRTC",
    "no second GPU",
    "no valgrind",
    "no clang++",
    "no compiler and emulator for AArch64",
    "no Chromium",
    "no onnxruntime-web",
)


def _strict_skips() -> bool:
    return os.environ.get("ELM_NEURO_STRICT_SKIPS", os.environ.get("CI", "")).lower() not in ("", "0", "false", "no")


class StrictSkips:
    """Turns a skip for a reason outside SKIP_REASONS into a failure; a plugin, because a conftest does not see the
    doctests of elm_neuro/.
    """

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if not hasattr(report, "wasxfail"):
            _fail_if_skipped(report)
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        _fail_if_skipped(report)
        return report


def _fail_if_skipped(report: Any) -> None:
    if not report.skipped:
        return
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr).removeprefix(
        "Skipped: "
    )
    if not reason.startswith(SKIP_REASONS):
        report.outcome = "failed"
        report.longrepr = (
            f"{report.nodeid} was skipped ({reason}), which is none of the reasons allowed here: "
            f"{', '.join(SKIP_REASONS)}"
        )


def pytest_configure(config: pytest.Config) -> None:
    if _strict_skips():
        config.pluginmanager.register(StrictSkips(), "elm_neuro-strict-skips")


@pytest.hookimpl(tryfirst=True)  # before those that are slow are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a large grid of cases, `make test` runs some, the same ones everywhere: ``grid(every)`` says how many."""
    for item in items:
        grid = item.get_closest_marker("grid")
        if grid is not None and zlib.crc32(item.name.encode()) % int(grid.kwargs["every"]):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recordings and the authors' checkpoints that stands beside the repository, where there is one."""
    path = REPOSITORY.parent / "shared"
    if not path.is_dir():
        pytest.skip("no ../shared")
    return path


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device that there may be: the CPU, and the GPU where torch has one."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return torch.device(request.param)
