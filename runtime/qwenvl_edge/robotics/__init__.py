"""The engine as a node of a robot. `node` knows no transport; `dora`, `zenoh` and `ros2` connect it to one each."""
