# shellcheck shell=bash
# Sourced by the launchers for TPUs: adds to LIBTPU_INIT_ARGS what is not set there already, so a
# flag of your own wins. libtpu 0.0.42 takes them all (it ends with the name of one that it does not
# know); nothing here has been timed by this project.
#   . launch/xla_tpu.sh
flags=(
  # Gradients are reduced while the TPU computes; the guide for v5e suggests both together, the
  # second is off by default. https://openxla.org/xla/flags_guidance
  --xla_tpu_enable_async_collective_fusion=true
  --xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true
  # Reductions between slices, over the data centre's network, overlap with computation; no effect
  # on one slice. https://docs.jax.dev/en/latest/xla_flags.html
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
