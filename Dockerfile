# One image for workers, gateways and Flower. The NVIDIA container runtime brings the driver; CUDA's compiler and libraries
# come as wheels with the cuda13 extra (`--build-arg CUDA=cuda12` for older drivers, `CUDA=` for an image without CUDA,
# whose workers run on the CPU).
FROM python:3.12-slim-bookworm AS build

ARG CUDA=cuda13
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/orcd
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY orcd orcd
COPY tasks tasks
COPY worker worker
COPY kernels kernels
RUN /opt/orcd/bin/pip install ".[${CUDA:-worker},flower,gateway]"

FROM python:3.12-slim-bookworm

ENV PATH=/opt/orcd/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    XDG_CACHE_HOME=/cache \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# /cache keeps compiled kernels and models from the Hub. It and /tmp are all that is written to, so the root file system
# can be read-only.
RUN useradd --create-home --uid 10001 orcd && install -d -o orcd -g orcd /cache
COPY --from=build /opt/orcd /opt/orcd
USER orcd
WORKDIR /home/orcd
VOLUME /cache

# Of a worker; gateways and Flower have checks of their own in compose.yaml.
ENV ORCD_METRICS_HOST=0.0.0.0 \
    ORCD_METRICS_PORT=9090
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:9090/health/live', timeout=4)"]

CMD ["orcd", "worker"]
