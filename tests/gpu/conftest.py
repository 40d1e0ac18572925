"""What every test on a GPU needs."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def torch() -> Any:
    found = pytest.importorskip("torch", reason="needs PyTorch: pip install 'qimeng-attention[gpu]'")
    if not found.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    return found
