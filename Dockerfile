# The server's image: every role of `sandboxd` but the agent's. The sandbox's and the agent's images are in images/.
#   docker build .                                    (from the repository; here: make images)
# It runs as nobody's uid and writes nothing but below SANDBOXD_DATA_DIR and /tmp: mount its root read-only.
ARG BASE=debian:trixie-slim

FROM ${BASE} AS build
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends -o Dpkg::Options::=--force-unsafe-io \
      ca-certificates python3 python3-pip python3-venv > /dev/null \
 && rm -rf /var/lib/apt/lists/*
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy
WORKDIR /build
COPY tools/uv.lock.txt tools/
COPY requirements.lock ./
# The secret `certificates` is for networks that look into TLS: a bundle that names their authority. None is fine.
RUN --mount=type=secret,id=certificates,required=false \
    if [ -s /run/secrets/certificates ]; then export PIP_CERT=/run/secrets/certificates SSL_CERT_FILE=/run/secrets/certificates; fi \
 && python3 -m venv /opt/uv \
 && /opt/uv/bin/pip install --quiet --no-cache-dir --require-hashes -r tools/uv.lock.txt \
 && /opt/uv/bin/uv venv --quiet .venv \
 && /opt/uv/bin/uv pip sync --quiet --no-cache --require-hashes --python .venv/bin/python requirements.lock
COPY requirements-server.lock ./
RUN --mount=type=secret,id=certificates,required=false \
    if [ -s /run/secrets/certificates ]; then export SSL_CERT_FILE=/run/secrets/certificates; fi \
 && /opt/uv/bin/uv venv --quiet /opt/sandboxd \
 && /opt/uv/bin/uv pip sync --quiet --no-cache --require-hashes --python /opt/sandboxd/bin/python requirements-server.lock \
 && /opt/sandboxd/bin/python -m compileall -q -j 2 /opt/sandboxd/lib
COPY README.md LICENSE pyproject.toml alembic.ini ./
COPY alembic alembic
COPY third_party third_party
COPY tools tools
COPY proto proto
COPY src src
RUN .venv/bin/python tools/generate_protos.py \
 && /opt/uv/bin/uv build --quiet --no-cache --wheel --no-build-isolation --python .venv/bin/python --out-dir dist \
 && /opt/uv/bin/uv pip install --quiet --no-cache --no-deps --python /opt/sandboxd/bin/python dist/*.whl \
 && /opt/sandboxd/bin/python -m compileall -q -j 2 /opt/sandboxd/lib/python3*/site-packages/sandboxd

FROM ${BASE}
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends -o Dpkg::Options::=--force-unsafe-io \
      ca-certificates python3 restic > /dev/null \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 65532 --user-group --no-create-home --shell /usr/sbin/nologin sandboxd \
 && install -d -o 65532 -g 65532 /var/lib/sandboxd
COPY --from=build /opt/sandboxd /opt/sandboxd
ENV PATH=/opt/sandboxd/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 SANDBOXD_DATA_DIR=/var/lib/sandboxd
USER 65532:65532
WORKDIR /var/lib/sandboxd
ENTRYPOINT ["sandboxd"]
CMD ["serve"]
