# The worker on CUDA 13: built once, its kernels compiled ahead for every supported GPU, run as nobody in particular.
#
#   docker build -t worker-orcd .
#   docker run --gpus all -p 8080:8080 -v /models:/models:ro worker-orcd --model /models/model.gguf
#
# Everything that is a flag is also a variable: -e WORKER_ORCD_MAX_BATCH=32.

ARG CUDA_IMAGE=nvidia/cuda:13.0.1-runtime-ubuntu24.04
ARG RUST_IMAGE=rust:1.90-bookworm

FROM ${RUST_IMAGE} AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/src/target --mount=type=cache,target=/usr/local/cargo/registry \
    cargo build --release --locked && install -Dm755 target/release/worker-orcd /out/worker-orcd

# The runtime image has NVRTC, the compiler of kernels, and nothing else of the toolkit is needed.
FROM ${CUDA_IMAGE}
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libvulkan1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/worker-orcd /usr/local/bin/worker-orcd
COPY LICENSE-APACHE LICENSE-MIT /usr/share/doc/worker-orcd/

ENV WORKER_ORCD_CACHE_DIR=/var/cache/worker-orcd \
    WORKER_ORCD_HOST=0.0.0.0 \
    WORKER_ORCD_PORT=8080 \
    HF_HOME=/var/lib/worker-orcd
RUN worker-orcd kernels --build \
    && install -d -o 65532 -g 65532 /var/lib/worker-orcd \
    && chown -R 65532:65532 /var/cache/worker-orcd

USER 65532:65532
WORKDIR /var/lib/worker-orcd
EXPOSE 8080
STOPSIGNAL SIGTERM
# A model that loads is not unhealthy yet: failures count from the end of the start period on.
HEALTHCHECK --interval=5s --timeout=4s --start-period=10m --start-interval=2s --retries=3 \
    CMD ["worker-orcd", "health"]
ENTRYPOINT ["worker-orcd"]
CMD ["serve", "--model", "/models/model.gguf"]

LABEL org.opencontainers.image.title="worker-orcd" \
      org.opencontainers.image.description="One process, one GGUF model, one GPU: streams tokens over HTTP" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
