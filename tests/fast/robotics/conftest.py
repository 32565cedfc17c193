"""A stand-in for rclpy."""

import sys

import pytest

from support import ros_stand_in as ros


@pytest.fixture
def install(monkeypatch):
    """Puts the stand-in into sys.modules; returns the node that rclpy makes."""

    def install(spin=lambda: None, **parameters):
        node = ros.Node(**parameters)
        for name, module in ros.modules(node, spin).items():
            monkeypatch.setitem(sys.modules, name, module)
        return node

    return install
