#!/bin/bash
# One program on one core.
set -euo pipefail

echo "Began on $(hostname) at $(date)"
sleep 10
echo "Ended at $(date)"
