"""What the build tests share: the tool chain or a skip, and a tiny kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from qimeng_attention.build import Toolchain, find_toolchain
from qimeng_attention.errors import EnvironmentMissing

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def toolchain() -> Toolchain:
    """Give the installed tool chain; a test that asks for it is marked `cuda`."""
    try:
        return find_toolchain()
    except EnvironmentMissing as missing:
        pytest.skip(f"needs the build extra: {missing.message}")


@pytest.fixture(scope="session")
def tiny() -> str:
    """Give a kernel for sm_80 that copies asynchronously, loads by ldmatrix, multiplies and exponentiates."""
    return (HERE / "tiny.cu").read_text(encoding="utf-8")
