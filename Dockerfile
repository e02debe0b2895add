# Built to JavaScript in one stage, the dependencies to run it in another; the image has these two and Node, no more.
#
#   docker build --build-arg REVISION="$(git rev-parse HEAD)" -t coatcheck .
#   docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges -v ./coatcheck.yaml:/etc/coatcheck/coatcheck.yaml:ro coatcheck
#
# Memory: 512 MiB for one process; with `workers`, so much for each and for the one that keeps them (docs/operations.md).
ARG NODE_IMAGE=node:26-slim

FROM ${NODE_IMAGE} AS dependencies
# npm takes the name in the bill of materials from the folder.
WORKDIR /build/coatcheck
COPY package.json package-lock.json ./
RUN npm ci --omit=dev --ignore-scripts --no-audit --no-fund
# Of what is there: --omit=dev would leave out what development needs as well.
RUN npm pkg delete devDependencies && rm package-lock.json && npm sbom --sbom-format=cyclonedx >sbom.cdx.json

FROM ${NODE_IMAGE} AS build
WORKDIR /build
COPY package.json package-lock.json ./
# No install scripts: the only one is that of the development dependency `node`, which the image has already.
RUN npm ci --ignore-scripts --no-audit --no-fund
COPY tsconfig.json ./
COPY scripts scripts
COPY src src
RUN PATH="$PWD/node_modules/.bin:$PATH" /usr/local/bin/node scripts/build.ts

FROM ${NODE_IMAGE}
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Coatcheck" \
  org.opencontainers.image.description="An observability-first session reverse proxy" \
  org.opencontainers.image.licenses="Apache-2.0" \
  org.opencontainers.image.revision="${REVISION}"
ENV NODE_ENV=production
WORKDIR /app
COPY --from=build /build/package.json ./
COPY --from=dependencies /build/coatcheck/node_modules node_modules
COPY --from=dependencies /build/coatcheck/sbom.cdx.json ./
COPY --from=build /build/dist dist
COPY examples/legacy-shop/server.mjs examples/legacy-shop/server.mjs
COPY LICENSE ./
# The default store is a file: it belongs on a volume.
RUN mkdir /data && chown 1000:1000 /data
# A number: Kubernetes cannot tell of a name whether it is root's.
USER 1000:1000
WORKDIR /data
VOLUME /data
EXPOSE 8080 9090
# Whether the process is alive, not whether the store is: a restart would not bring the store back. It asks the admin
# listener inside the container; set ADMIN_PORT when admin.port is another.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
  CMD ["node", "-e", "fetch('http://127.0.0.1:' + (process.env.ADMIN_PORT || 9090) + '/livez').then((r) => process.exit(r.ok ? 0 : 1), () => process.exit(1))"]
# Node is process 1 and handles SIGTERM and SIGINT itself. Its only children are its own workers, which it reaps.
STOPSIGNAL SIGTERM
ENTRYPOINT ["node", "/app/dist/main.js"]
CMD ["--config", "/etc/coatcheck/coatcheck.yaml"]
