"""A stand-in for CUDA and TensorRT on machines without a GPU: what the driver uses of their documented Python APIs.

machine.py        the GPU: memory, streams whose work waits until somebody synchronises, captured graphs
cuda_runtime.py   cuda.bindings.runtime
nvrtc.py          cuda.bindings.nvrtc: kernels become a library for the CPU (simt.hpp of the plugin's tests)
cuda_driver.py    cuda.bindings.driver: runs such a library on the machine's memory, with a guard behind each allocation
tensorrt_api.py   tensorrt; an engine runs its ONNX graph with ONNX Runtime on the bound addresses
plans.py          plans for it, from a bundle

What the documentation calls an error is returned as that error; what it leaves undefined raises UndefinedBehaviorError.
"""
