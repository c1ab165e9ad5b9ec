#!/usr/bin/env bash
# Sets everything up in .venv, trains a classifier undefended and by generative adversarial training, attacks both and
# writes a page. Minutes on two CPU cores after the installation. Words are handed on as settings:
#
#   bash scripts/quickstart.sh
#   bash scripts/quickstart.sh seed=1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

ensure_environment ""
run=runs/quickstart
if [ -f "$run/report.html" ]; then
    before="$run-$(date -r "$run/report.html" +%Y%m%d-%H%M%S)"
    say "keeping the finished run of before as $before"
    mv "$run" "$before"
elif [ -d "$run" ]; then
    say "going on with the unfinished run in $run"
fi
say "training, attacking and measuring: configs/quickstart.yaml into $run"
"$PYTHON" train_gat.py --config configs/quickstart.yaml "$@"
[ -f "$run/report.html" ] || "$PYTHON" -m gat.cli report "$run" >/dev/null
say "done. Open this page: file://$PWD/$run/report.html"
