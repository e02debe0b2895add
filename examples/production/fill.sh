#!/bin/sh
# Writes the files of every machine, filled in: sh fill.sh FOLDER [NETWORK]
#
# FOLDER/secrets.env holds the secrets. It is made at the first run, and kept at each further one. NETWORK is what takes the
# place of 10.0.0 in the addresses.
set -eu
umask 077
here=$(cd "$(dirname "$0")" && pwd)
folder=$1
network=${2:-10.0.0}
mkdir -p "$folder"

secrets=$folder/secrets.env
if [ ! -e "$secrets" ]; then
  for name in COATCHECK_SECRET COATCHECK_ENCRYPTION_KEY COATCHECK_ADMIN_TOKEN \
    REDIS_PASSWORD REPLICA_PASSWORD SENTINEL_PASSWORD SENTINEL_ACCESS_PASSWORD OPERATOR_PASSWORD; do
    echo "$name=$(openssl rand -hex 32)"
  done >"$secrets.new"
  mv "$secrets.new" "$secrets"
fi
. "$secrets"

# fill ADDRESS FILE PLACE: secrets reach sed by its input, not by its arguments, which everybody on a machine can see.
fill() {
  mkdir -p "$(dirname "$folder/$3")"
  {
    echo "s/@ADDRESS@/$1/g"
    echo "s/10\\.0\\.0\\./$network./g"
    sed 's/^\([A-Z_]*\)=\(.*\)$/s\/@\1@\/\2\/g/' "$secrets"
  } | sed -f - "$here/$2" >"$folder/$3"
}

for n in 1 2; do
  fill "10.0.0.1$n" coatcheck.yaml "gw-$n/etc/coatcheck/coatcheck.yaml"
  fill "10.0.0.1$n" coatcheck.env "gw-$n/etc/coatcheck/coatcheck.env"
done
for n in 1 2 3; do
  for file in redis.conf sentinel.conf users.acl; do
    fill "10.0.0.2$n" "$file" "redis-$n/etc/redis/$file"
  done
  [ "$n" = 1 ] || printf '\nreplicaof %s.21 6379\n' "$network" >>"$folder/redis-$n/etc/redis/redis.conf"
done
fill 10.0.0.10 haproxy.cfg lb/etc/haproxy/haproxy.cfg
fill 10.0.0.30 prometheus.yml monitor/etc/prometheus/prometheus.yml
printf %s "$COATCHECK_ADMIN_TOKEN" >"$folder/monitor/etc/prometheus/coatcheck-token"
mkdir -p "$folder/monitor/etc/prometheus/coatcheck"
cp "$here/../../grafana/prometheus/rules.yaml" "$here/../../grafana/prometheus/alerts.yaml" "$folder/monitor/etc/prometheus/coatcheck/"
echo "The files of lb, gw-1, gw-2, redis-1, redis-2, redis-3 and monitor are in $folder."
