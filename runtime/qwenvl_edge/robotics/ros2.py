"""A ROS 2 node: `ros2 run qwenvl_edge_ros vlm --ros-args -p bundle:=/path/to/bundle` (packages in examples/ros2).

Subscribes `image` (sensor_msgs/Image, or CompressedImage with the parameter `compressed`), of which it keeps the
newest, and `prompt` (std_msgs/String). Publishes for every answer `response` (std_msgs/String) and `detections`
(vision_msgs/Detection2DArray, stamp and frame of the image that it is about), and `/diagnostics` once a second. The
action `ask` (qwenvl_edge_interfaces/Ask) answers one question with its text as it comes, and can be cancelled. Its
states are those of a managed node (`ros2_lifecycle.py`), and its parameters change while it runs.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.inputs.cancel import CancelToken
from qwenvl_edge.robotics.command import run_command
from qwenvl_edge.robotics.messages import Messages
from qwenvl_edge.robotics.node import NodeAnswer, Question, VlmNode
from qwenvl_edge.robotics.ros_messages import detection_array, diagnostic_array, image_to_rgb

_NAME = "qwenvl"
_DIAGNOSTICS_S = 1.0
_ROS = {
    "diagnostic_msgs.msg": ("DiagnosticArray", "DiagnosticStatus", "KeyValue"),
    "qwenvl_edge_interfaces.action": ("Ask",),
    "rcl_interfaces.msg": ("SetParametersResult",),
    "rclpy.action": ("ActionServer", "CancelResponse"),
    "rclpy.callback_groups": ("ReentrantCallbackGroup",),
    "rclpy.executors": ("ExternalShutdownException", "MultiThreadedExecutor"),
    "rclpy.lifecycle": ("LifecycleNode", "ManagedEntity", "TransitionCallbackReturn"),
    "rclpy.qos": ("QoSProfile", "ReliabilityPolicy"),
    "sensor_msgs.msg": ("CompressedImage", "Image"),
    "std_msgs.msg": ("String",),
    "vision_msgs.msg": ("Detection2D", "Detection2DArray", "ObjectHypothesisWithPose"),
}


class RosNode:
    """Connects a VlmNode with an rclpy node.

    Args:
        node: the rclpy node, whose callbacks an executor of several threads runs: an action answers in its callback.
        ros: the modules' names, as import_ros returns them.
        vlm: what answers; `run` runs it.
        compressed: whether `image` brings CompressedImage.
    """

    def __init__(self, node: Any, ros: SimpleNamespace, vlm: VlmNode, *, compressed: bool = False) -> None:
        self._node = node
        self._ros = ros
        self._vlm = vlm
        self._messages = Messages(lambda line: node.get_logger().warning(line))
        self._response = node.create_publisher(ros.String, "response", 10)
        self._detections = node.create_publisher(ros.Detection2DArray, "detections", 10)
        self._diagnostics = node.create_publisher(ros.DiagnosticArray, "/diagnostics", 10)
        kind = ros.CompressedImage if compressed else ros.Image
        newest = ros.QoSProfile(depth=1, reliability=ros.ReliabilityPolicy.BEST_EFFORT)
        self._images = node.create_subscription(kind, "image", self._take_image, newest)
        self._prompts = node.create_subscription(ros.String, "prompt", self._take_prompt, 10)
        self._timer = node.create_timer(_DIAGNOSTICS_S, self._diagnose)
        self._action = ros.ActionServer(
            node,
            ros.Ask,
            "ask",
            execute_callback=self._execute,
            cancel_callback=lambda goal: ros.CancelResponse.ACCEPT,
            callback_group=ros.ReentrantCallbackGroup(),
        )

    def run(self) -> None:
        """Answer what the topics ask, in this thread, until the VlmNode is closed."""
        self._vlm.run(self._publish, lambda error: self._messages.log(str(error)))

    def destroy(self) -> None:
        """End the topics and the action."""
        self._action.destroy()
        self._node.destroy_timer(self._timer)
        for subscription in (self._images, self._prompts):
            self._node.destroy_subscription(subscription)
        for publisher in (self._response, self._detections, self._diagnostics):
            self._node.destroy_publisher(publisher)

    def _take_image(self, image: Any) -> None:
        with self._messages.passing_over("image"):
            self._vlm.put_frame(image_to_rgb(image), age_s=self._age_s(image.header.stamp), header=image.header)

    def _age_s(self, stamp: Any) -> float:
        """Seconds since a stamp; 0 for one that was not set."""
        captured = stamp.sec * 10**9 + stamp.nanosec
        return (self._node.get_clock().now().nanoseconds - captured) / 1e9 if captured else 0.0

    def _take_prompt(self, message: Any) -> None:
        with self._messages.passing_over("prompt"):
            self._vlm.put_question(message.data)

    def _publish(self, answer: NodeAnswer) -> None:
        self._response.publish(self._ros.String(data=answer.reply.text))
        self._detections.publish(self._encode(answer))

    def _execute(self, goal: Any) -> Any:
        """Answer an action's goal; the text streams as feedback."""
        result = self._ros.Ask.Result()
        cancel = CancelToken()

        def take(piece: str) -> None:
            goal.publish_feedback(self._ros.Ask.Feedback(piece=piece))
            if goal.is_cancel_requested:
                cancel.cancel()

        try:
            answer = self._vlm.answer(Question(goal.request.prompt), take, cancel=cancel)
        except Exception as error:  # also the transport's
            self._messages.log(f"ask: {error}")
            result.text, result.finish_reason = str(error), "error"
            goal.abort()
            return result
        result.text, result.finish_reason = answer.reply.text, answer.reply.finish_reason
        result.detections = self._encode(answer)
        if goal.is_cancel_requested:
            goal.canceled()
        else:
            goal.succeed()
        return result

    def _encode(self, answer: NodeAnswer) -> Any:
        return detection_array(self._ros, answer.frame.header, answer.reply.boxes)

    def _diagnose(self) -> None:
        array = diagnostic_array(self._ros, self._node.get_name(), self._vlm.status)
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._diagnostics.publish(array)


def import_ros() -> SimpleNamespace:
    """Return the parts of ROS that the node needs, in one namespace.

    Raises:
        QwenVLError: a package is missing.
    """
    try:
        rclpy = importlib.import_module("rclpy")
        names = {name: getattr(importlib.import_module(module), name) for module in _ROS for name in _ROS[module]}
    except ImportError as error:
        raise QwenVLError(
            f"this node needs ROS 2, where {error.name} was not found; source its setup.bash, install "
            "ros-$ROS_DISTRO-vision-msgs and build the packages of examples/ros2 with colcon."
        ) from None
    return SimpleNamespace(rclpy=rclpy, **names)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until ROS shuts down; return the exit code."""
    return run_command("qwenvl_edge.robotics.ros2", lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    from qwenvl_edge.robotics.ros2_lifecycle import manage

    ros = import_ros()
    ros.rclpy.init(args=argv)
    node = ros.LifecycleNode(_NAME)
    try:
        managed = manage(node, ros)
        try:
            managed.autostart()
            ros.rclpy.spin(node, executor=ros.MultiThreadedExecutor())
        except ros.ExternalShutdownException:
            pass  # Ctrl+C, or a launch file that ends
        finally:
            managed.end()
    finally:
        node.destroy_node()
        ros.rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
