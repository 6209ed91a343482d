# syntax=docker/dockerfile:1
# The gateway and its runners in one image, for an NVIDIA GPU or, with --build-arg VARIANT=cpu, for a machine without.
#
#   docker build -t switchyard .
#   docker build -t switchyard:cpu --build-arg VARIANT=cpu --build-arg TORCH_INDEX=<PyTorch's index of CPU wheels> .
#
# The CUDA release is that of the pinned torch wheel; it needs a driver of 580 or newer on the host.
ARG VARIANT=cuda
ARG CUDA=13.0.1

# -- What packages are compiled with: only llama-cpp-python is -----------------------------------------------------------
FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04 AS toolchain-cuda
# The driver's libcuda.so.1 comes from the host, so here nothing that is linked may insist on it. "all-major" makes code
# for every generation of GPU that this CUDA knows; GGML_NATIVE=OFF keeps to instructions that other CPUs have too.
ENV CMAKE_ARGS="-DGGML_CUDA=ON -DGGML_NATIVE=OFF -DCMAKE_CUDA_ARCHITECTURES=all-major -DCMAKE_EXE_LINKER_FLAGS=-Wl,--allow-shlib-undefined"

FROM ubuntu:24.04 AS toolchain-cpu
ENV CMAKE_ARGS="-DGGML_NATIVE=OFF"

# hadolint ignore=DL3006
FROM toolchain-${VARIANT} AS builder
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /build
COPY requirements.txt ./
# Without TORCH_INDEX the pinned torch is the CUDA build, also where VARIANT=cpu: it works there and is a few GB larger.
ARG TORCH_INDEX=""
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ -n "$TORCH_INDEX" ]; then \
        grep -oE '^torch(vision)?==[^ ]+' requirements.txt | xargs pip install --index-url "$TORCH_INDEX"; \
    fi \
    && pip install -r requirements.txt

# -- What runs ---------------------------------------------------------------------------------------------------------
FROM nvidia/cuda:${CUDA}-runtime-ubuntu24.04 AS system-cuda
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM ubuntu:24.04 AS system-cpu

# hadolint ignore=DL3006
FROM system-${VARIANT} AS production
# Ubuntu's image has a user of its own with the id 1000.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 python3 tini \
    && rm -rf /var/lib/apt/lists/* \
    && if id ubuntu >/dev/null 2>&1; then userdel --remove ubuntu; fi \
    && useradd --uid 1000 --user-group --create-home --shell /usr/sbin/nologin app
COPY --from=builder /opt/venv /opt/venv
WORKDIR /app
COPY . .
# The code stays root's: what serves requests cannot change it. Volumes that are made here get the owner of these folders.
RUN mkdir -p models logs tmp data \
    && chmod 700 data \
    && chown app:app models logs tmp data \
    && /opt/venv/bin/python -m compileall -q .
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    SWITCHYARD_HOST=0.0.0.0 \
    SWITCHYARD_PORT=5000 \
    SWITCHYARD_MODELS_DIR=/app/models \
    SWITCHYARD_LOGS_DIR=/app/logs \
    SWITCHYARD_TMP_DIR=/app/tmp \
    SWITCHYARD_DATA_DIR=/app/data
USER 1000:1000
VOLUME ["/app/models", "/app/logs", "/app/tmp", "/app/data"]
EXPOSE 5000
# Weights that are missing are fetched before the port is opened, which may take an hour: give --health-start-period then.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 CMD ["python", "deploy/healthcheck.py"]
# tini reaps what a killed process leaves and passes SIGTERM on; the gateway then drains: stop with a grace of 60 seconds.
ENTRYPOINT ["tini", "--", "./start.sh"]
