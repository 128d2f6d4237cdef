#!/bin/bash
# One program on several nodes at once: ask for nodes and tasks. srun starts it once for each task.
set -euo pipefail

srun hostname
