# shellcheck shell=bash
# Sourced by the launchers for TPUs: adds flags to LIBTPU_INIT_ARGS that are not set yet, so your own
# flags win. libtpu 0.0.42 accepts all of them (it fails for an unknown flag). This project has not
# timed them.
#   . launch/xla_tpu.sh
flags=(
  # Gradients are reduced while the TPU computes. The guide for v5e suggests both flags together; the
  # second is off by default. https://openxla.org/xla/flags_guidance
  --xla_tpu_enable_async_collective_fusion=true
  --xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true
  # Reductions between slices, over the data centre's network, overlap with computation. They have no
  # effect on one slice. https://docs.jax.dev/en/latest/xla_flags.html
  --xla_tpu_enable_data_parallel_all_reduce_opt=true
  --xla_tpu_data_parallel_opt_different_sized_ops=true
)
for flag in "${flags[@]}"; do
  case " ${LIBTPU_INIT_ARGS:-} " in
    *" ${flag%%=*}="*) ;;
    *) LIBTPU_INIT_ARGS="${LIBTPU_INIT_ARGS:+$LIBTPU_INIT_ARGS }$flag" ;;
  esac
done
export LIBTPU_INIT_ARGS
