# shellcheck shell=bash
# Sourced by the launchers for NVIDIA GPUs: adds to XLA_FLAGS what is not set there already, so a
# flag of your own wins. Nothing here has been timed by this project; measure with --profile.
#   . launch/xla_gpu.sh
# DETERMINISTIC=1: only kernels that give the same bits every time, slower. Without it a run that
# was stopped and went on may differ from an undisturbed one in the last digits.
flags=(
  # Collectives run while the GPU computes.
  # https://docs.nvidia.com/jax-toolbox/environment-variables
  --xla_gpu_enable_latency_hiding_scheduler=true
  # Small collectives are joined up to this size, which should hold at least the weights of a layer:
  # https://docs.jax.dev/en/latest/gpu_performance_tips.html. 128 MiB hold two to four residual
  # blocks of the ImageNet UNet; the size is ours.
  --xla_gpu_all_gather_combine_threshold_bytes=134217728
  --xla_gpu_reduce_scatter_combine_threshold_bytes=134217728
  --xla_gpu_all_reduce_combine_threshold_bytes=134217728
)
if [ "${DETERMINISTIC:-0}" = 1 ]; then
  # https://openxla.org/xla/determinism. The choice of kernels by timing is kept by the compilation
  # cache of the workdir, so a restart has the same ones.
  flags+=(--xla_gpu_exclude_nondeterministic_ops=true)
fi
for flag in "${flags[@]}"; do
  case " ${XLA_FLAGS:-} " in
    *" ${flag%%=*}="*) ;;
    *) XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }$flag" ;;
  esac
done
export XLA_FLAGS
# JAX takes three quarters of the memory unless told otherwise.
# https://docs.nvidia.com/jax-toolbox/performance-profiling/gpu-performance
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
