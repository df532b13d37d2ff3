#!/usr/bin/env bash
# Published data into dataset/stable, with size and licence told first; without a name the list of what there is:
#
#   bash run_file/data.sh                  # the list
#   bash run_file/data.sh minimind trex    # what run_file/experiment_*.sh read
#   bash run_file/data.sh my_folder        # your own: what it holds, and which flag to give it to
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
DATA_COMMAND="bash run_file/data.sh" exec "$PYTHON" -m dataset.fetch "$@"
