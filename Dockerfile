# One image for the worker and for Flower. The NVIDIA container runtime brings the driver; CUDA's compiler and libraries
# come as wheels with the cuda13 extra (`--build-arg CUDA=cuda12` for older drivers, `CUDA=` for a CPU-only image).
FROM python:3.12-slim-bookworm

ARG CUDA=cuda13
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY orcd orcd
COPY tasks tasks
COPY worker worker
COPY kernels kernels
RUN pip install ".[${CUDA:-worker},flower]" && rm -rf /src/*

RUN useradd --create-home --uid 10001 orcd
USER orcd
WORKDIR /home/orcd

# Of a worker; Flower has a check of its own in compose.yaml.
ENV ORCD_METRICS_HOST=0.0.0.0 \
    ORCD_METRICS_PORT=9090
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:9090/health/live', timeout=4)"]

CMD ["orcd", "worker"]
