# Images of the server, non-root; their root may be read-only, /cache is what they write to.
#   docker build -t mfalcon --build-arg TORCH_INDEX=… .        cpu, the default; the index of PyTorch's CPU wheels
#   docker build -t mfalcon:cuda --target cuda .               an NVIDIA GPU
#   docker run --read-only -p 50051:50051 -p 8080:8080 mfalcon                                  a demo checkpoint
#   docker run --read-only -p 50051:50051 -p 8080:8080 -v "$PWD/checkpoints/mine:/checkpoint:ro" mfalcon
# Packages are those of deploy/image/*.txt, to the hash (`make lock` writes them again).

# Of the manifest list, so it is the same for every architecture.
ARG BASE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

# The fused kernel in every form that an x86 server may run; a server loads the one that its processor has.
FROM ${BASE} AS kernel
# (hadolint wants a version; the distribution's g++ is the one that fits its libgomp below.)
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY kernels/__init__.py kernels/
COPY kernels/cpu/__init__.py kernels/cpu/build_library.py kernels/cpu/
COPY kernels/cpu/src kernels/cpu/src
RUN python3 -m kernels.cpu.build_library --require

# An environment that holds the packages and not even pip.
FROM ${BASE} AS packages
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
COPY deploy/image/requirements.txt /locks/
RUN python3 -m venv --without-pip /opt/mfalcon \
    && python3 -m pip --python /opt/mfalcon install --require-hashes --no-deps -r /locks/requirements.txt

# Of torch, headers and test programs are for those who build on it.
FROM packages AS packages-cpu
ARG TORCH_INDEX=""
COPY deploy/image/torch-cpu.txt /locks/
RUN python3 -m pip --python /opt/mfalcon install --require-hashes --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
      -r /locks/torch-cpu.txt \
    || { echo "pip's index has no CPU build of torch: --build-arg TORCH_INDEX=… names PyTorch's index of CPU wheels" >&2; exit 1; } \
    && torch=/opt/mfalcon/lib/python3.11/site-packages/torch && rm -rf "$torch/include" "$torch/test" \
    && find "$torch/bin" -type f ! -name torch_shm_manager -delete

FROM packages AS packages-cuda
COPY deploy/image/torch-cuda.txt /locks/
RUN python3 -m pip --python /opt/mfalcon install --require-hashes --no-deps -r /locks/torch-cuda.txt

# What the images hold, in a form that scanners read (CycloneDX).
FROM ${BASE} AS sbom-tool
COPY deploy/image/sbom.txt /locks/
RUN python3 -m venv /opt/sbom \
    && /opt/sbom/bin/pip install --no-cache-dir --require-hashes --no-deps -r /locks/sbom.txt

FROM sbom-tool AS sbom-cpu
COPY --from=packages-cpu /opt/mfalcon /opt/mfalcon
RUN /opt/sbom/bin/cyclonedx-py environment --output-reproducible -o /sbom.json /opt/mfalcon

FROM sbom-tool AS sbom-cuda
COPY --from=packages-cuda /opt/mfalcon /opt/mfalcon
RUN /opt/sbom/bin/cyclonedx-py environment --output-reproducible -o /sbom.json /opt/mfalcon

# The demo checkpoint: trained here, in seconds, on made-up ratings. It shows how the server answers, not how well.
FROM packages-cpu AS demo
WORKDIR /app
COPY kernels kernels
COPY mfalcon mfalcon
COPY proto proto
COPY server server
RUN /opt/mfalcon/bin/python -m mfalcon.cli train --data synthetic --out /checkpoint --epochs 4 --threads 1 --seed 0 \
    && echo "a demo, trained on made-up ratings; mount your own checkpoint: -v DIRECTORY:/checkpoint:ro" >/checkpoint/NOTE

# The code that serves, compiled to bytecode, without what trains.
FROM packages AS tree
WORKDIR /app
COPY LICENSE ./
COPY kernels kernels
COPY --from=kernel /app/kernels/cpu/build kernels/cpu/build
COPY mfalcon mfalcon
COPY proto proto
COPY server server
RUN rm -rf mfalcon/train && python3 -m compileall -q .

FROM ${BASE} AS runtime
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /cache --shell /usr/sbin/nologin mfalcon \
    && install --directory --owner 10001 --group 10001 /cache
COPY --from=tree /app /app
WORKDIR /app
USER 10001:10001
# Sockets of the front-ends and kernels that Triton compiles lie in /cache; a container without a mount there gets one.
VOLUME ["/cache"]
# It listens beyond the container, so it wants to know who may ask: MFALCON_TOKENS_FILE, clients' certificates, or
# MFALCON_INSECURE=true where every member of the network may do everything. Who runs it says which.
ENV PATH=/opt/mfalcon/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/cache \
    TMPDIR=/cache \
    TRITON_CACHE_DIR=/cache/triton \
    MFALCON_CHECKPOINT=/checkpoint \
    MFALCON_GRPC_HOST=0.0.0.0 \
    MFALCON_HTTP_HOST=0.0.0.0
EXPOSE 50051 8080
# On the metrics' port where there is one: there a client without a certificate may ask too.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, ssl, urllib.request as r; e = os.environ.get; r.urlopen(('https' if e('MFALCON_TLS_CERT_FILE') else 'http') + '://127.0.0.1:' + (e('MFALCON_METRICS_PORT') or e('MFALCON_HTTP_PORT', '8080')) + '/readyz', timeout=2, context=ssl._create_unverified_context())"]
STOPSIGNAL SIGTERM
# No shell between: the server is process 1 and gets the signal itself.
ENTRYPOINT ["python", "-m", "mfalcon.cli", "serve"]
ARG VERSION=""
ARG REVISION=""
LABEL org.opencontainers.image.title="mfalcon" \
      org.opencontainers.image.description="An online ranking inference server for generative rankers" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# No checkpoint is bundled: mount one, and hand the GPU over (--gpus all). This image alone has a C compiler: at its
# first launch Triton compiles its bridge to the driver, which is not here while an image is built.
FROM runtime AS cuda
USER 0:0
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
USER 10001:10001
COPY --from=packages-cuda /opt/mfalcon /opt/mfalcon
COPY --from=sbom-cuda /sbom.json /app/sbom.json
ENV MFALCON_DEVICE=cuda MFALCON_DTYPE=bfloat16

FROM runtime AS cpu
COPY --from=packages-cpu /opt/mfalcon /opt/mfalcon
COPY --from=sbom-cpu /sbom.json /app/sbom.json
COPY --from=demo /checkpoint /checkpoint
