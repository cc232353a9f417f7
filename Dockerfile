# The server's image: `sandboxd serve`, `gateway`, `migrate` and `sweep`. The sandbox's and the agent's images are others.
# There is no container engine on the machines this was written on: its steps were run by hand, the build itself was not.
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy
WORKDIR /build
COPY tools/uv.lock.txt tools/
RUN pip install --no-cache-dir --require-hashes -r tools/uv.lock.txt
COPY requirements-server.lock ./
RUN uv venv /opt/sandboxd \
 && uv pip sync --no-cache --require-hashes --python /opt/sandboxd/bin/python requirements-server.lock
COPY requirements.lock ./
RUN uv venv .venv && uv pip sync --no-cache --require-hashes --python .venv/bin/python requirements.lock
COPY . .
RUN .venv/bin/python tools/generate_protos.py \
 && uv build --no-cache --wheel --no-build-isolation --python .venv/bin/python --out-dir dist \
 && uv pip install --no-cache --no-deps --python /opt/sandboxd/bin/python dist/*.whl \
 && /opt/sandboxd/bin/python -m compileall -q /opt/sandboxd/lib

FROM python:${PYTHON}
RUN useradd --uid 65532 --no-create-home --shell /usr/sbin/nologin sandboxd
COPY --from=build /opt/sandboxd /opt/sandboxd
ENV PATH=/opt/sandboxd/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
ENTRYPOINT ["sandboxd"]
CMD ["serve"]
