#!/bin/sh
# Gives the two logins their passwords, from files: never on a command line, which `ps` shows, nor in the environment.
set -eu
: "${SECRETS:=/run/secrets}"
for name in owner-password database-password; do
  test -s "$SECRETS/$name" || { echo "$SECRETS/$name is empty or absent" >&2; exit 1; }
done
export SECRETS
psql --no-psqlrc -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\set owner `cat "$SECRETS/owner-password"`
\set daemon `cat "$SECRETS/database-password"`
SET password_encryption = 'scram-sha-256';
SET log_statement = 'none';
SET log_min_duration_statement = -1;
ALTER ROLE wbcd_owner PASSWORD :'owner';
ALTER ROLE wbcd_daemon PASSWORD :'daemon';
SQL
