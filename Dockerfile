# docker build -t emend .
# docker run --rm -p 127.0.0.1:8399:8399 -v emend-cache:/home/emend/.cache emend doctor

FROM rust:1-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin emend

FROM debian:bookworm-slim
RUN useradd --create-home --uid 10001 emend \
    && mkdir -p /home/emend/.cache \
    && chown emend:emend /home/emend/.cache
COPY --from=build /src/target/release/emend /usr/local/bin/emend
USER emend
WORKDIR /home/emend
# Models, data sets and, under EMEND_MODELS, models by name: kept when the container goes.
VOLUME /home/emend/.cache
EXPOSE 8399
ENTRYPOINT ["emend"]
CMD ["--help"]
