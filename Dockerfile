# Serves one collection, mounted read-only at /collection, on port 8000:
#
#   docker build -t surematch .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/collections/support:/collection:ro" surematch
#
# EXTRAS=onnx (default) serves collections of the static encoder and of neural encoders that were exported to ONNX when
# the collection was built, which is the default there. `--build-arg EXTRAS=onnx,transformers` adds torch, larger than
# all the rest, for collections built with `--backend torch`. Where pip's default torch carries CUDA libraries, pass the
# CPU wheels' index of pytorch.org: `--build-arg TORCH_ARGS="--index-url ..."`.
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
ARG EXTRAS=onnx
ARG TORCH_ARGS=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
COPY constraints.txt ./
RUN if echo "$EXTRAS" | grep -q transformers; then pip install -c constraints.txt ${TORCH_ARGS} torch==2.13.0; fi
# The dependencies change rarely, the code often: empty packages first, so that the large layer is reused.
COPY pyproject.toml README.md ./
RUN mkdir simplex index training service \
 && pip install -c constraints.txt ".[${EXTRAS}]" \
 && pip uninstall -y surematch
COPY simplex simplex
COPY index index
COPY service service
COPY training training
RUN pip install --no-deps --target /opt/surematch . \
 && rm -r /opt/surematch/training
# What serving never uses: the installer, and the test suites that numpy, scipy and onnx ship inside their wheels.
RUN find /opt/venv/lib -type d \( -name tests -o -path '*/onnx/backend/test' \) -path '*/site-packages/*' \
      -prune -exec rm -r {} + \
 && pip uninstall -y setuptools pip

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin surematch
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/surematch /opt/surematch
ENV PATH=/opt/surematch/bin:/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/surematch \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    SUREMATCH_PORT=8000
USER 10001:10001
EXPOSE 8000
# Never through a proxy that the environment names. The port is a variable, so that both sides know another
# (a pod with a Service called surematch needs enableServiceLinks: false, or Kubernetes sets this variable).
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
  CMD ["python3", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['SUREMATCH_PORT'] + '/readyz', timeout=2).read()"]
ENTRYPOINT ["surematch"]
# The container is the boundary here, so all of its interfaces are listened on; publish the port to loopback or behind
# a proxy that authenticates.
CMD ["serve", "/collection", "--host", "0.0.0.0", "--public"]
