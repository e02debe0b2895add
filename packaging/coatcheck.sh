#!/bin/sh
# bin/coatcheck of a release: the program beside it, on the Node beside it. It may be linked to from anywhere.
here=$(dirname "$(readlink -f "$0")")
exec "$here/node" "$here/../dist/main.js" "$@"
