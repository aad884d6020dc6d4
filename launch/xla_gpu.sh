# shellcheck shell=bash
# Sourced by the launchers for NVIDIA GPUs: adds flags to XLA_FLAGS that are not set yet, so your own
# flags win. This project has not timed these flags; measure with --profile.
#   . launch/xla_gpu.sh
# DETERMINISTIC=1 allows only kernels with reproducible bits, which are slower. Without it, a resumed
# run may differ from an uninterrupted run in the last digits.
flags=(
  # Collectives run while the GPU computes.
  # https://docs.nvidia.com/jax-toolbox/environment-variables
  --xla_gpu_enable_latency_hiding_scheduler=true
  # Small collectives are combined up to this size, which should be at least the weights of a layer:
  # https://docs.jax.dev/en/latest/gpu_performance_tips.html. 128 MiB, our choice, hold two to four
  # residual blocks of the ImageNet UNet.
  --xla_gpu_all_gather_combine_threshold_bytes=134217728
  --xla_gpu_reduce_scatter_combine_threshold_bytes=134217728
  --xla_gpu_all_reduce_combine_threshold_bytes=134217728
)
if [ "${DETERMINISTIC:-0}" = 1 ]; then
  # https://openxla.org/xla/determinism. The compilation cache stores the kernels that XLA chose by
  # timing, so a restart with the same cache uses the same ones.
  flags+=(--xla_gpu_exclude_nondeterministic_ops=true)
fi
for flag in "${flags[@]}"; do
  case " ${XLA_FLAGS:-} " in
    *" ${flag%%=*}="*) ;;
    *) XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }$flag" ;;
  esac
done
export XLA_FLAGS
# By default JAX takes three quarters of the memory.
# https://docs.nvidia.com/jax-toolbox/performance-profiling/gpu-performance
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
