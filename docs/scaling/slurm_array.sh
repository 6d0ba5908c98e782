#!/bin/bash
# Folds times trainers as single SLURM jobs, without Ray: each trains one fold on one GPU.
#   sbatch --array=0-14 slurm_array.sh CAMUS UNetTrainer PKEchoNetTrainer E3SAM2Trainer
# With 5 folds: the array goes from 0 to 5 x trainers - 1. A job that runs out of time puts itself back into the queue.
#SBATCH --job-name=echoplan
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=9
#SBATCH --gpus=1
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
#SBATCH --output=echoplan_%A_%a.out
set -u

# Change these two: the environment that has echoplan, and the folders on the disk that all nodes share.
source "$HOME/echoplan/venv/bin/activate"
export ECHOPLAN_ROOT=${ECHOPLAN_ROOT:-$HOME/echoplan}

folds=${FOLDS:-5}
dataset=$1
trainers=("${@:2}")
trainer=${trainers[SLURM_ARRAY_TASK_ID / folds]}
fold=$((SLURM_ARRAY_TASK_ID % folds))

status=0
srun echoplan_train "$dataset" "$fold" -tr "$trainer" -np "$((SLURM_CPUS_PER_TASK - 1))" --c || status=$?
# 75: the training heard SIGTERM and saved itself. SLURM says 143 where it ended the step itself.
if [ "$status" -eq 75 ] || [ "$status" -eq 143 ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$status"
