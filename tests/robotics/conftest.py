"""What tests of cameras share."""

import pytest

from qwenvl_edge.robotics.watch import capture as capturing


@pytest.fixture
def quick_retries(monkeypatch):
    """A lost camera is opened again at once."""
    monkeypatch.setattr(capturing.Capture.__init__, "__kwdefaults__", {"retry_s": 0.01})
