"""The ROS 2 node's states, parameters and program, on a stand-in for rclpy."""

import pytest

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.robotics import ros2 as adapter
from qwenvl_edge.robotics import ros2_lifecycle as lifecycle
from support import ros_stand_in as ros
from support.scripted import engine

BOXED = "<ref>dots</ref><box>(0,0),(500,500)</box> are here<|im_end|>"


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """Engines over scripted answers instead of bundles; what they were opened with."""
    calls = []

    def open_engine(bundle, **options):
        if str(bundle) == "none":
            raise QwenVLError("there is no bundle at 'none'.")
        calls.append({**options, "bundle": str(bundle)})
        folder = tmp_path / str(len(calls))
        folder.mkdir()
        return engine(folder, *[BOXED] * 9)[0]

    monkeypatch.setattr(lifecycle, "QwenVLEngine", open_engine)
    return calls


def image():
    header = ros.Header(stamp=ros.Time(sec=100), frame_id="camera_optical")
    return ros.Image(header=header, height=2, width=3, encoding="bgr8", step=12, data=bytes(24))


def answered(node):
    node.send("image", image())
    return node.published["response"].wait().data


def test_the_program(install, opened):
    """From parameters to a response, and down again."""

    def spin():
        assert node.state == "active" and answered(node) == "dots are here"

    node = install(spin, bundle="bundle", prompt="Where?", max_new_tokens=60)
    assert adapter.main([]) == 0
    assert opened == [{"bundle": "bundle", "threads": None, "max_context": None}] and node.destroyed
    assert not node.subscribed and not node.published and not node.timers and node.action is None


def test_a_manager_leads_it_through_its_states(install, opened):
    """Answers only while active; another bundle after a clean-up."""

    def spin():
        assert (node.state, opened, node.subscribed) == ("unconfigured", [], {})
        node.trigger_configure()
        assert len(opened) == 1 and not node.subscribed
        for _ in range(2):
            node.trigger_activate()
            assert answered(node) == "dots are here"
            node.trigger_deactivate()
            assert not node.subscribed and not node.published and not node.timers
        assert len(opened) == 1
        assert "clean the node up first" in node.set_parameters(bundle="other").reason
        node.trigger_cleanup()
        assert node.set_parameters(bundle="other").successful
        node.trigger_configure()
        assert opened[-1]["bundle"] == "other"

    node = install(spin, bundle="bundle", prompt="Where?", autostart=False)
    assert adapter.main([]) == 0


def test_a_bundle_that_cannot_be_opened_leaves_it_unconfigured(install, opened):
    def spin():
        assert node.trigger_configure() == ros.FAILURE and node.state == "unconfigured"
        assert node.errors == ["there is no bundle at 'none'."]
        assert node.set_parameters(bundle="bundle").successful and node.trigger_configure() == ros.SUCCESS

    node = install(spin, bundle="none", autostart=False)
    assert adapter.main([]) == 0


def test_parameters_change_while_it_runs(install, opened):
    def spin():
        assert node.set_parameters(prompt="Where?", max_rate_hz=5.0).successful
        assert answered(node) == "dots are here"
        refused = node.set_parameters(prompt="What?", max_age_ms=-1.0)
        assert not refused.successful and "greater than 0" in refused.reason
        node.trigger_deactivate()
        node.trigger_activate()  # the settings stay
        assert answered(node) == "dots are here" and node.parameters["prompt"] == "Where?"

    node = install(spin, bundle="bundle")
    assert adapter.main([]) == 0


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({}, "the parameter `bundle` is missing"),
        ({"bundle": "none"}, "there is no bundle at"),
        ({"bundle": "bundle", "max_rate_hz": -1.0}, "greater than 0"),
    ],
)
def test_what_is_wrong_at_the_start_is_one_sentence(install, opened, capsys, parameters, match):
    node = install(**parameters)
    assert adapter.main([]) == 2
    error = capsys.readouterr().err
    assert match in error and error.count("\n") == 1 and node.destroyed
