"""The engine as a node of a robot. `node` knows no transport; `dora`, `zenoh`, `ros2` and `dds` connect it to one."""
