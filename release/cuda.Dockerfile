# The server on an NVIDIA GPU: a server with NVIDIA's container toolkit, or a Jetson with JetPack 6.
#   docker build -f release/cuda.Dockerfile -t qwenvl-edge-cuda .
#   Jetson: --build-arg BASE=nvcr.io/nvidia/l4t-tensorrt:r10.3.0-devel
#   docker run --rm --gpus all ... (Jetson: --runtime nvidia), otherwise as the Dockerfile says
# The base brings TensorRT with its Python package. Plans are built on the machine that runs them:
#   docker run --rm --gpus all -v "$PWD/bundle:/bundle" --entrypoint qwenvl qwenvl-edge-cuda \
#     build /bundle --target local --plugin /usr/local/lib/libqwenvl_tensorrt_plugin.so
ARG BASE=nvcr.io/nvidia/tensorrt:25.01-py3
# hadolint ignore=DL3006
FROM ${BASE} AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ cmake python3-dev python3-pip \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && cmake -S cpp_ext/tensorrt_plugin -B /plugin -DCMAKE_BUILD_TYPE=Release && cmake --build /plugin --parallel 2

# hadolint ignore=DL3006
FROM ${BASE}
COPY --from=build /wheels /wheels
COPY --from=build /plugin/libqwenvl_tensorrt_plugin.so /usr/local/lib/
# hadolint ignore=DL3013
RUN python3 -m pip install --no-cache-dir "$(echo /wheels/*.whl)[server,tensorrt,cuda]" && rm -r /wheels \
    && useradd --create-home --uid 10001 qwenvl
USER 10001
ENV PYTHONUNBUFFERED=1
EXPOSE 8000
ENTRYPOINT ["qwenvl", "serve", "/bundle", "--host", "0.0.0.0", "--log-format", "json"]
CMD ["--api-key-file", "/run/secrets/key"]
