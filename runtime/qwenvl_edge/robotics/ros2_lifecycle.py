"""The ROS 2 node as a managed node: `ros2 lifecycle set /qwenvl deactivate` frees the camera, `cleanup` the memory.

| transition | what happens |
|---|---|
| configure | the bundle is opened |
| activate | topics and the action are there, and answers begin |
| deactivate | the answer under way ends, topics and the action are gone, the bundle stays open |
| cleanup, shutdown | the bundle is closed |

With the parameter `autostart` (the default) the node goes through configure and activate by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from qwenvl_edge.engine import QwenVLEngine
from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.robotics.node import NodeSettings, VlmNode
from qwenvl_edge.robotics.parameters import DEFAULTS, changed
from qwenvl_edge.robotics.ros2 import RosNode

# A ROS parameter has a type and always a value: "" and 0 leave the choice to the node.
_READ_ONCE = {"bundle": "", "compressed": False, "threads": 0, "max_context": 0}


class VlmLifecycle:
    """Transitions of a managed node; `manage` makes one for rclpy.

    Args:
        node: the rclpy LifecycleNode.
        ros: the modules' names, as import_ros returns them.
    """

    def __init__(self, node: Any, ros: SimpleNamespace) -> None:
        super().__init__()
        self._node, self._ros = node, ros
        self._engine: QwenVLEngine | None = None
        self._settings = NodeSettings()
        self._active: tuple[VlmNode, RosNode, threading.Thread] | None = None
        self._reason = ""
        for name, default in {**_READ_ONCE, **DEFAULTS, "autostart": True}.items():
            node.declare_parameter(name, default)
        node.add_on_set_parameters_callback(self._set)

    def autostart(self) -> None:
        """Go to the active state, unless the parameter `autostart` is false.

        Raises:
            QwenVLError: the node cannot be configured; says why.
        """
        if not self._value("autostart"):
            return
        self._node.trigger_configure()
        if self._engine is None:
            raise QwenVLError(self._reason)
        self._node.trigger_activate()

    def end(self) -> None:
        """Leave the active state, whatever the node is told."""
        self._deactivate()
        self._engine = None

    def on_configure(self, state: Any) -> Any:
        """Open the bundle; a sentence in the log says why it cannot."""
        given = {name: self._value(name) or None for name in _READ_ONCE}
        try:
            self._settings = changed(NodeSettings(), {name: self._value(name) for name in DEFAULTS})
            if given["bundle"] is None:
                raise QwenVLError("the parameter `bundle` is missing; add: --ros-args -p bundle:=/path/to/bundle")
            self._engine = QwenVLEngine(
                Path(given["bundle"]), threads=given["threads"], max_context=given["max_context"]
            )
        except QwenVLError as error:
            self._reason = str(error)
            self._node.get_logger().error(self._reason)
            return self._ros.TransitionCallbackReturn.FAILURE
        return self._ros.TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: Any) -> Any:
        """Begin to answer."""
        assert self._engine is not None  # an inactive node has one
        vlm = VlmNode(self._engine, self._settings)
        connected = RosNode(self._node, self._ros, vlm, compressed=self._value("compressed"))
        thread = threading.Thread(target=connected.run, daemon=True)
        self._active = vlm, connected, thread
        thread.start()
        return self._ros.TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: Any) -> Any:
        """End the answer under way and the topics."""
        self._deactivate()
        return self._ros.TransitionCallbackReturn.SUCCESS

    def on_cleanup(self, state: Any) -> Any:
        """Close the bundle."""
        self.end()
        return self._ros.TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: Any) -> Any:
        """As on_cleanup, from any state."""
        return self.on_cleanup(state)

    def on_error(self, state: Any) -> Any:
        """As on_cleanup, so that the node can be configured again."""
        return self.on_cleanup(state)

    def _deactivate(self) -> None:
        if self._active is None:
            return
        vlm, connected, thread = self._active
        self._active = None
        vlm.close()
        thread.join()
        connected.destroy()

    def _value(self, name: str) -> Any:
        return self._node.get_parameter(name).value

    def _set(self, parameters: Sequence[Any]) -> Any:
        """Take new values of parameters, all or none."""
        values = {each.name: each.value for each in parameters if each.name in DEFAULTS}
        late = [each.name for each in parameters if each.name in _READ_ONCE]
        try:
            if late and self._engine is not None:
                raise QwenVLError(f"{late[0]} is read when the node is configured; clean the node up first.")
            self._settings = changed(self._settings, values)
        except QwenVLError as error:
            return self._ros.SetParametersResult(successful=False, reason=str(error))
        if self._active is not None:
            self._active[0].change(self._settings)
        return self._ros.SetParametersResult(successful=True)


def manage(node: Any, ros: SimpleNamespace) -> VlmLifecycle:
    """Let a LifecycleNode's transitions do what VlmLifecycle says."""
    kind = type("ManagedVlm", (VlmLifecycle, ros.ManagedEntity), {})
    managed: VlmLifecycle = kind(node, ros)
    node.add_managed_entity(managed)
    return managed
