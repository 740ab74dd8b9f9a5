#!/usr/bin/env bash
# install.sh FOLDER [TORCH_INDEX]: raverse and all it needs, in the versions of constraints.txt, into a virtual
# environment; torch and torchvision from TORCH_INDEX, if one is given. The checkout stays where it is and is used.
set -euo pipefail
folder=$1
torch_index=${2:-}
checkout=$(cd "$(dirname "$0")/../.." && pwd)

python3 -m venv "$folder"
install=("$folder/bin/python" -m pip install --no-cache-dir --disable-pip-version-check --quiet --constraint "$checkout/constraints.txt")
if [ -n "$torch_index" ]; then
    "${install[@]}" --index-url "$torch_index" torch torchvision
fi
"${install[@]}" --editable "$checkout[server]"
