#!/usr/bin/env bash
# check.sh FOLDER: whether what install.sh has put there fits together; ends the build where it does not.
set -euo pipefail
bin=$1/bin
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"$bin/python" -m pip check
"$bin/python" -c 'import boto3, flask_wtf, open_clip, psycopg2'
"$bin/raverse" doctor --config digits --set "storage.root=$scratch"
