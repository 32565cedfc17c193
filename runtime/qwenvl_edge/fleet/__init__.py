"""One bundle on many engines: Ray Serve (the extra "ray") and Triton.

Ray Serve: replicas of the engine, and a front with the server's routes.

    HTTP -> Ray's proxy -> Front (server.app) -> dispatch -> routing -> Engine replica (Batcher)

`serve run qwenvl_edge.fleet.ray_serve:app bundle=BUNDLE` starts it. triton.py is the model that
Triton's Python backend loads.
"""
