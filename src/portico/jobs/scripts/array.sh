#!/bin/bash
# Many tasks of the same kind: ask for an array, 1-10 say. Each task has its number in SLURM_ARRAY_TASK_ID.
set -euo pipefail

echo "Task $SLURM_ARRAY_TASK_ID of job $SLURM_ARRAY_JOB_ID on $(hostname)"
sleep 5
