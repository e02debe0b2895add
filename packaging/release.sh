#!/bin/sh
# Makes a folder that runs anywhere with this system and processor: sh packaging/release.sh FOLDER
#
# In it: the built program, its dependencies at the versions of package-lock.json, a Node of its own in bin/, and a bill of
# materials. Run it after `npm ci`. The machines that it is copied to need neither npm nor the network.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
[ ! -e "$1" ] || { echo "$1 is there already; a release is never changed" >&2; exit 1; }
# npm takes the name in the bill of materials from the folder.
mkdir -p "$1.new/coatcheck"
new=$(cd "$1.new/coatcheck" && pwd)
trap 'rm -rf "$(dirname "$new")"' EXIT

cd "$root"
npm run --silent build
npm pack --silent --ignore-scripts --pack-destination "$new" >/dev/null
cd "$new"
tar -xzf coatcheck-*.tgz --strip-components=1
rm coatcheck-*.tgz
cp "$root/package-lock.json" .
npm ci --silent --omit=dev --ignore-scripts --no-audit --no-fund
# Of what is there; --omit=dev would leave out what development needs as well.
npm pkg delete devDependencies
rm package-lock.json
npm sbom --sbom-format=cyclonedx >sbom.cdx.json
mkdir bin
cp -L "$root/node_modules/.bin/node" bin/node
cp "$root/packaging/coatcheck.sh" bin/coatcheck
chmod -R u=rwX,go=rX .
chmod 755 bin/coatcheck
cd "$root"
mv "$new" "$1"
echo "$("$1/bin/coatcheck" --version) is in $1"
