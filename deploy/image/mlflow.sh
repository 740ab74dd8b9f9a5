#!/usr/bin/env bash
# Starts MLflow on PostgreSQL: in the image, in the local stack, in the tests.
#   POSTGRES_PASSWORD        of the user and the database `mlflow`
#   ARTIFACTS                s3://..., gs://... or a folder: where pictures and models go
#   DATABASE_HOST, DATABASE_PORT, HOST, PORT, ALLOWED_HOSTS
#   AUTHENTICATION           basic-auth: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are asked for
set -euo pipefail
: "${POSTGRES_PASSWORD:?is not set}" "${ARTIFACTS:?is not set}"
umask 077

database="postgresql+psycopg2://mlflow:${POSTGRES_PASSWORD}@${DATABASE_HOST:-127.0.0.1}:${DATABASE_PORT:-5432}/mlflow"
# By the environment and a private file: a command line can be read by every process.
export MLFLOW_BACKEND_STORE_URI="$database"
# Nothing here runs jobs in the server; without them it starts sooner and can do less.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true
options=(--host "${HOST:-127.0.0.1}" --port "${PORT:-5000}" --workers "${WORKERS:-2}" --artifacts-destination "$ARTIFACTS")
if [ -n "${ALLOWED_HOSTS:-}" ]; then
    options+=(--allowed-hosts "$ALLOWED_HOSTS")
fi
if [ -n "${AUTHENTICATION:-}" ]; then
    : "${MLFLOW_TRACKING_USERNAME:?is not set}" "${MLFLOW_TRACKING_PASSWORD:?is not set}" "${MLFLOW_FLASK_SERVER_SECRET_KEY:?is not set}"
    MLFLOW_AUTH_CONFIG_PATH=$(mktemp)
    export MLFLOW_AUTH_CONFIG_PATH MLFLOW_AUTH_ADMIN_PASSWORD="$MLFLOW_TRACKING_PASSWORD"
    printf '%s\n' '[mlflow]' 'default_permission = READ' "database_uri = $database" \
        "admin_username = $MLFLOW_TRACKING_USERNAME" 'auth_cache_ttl_seconds = 60' \
        'authorization_function = mlflow.server.auth:authenticate_request_basic_auth' >"$MLFLOW_AUTH_CONFIG_PATH"
    options+=(--app-name "$AUTHENTICATION")
fi
exec mlflow server "${options[@]}"
