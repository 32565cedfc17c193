# The server on a CPU. Build it from a checkout; the bundle is mounted, never copied into the image:
#   docker build -t qwenvl-edge .
#   docker run --rm --read-only --tmpfs /tmp -p 127.0.0.1:8000:8000 \
#     -v "$PWD/out/nano:/bundle:ro" -v "$PWD/key.txt:/run/secrets/key:ro" qwenvl-edge
ARG PYTHON=3.12
FROM python:${PYTHON}-slim-bookworm AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim-bookworm
COPY --from=build /wheels /wheels
# hadolint ignore=DL3013
RUN python -m pip install --no-cache-dir "$(echo /wheels/*.whl)[server,video]" && rm -r /wheels \
    && useradd --create-home --uid 10001 qwenvl
USER 10001
ENV PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
# An address that others reach needs a key: --api-key-file names a file with one per line.
ENTRYPOINT ["qwenvl", "serve", "/bundle", "--host", "0.0.0.0", "--log-format", "json"]
CMD ["--api-key-file", "/run/secrets/key"]
