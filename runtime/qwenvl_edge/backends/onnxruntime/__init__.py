"""ONNX Runtime on the CPU and on a GPU."""

import os

import onnxruntime

if os.environ.get("ORT_DISABLE_TELEMETRY") == "1":  # it may have been imported before this package
    onnxruntime.disable_telemetry_events()
