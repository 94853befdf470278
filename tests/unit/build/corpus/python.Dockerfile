# syntax=docker/dockerfile:1.7
ARG PYTHON_VERSION=3.12
ARG BASE=python:${PYTHON_VERSION}-slim-bookworm

FROM ${BASE} AS builder
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    VIRTUAL_ENV=/opt/venv
ENV PATH="$VIRTUAL_ENV/bin:$PATH"
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt,sharing=locked \
    apt-get update \
    # build dependencies only
    && apt-get install -y --no-install-recommends \
        build-essential \
        libpq-dev \
    && rm -rf /tmp/*
WORKDIR /src
COPY pyproject.toml README.md ./
COPY src ./src
RUN python -m venv "$VIRTUAL_ENV" && pip install .[prod]

FROM ${BASE} AS runtime
LABEL org.opencontainers.image.source="https://example.org/app" \
      org.opencontainers.image.licenses=MIT
RUN groupadd --gid 1000 app && useradd --uid 1000 --gid app --create-home app
COPY --from=builder --chown=app:app /opt/venv /opt/venv
USER app
EXPOSE 8000/tcp
HEALTHCHECK --interval=30s --timeout=3s --start-period=10s CMD ["python", "-c", "import urllib.request"]
STOPSIGNAL SIGINT
ENTRYPOINT ["/opt/venv/bin/gunicorn"]
CMD ["--bind", "0.0.0.0:8000", "app.wsgi"]
