# meddaemon with its built-in model, on the CPU.
FROM python:3.11-slim

# Where the CPU build of PyTorch is; the registry's own build brings several GB of CUDA libraries. For a GPU, give an
# index with a CUDA build: --build-arg TORCH_INDEX=...
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

# Letters of every script that results may be labelled in.
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
    fonts-dejavu-core fonts-droid-fallback fonts-tlwg-loma-ttf libfribidi0 \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/meddaemon
COPY config/constraints.txt config/
RUN pip install -c config/constraints.txt --index-url "$TORCH_INDEX" torch
COPY pyproject.toml README.md LICENSE ./
COPY alembic alembic
COPY meddaemon meddaemon
RUN pip install -c config/constraints.txt '.[brain,postgres]'
COPY config /etc/meddaemon

# The store is the only place that the daemon writes to, besides /tmp.
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin meddaemon \
 && install -d -o meddaemon -g meddaemon -m 0700 /var/lib/meddaemon
USER 10001
VOLUME /var/lib/meddaemon

# Inside a container every interface is the container's own: what is published decides who reaches it.
ENV HOME=/tmp \
    MEDDAEMON_CONFIG=/etc/meddaemon/meddaemon.toml \
    MEDDAEMON_STORE__DIRECTORY=/var/lib/meddaemon \
    MEDDAEMON_LISTENER__HOST=0.0.0.0
EXPOSE 11112 2762

HEALTHCHECK --interval=60s --timeout=30s --start-period=60s CMD ["meddaemon", "doctor", "--no-network"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["meddaemon"]
CMD ["serve"]
