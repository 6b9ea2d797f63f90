# CPU image of the server: non-root, and its root file system may be read-only. Build and run:
#   docker build -t mfalcon .
#   docker run --read-only -p 50051:50051 -p 8080:8080 -v "$PWD/checkpoints/ml-100k-dfgr:/checkpoint:ro" mfalcon

# The fused kernel in every form that an x86 server may run; a server loads the one that its processor has.
FROM python:3.11-slim AS kernel
# (hadolint wants a version; the distribution's g++ is the one that fits its libgomp below.)
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY kernels/__init__.py kernels/
COPY kernels/cpu/__init__.py kernels/cpu/build_library.py kernels/cpu/
COPY kernels/cpu/src kernels/cpu/src
RUN python -m kernels.cpu.build_library --require

FROM python:3.11-slim

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore

# Index to take torch from: where pip's own has only the CUDA build, name PyTorch's index of CPU wheels.
ARG TORCH_INDEX=""
# (hadolint takes the index for a package without a version.)
# hadolint ignore=DL3013
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0

# An editable install records only the path /app: the dependencies make a layer that a change of the code leaves alone.
WORKDIR /app
COPY LICENSE hatch_build.py pyproject.toml ./
COPY mfalcon/__init__.py mfalcon/
RUN pip install -e . \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin mfalcon
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY kernels kernels
COPY --from=kernel /app/kernels/cpu/build kernels/cpu/build
COPY client client
COPY loadtest loadtest
COPY mfalcon mfalcon
COPY proto proto
COPY server server
RUN python -m compileall -q .

USER 10001:10001
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MFALCON_GRPC_HOST=0.0.0.0 \
    MFALCON_HTTP_HOST=0.0.0.0
EXPOSE 50051 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('MFALCON_HTTP_PORT', '8080') + '/readyz', timeout=2)"]
ENTRYPOINT ["mfalcon", "serve", "--checkpoint", "/checkpoint"]
