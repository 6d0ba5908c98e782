#!/bin/bash
# One Ray cluster over the nodes of one SLURM job, and one EchoPlan command on it:
#   sbatch slurm_ray.sh echoplan_train CAMUS all -tr UNetTrainer PKEchoNetTrainer --c
# The same submitted again goes on where the job ended: behind --c finished folds are skipped, started ones resumed.
#SBATCH --job-name=echoplan
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --exclusive
#SBATCH --signal=TERM@120
#SBATCH --output=echoplan_%j.out
set -u

# Change these two: the environment that has echoplan[ray], and the folders on the disk that all nodes share.
source "$HOME/echoplan/venv/bin/activate"
export ECHOPLAN_ROOT=${ECHOPLAN_ROOT:-$HOME/echoplan}

export RAY_USAGE_STATS_ENABLED=0
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))

# symmetric-run (Ray 2.49 and later) starts Ray on every node, runs the command on the first, and stops Ray at its end.
srun ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" \
    -- "$@" --engine ray --address auto
