#!/bin/sh
# /usr/local/bin/coatcheck: the installed version, on the Node that was installed with it.
exec /opt/coatcheck/current/node_modules/.bin/node /opt/coatcheck/current/node_modules/coatcheck/dist/main.js "$@"
