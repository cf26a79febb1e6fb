FROM python:3.11-slim AS build
WORKDIR /source
COPY . .
RUN python -m venv --without-pip /opt/signoff
RUN pip --python /opt/signoff/bin/python install --no-cache-dir --constraint .ci/constraints.txt ".[otel]"

FROM python:3.11-slim
RUN useradd --system --uid 10001 --create-home --home-dir /data signoff
COPY --from=build /opt/signoff /opt/signoff
# A server and a worker both answer probes on 8080; publish it under another port if need be.
ENV PATH=/opt/signoff/bin:$PATH \
    SIGNOFF_HOST=0.0.0.0 \
    SIGNOFF_PORT=8080 \
    SIGNOFF_WORKER_PORT=8080
USER signoff
# signoff.db and signoff.key are made here, unless the settings say otherwise.
WORKDIR /data
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
ENTRYPOINT ["signoff"]
CMD ["serve"]
