# Sourced by train.sh and eval.sh; runs on Linux and macOS.

# launch ENTRY CONFIG [GPUS] [arguments...]: with python for one process, with torchrun for several.
launch() {
  local entry=$1
  shift
  if [ $# -lt 1 ] || [ "$1" = --help ] || [ "$1" = -h ]; then
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"
    exit $(( $# < 1 ? 2 : 0 ))
  fi
  local config=$1 processes root python=python
  shift
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  [ -x "$root/.venv/bin/python" ] && python=$root/.venv/bin/python
  if [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; then
    processes=$1
    shift
  else
    processes=$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')
  fi

  # Each process gets its share of the cores.
  local share=$(( $(getconf _NPROCESSORS_ONLN) / processes ))
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( share > 0 ? share : 1 ))}
  if [ "$processes" -eq 1 ]; then
    exec "$python" "$root/$entry" "$config" "$@"
  fi
  # --standalone chooses a free port.
  exec "$python" -m torch.distributed.run --standalone --nproc_per_node="$processes" "$root/$entry" "$config" "$@"
}
